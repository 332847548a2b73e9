"""engine/teacher_cache.py: what it keeps of a teacher, and student_v0.py --teacher-cache."""

import errno
import os
import signal
import subprocess
import sys
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from conftest import QUICK
from small_runs import KD, TINY, distil, distiller_of, metrics, result, weights
from torch import nn

import dataset
import student_v0
from engine.device import Precision
from engine.teacher_cache import CHECKED, TeacherCache
from models import load_model, model_dict
from utils import run_main

CACHED = f"{TINY} {KD} --teacher-cache"  # two epochs of 128 images
FP32 = Precision("fp32", "cpu")
IMAGES = 64


class CountingTeacher(nn.Module):
    """Its logits depend on each pixel, so that no two views have the same. It counts the views that it is asked for."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3 * 32 * 32, 100)
        self.asked = 0

    def forward(self, images):
        self.asked += len(images)
        return self.linear(images.flatten(1))


def split_and_views():
    split = dataset.load("synthetic", None, "cpu", IMAGES, 1).train
    (views,) = split.draw_epoch(IMAGES, 0, 1)
    return split, views


def cache_in(folder, teacher, split):
    return TeacherCache(folder / "logits", teacher, split, 50_000, FP32)


@torch.no_grad()
def test_logits_are_the_teacher_s_own_and_each_view_is_asked_once(tmp_path):
    split, views = split_and_views()
    teacher = CountingTeacher()
    own = teacher(split.load_batch(*views)[0])
    teacher.asked = 0
    cache = cache_in(tmp_path, teacher, split)
    for _ in range(2):
        torch.testing.assert_close(cache(*views).float(), own, rtol=1e-3, atol=1e-4)  # fp16
    assert teacher.asked == cache.queries == IMAGES

    part = slice(20, 50)  # another run, on some of the images and with other positions
    other = cache_in(tmp_path, teacher, split[part])
    logits = other(torch.arange(30), *(drawn[views[0].argsort()][part] for drawn in views[1:]))
    torch.testing.assert_close(logits.float(), own[views[0].argsort()][part], rtol=1e-3, atol=1e-4)
    assert other.queries == 30  # which were compared

    mirrored = cache(views[0], views[1], ~views[2])
    assert cache.queries == 2 * IMAGES
    torch.testing.assert_close(
        mirrored.float(), teacher(split.load_batch(views[0], views[1], ~views[2])[0]), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("damage", [b"\0\0", b"\0\x7e"])  # a logit that was not written, and nan
def test_a_damaged_view_is_asked_again(tmp_path, damage):
    split, views = split_and_views()
    cache = cache_in(tmp_path, CountingTeacher(), split)
    before = cache(*views)
    (view,) = np.flatnonzero(cache.saved[3].any(1))  # of the fourth image
    with cache.path.open("r+b") as file:
        os.pwrite(file.fileno(), damage, int(3 * 162 + view) * 200 + 100)
    assert torch.equal(cache(*views), before) and cache.queries == IMAGES + 1
    assert torch.equal(cache(*views), before) and cache.queries == IMAGES + 1


def test_another_file_is_left_alone(tmp_path):
    """One of another size, and one of a network whose code has changed since."""
    path = tmp_path / "logits"
    path.write_text("something else")
    with pytest.raises(OSError, match="logits does not hold this teacher's logits; delete it"):
        cache_in(tmp_path, None, None)
    assert path.read_text() == "something else"
    path.unlink()
    split, views = split_and_views()
    teacher = CountingTeacher()
    cache = cache_in(tmp_path, teacher, split)
    before = cache(*views)
    teacher.linear.weight.data *= 2
    changed = cache_in(tmp_path, teacher, split)
    with pytest.raises(OSError, match="logits does not hold this teacher's logits; delete it"):
        changed(views[0], views[1], torch.zeros_like(views[2]))
    assert torch.equal(cache(*views), before)


# ------------------------------------------------------------------------------------------------------ student_v0.py


@pytest.fixture
def teacher_path(trained_teacher, tmp_path):
    """A copy, because the cache lies beside the teacher."""
    path = tmp_path / "teacher_resnet8" / "ckpt" / "best.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes((trained_teacher / "ckpt" / "best.pth").read_bytes())
    return path


def distinct_views(seeds, epochs=(1, 2)):
    """How many views runs with these seeds meet in each epoch for the first time."""
    split = dataset.load("synthetic", None, "cpu", 128, 1).train
    met, new = set(), []
    for seed in seeds:
        for epoch in epochs:
            before = len(met)
            for chosen, offsets, flips in split.draw_epoch(64, seed, epoch):
                met.update(zip(chosen.tolist(), map(tuple, offsets.tolist()), flips.tolist()))
            new.append(len(met) - before)
    return new


def same_training(one, other):
    for name, tensor in weights(one, "student_last").items():
        torch.testing.assert_close(tensor, weights(other, "student_last")[name], rtol=1e-2, atol=1e-3)
    for before, after in zip(metrics(one), metrics(other)):
        for name in ("train/loss", "train/t_entropy", "val/cls_loss"):
            assert float(after[name]) == pytest.approx(float(before[name]), rel=1e-3), name


@pytest.mark.parametrize("method", [KD, "--strategy 3 --k 48 --b 64 --w 1000"])
def test_a_run_is_the_same_with_and_without_it(teacher_path, tmp_path, method):
    without = distil(teacher_path, tmp_path / "without", TINY, method)
    first = distil(teacher_path, tmp_path / "first", CACHED, method)
    same_training(without, first)
    assert first.name.startswith(without.name[:80]) and "_teachercache" in first.name

    second = distil(teacher_path, tmp_path / "second", CACHED, method, "--seed 1")
    new = distinct_views([0, 1])
    new[2] += min(CHECKED, 128 - new[2])
    assert result(first)["teacher_queries"] == sum(new[:2]) and result(second)["teacher_queries"] == sum(new[2:])
    assert [float(row["cost/teacher_queries"]) for row in metrics(second)] == [new[2], new[2] + new[3]]
    for folder in (first, second):
        saved = result(without)["train_macs"] - result(folder)["train_macs"]
        passes = result(without)["teacher_queries"] - result(folder)["teacher_queries"]
        teacher_macs = result(without)["teacher_macs"]
        assert saved == passes * teacher_macs
        kd_macs = result(without)["train_macs"] / result(without)["computation"]
        assert result(folder)["computation"] == pytest.approx(result(folder)["train_macs"] / kd_macs)


@pytest.mark.parametrize("flags", ["--k 64 --b 63 --w 1000", "--k 64 --b 64 --w 999", f"{KD} --other-distill SP"])
def test_it_needs_unmixed_images_and_no_features(teacher_path, tmp_path, flags, capsys):
    with pytest.raises(SystemExit) as end:
        distil(teacher_path, tmp_path / "runs", flags, "--teacher-cache")
    message = capsys.readouterr().err
    assert end.value.code == 2 and message.count("\n") == 1 and "--teacher-cache" in message
    assert not (tmp_path / "runs").exists() and len(list(teacher_path.parent.iterdir())) == 1


def test_a_full_disk_is_one_line_and_loses_nothing(teacher_path, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, pytest.raises(SystemExit) as end:
        patched.setattr(os, "pwrite", full)
        run_main(lambda: distil(teacher_path, tmp_path, CACHED))
    assert str(end.value.code).endswith("could not be written (No space left on device)")
    assert result(distil(teacher_path, tmp_path, CACHED))["epochs"] == 2


KILLED_WHILE_WRITING = """
import os, signal, sys
import student_v0
write, calls = os.pwrite, iter(range({calls}))

def half_a_view(file, content, position):
    if next(calls, None) is None:
        write(file, content[:100], position)
        os.kill(os.getpid(), signal.SIGKILL)
    write(file, content, position)

os.pwrite = half_a_view
student_v0.main(sys.argv[1:])
"""


def words(teacher_path, experiments, *flags):
    places = ["--teacher-path", str(teacher_path), "--experiments", str(experiments)]
    return [*" ".join(["--student-arch resnet8", QUICK, CACHED, *flags]).split(), *places]


def test_killed_while_writing_a_run_goes_on_to_the_same_end(teacher_path, tmp_path):
    code = KILLED_WHILE_WRITING.format(calls=200)  # in the second epoch
    killed = subprocess.run(
        [sys.executable, "-c", code, *words(teacher_path, tmp_path / "killed")], capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL
    continued = distil(teacher_path, tmp_path / "killed", CACHED)
    same_training(distil(teacher_path, tmp_path / "whole", TINY, KD), continued)
    first, second = distinct_views([0])
    missing = first + second - 200
    assert result(continued)["teacher_queries"] == first + missing + min(CHECKED, 128 - missing)


def test_two_runs_at_once_share_the_file(teacher_path, tmp_path):
    seeds = ("--seed 0", "--seed 1")
    spawn = get_context("spawn")
    runs = [spawn.Process(target=student_v0.main, args=(words(teacher_path, tmp_path / seed, seed),)) for seed in seeds]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
        assert run.exitcode == 0
    for seed in seeds:
        (shared,) = (tmp_path / seed).iterdir()
        same_training(distil(teacher_path, tmp_path / "alone" / seed, TINY, KD, seed), shared)
    again = distil(teacher_path, tmp_path / "again", CACHED, "--seed 1")
    assert result(again)["teacher_queries"] == CHECKED


def test_nothing_is_mixed_in_large_batches(trained_teacher, tmp_path):
    """With --w 1000 the last image of 1024 would be mixed by 0.38 of lambda."""
    teacher_model, _ = load_model(trained_teacher / "ckpt" / "best.pth")
    distiller = distiller_of(
        model_dict["resnet8"](), teacher_model, "--strategy 0 --batch-size 1024 --k 1024 --b 1024 --w 1000", 1024
    )
    distiller.cache = TeacherCache(tmp_path / "logits", teacher_model, distiller.data.train, 50_000, FP32)
    ((chosen, offsets, flips, lam, partner, logits),) = distiller.draw_epoch(1)
    images, _, _ = distiller.data.train.load_batch(chosen, offsets, flips)
    assert torch.equal(distiller.selector(images, None, lam, partner).images, images) and logits.shape == (1024, 100)
