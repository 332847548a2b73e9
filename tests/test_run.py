"""engine/run.py: names, folders and files of runs."""

import errno
import fcntl
import json
import os
import platform
import stat
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import student_v0
import teacher
from engine.run import (
    Run,
    RunError,
    arch_from_name,
    cpu_name,
    find_checkpoint,
    lock,
    make_config,
    name_suffix,
    teacher_name,
    write_file,
)
from models import CheckpointError


def name(program, *flags):
    parser = program.make_parser()
    if program is teacher:
        args = parser.parse_args(["--arch", "resnet8", *flags])
        return name_suffix(make_config(parser, args, torch.device("cpu"), "fp32"), {"arch"})
    args = parser.parse_args(flags)
    of_teacher = {"teacher_arch": "resnet32x4", "teacher_file": str(args.teacher_path / "ckpt" / "best.pth")}
    return student_v0.run_name(args, make_config(parser, args, torch.device("cpu"), "fp32", **of_teacher))


def test_default_names_are_the_published_ones():
    assert name(teacher) == ""
    assert name(student_v0) == "v0_student_resnet8x4_teacher_resnet32x4-best_strategy3_k48_b32_w10_seed0"


EFFECTS = (  # every flag that changes a result, with a value that is not its default
    "--epoch 3, --batch-size 128, --lr 0.01, --lr 0.0100001, --momentum 0.8, --weight-decay 1e-4, --gamma 0.2, "
    "--milestones 2, --milestones 1 2, --milestones, --seed 1, --dataset synthetic, --train-limit 100, "
    "--val-limit 100, --holdout 100, --precision fp32, --precision bf16, --precision tf32, --sync-bn"
)
STUDENT_EFFECTS = (
    "--k 40, --b 16, --w 1000, --w 10.5, --w 10.000001, --strategy 1, --T 2, --kd-weight 0.5, --ce-weight 0.5, "
    "--score-every 5, --other-distill AT, --other-distill SP, --teacher-ckpt last, --student-arch resnet8, "
    "--teacher-path teacher_resnet32x4_seed1"
)


@pytest.mark.parametrize("program, effects", [(teacher, EFFECTS), (student_v0, f"{EFFECTS}, {STUDENT_EFFECTS}")])
def test_no_two_settings_share_a_name(program, effects):
    names = [name(program), *(name(program, *flags.split()) for flags in effects.split(", "))]
    assert len(set(names)) == len(names)
    assert not any("/" in n for n in names)


@pytest.mark.parametrize("program", [teacher, student_v0])
def test_every_flag_is_either_without_effect_or_in_the_name(program):
    """A flag added later must be put on one side or the other."""
    named = {flags.split()[0] for flags in f"{EFFECTS}, {STUDENT_EFFECTS}".split(", ")}
    without = {"--save-interval", "--gpu-id", "--data-root", "--experiments", "--fresh", "--debug", "--compile"}
    given = {option for action in program.make_parser()._actions for option in action.option_strings}
    assert given - {"-h", "--help", "--arch", "--teacher-arch"} <= named | without
    for flag, value in (("--save-interval", "7"), ("--data-root", "x"), ("--experiments", "x"), ("--gpu-id", "-1")):
        assert name(program, flag, value) == name(program)


def test_a_switch_is_named_by_itself():
    assert name(teacher, "--sync-bn") == "_syncbn"


def test_long_names_are_cut_and_stay_apart(tmp_path):
    folders = []
    for end in "ab":
        with run_in(tmp_path / ("x" * 400 + end), config()) as run:
            folders.append(run.folder)
    assert len(set(folders)) == 2 and all(len(folder.name) == 200 and folder.is_dir() for folder in folders)


def test_a_link_s_own_name_tells(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "teacher_vgg13").symlink_to(tmp_path / "weights")
    assert teacher_name(tmp_path / "teacher_vgg13" / "ckpt" / "best.pth") == ("teacher_vgg13", "best")


@pytest.mark.parametrize(
    "folder, arch",
    [
        ("teacher_wrn_40_2", "wrn_40_2"),
        ("teacher_wrn_40_2/", "wrn_40_2"),
        ("a/b/teacher_resnet8x4_seed1", "resnet8x4"),
        ("teacher_resnet8_epoch3_milestones2", "resnet8"),
        ("vgg13", "vgg13"),
        ("teacher_vgg131", None),
        ("my_teacher", None),
    ],
)
def test_arch_from_name(tmp_path, monkeypatch, folder, arch):
    path = tmp_path / folder
    path.mkdir(parents=True)
    monkeypatch.chdir(path)
    for file in (path / "ckpt" / "best.pth", path / "240.pth.tar", Path("ckpt/best.pth"), Path("best.th")):
        assert arch_from_name(teacher_name(file)[0]) == arch


def test_find_checkpoint(tmp_path):
    (tmp_path / "ckpt").mkdir()
    with pytest.raises(CheckpointError, match="there are: none at all"):
        find_checkpoint(tmp_path, "best")
    for stem in ("best", "best_old", "040", "140", "240"):
        (tmp_path / "ckpt" / f"{stem}.pth").touch()
    assert find_checkpoint(tmp_path, "best").name == "best.pth"
    assert find_checkpoint(tmp_path, "240").name == find_checkpoint(tmp_path, "240.pth").name == "240.pth"
    assert find_checkpoint(tmp_path, "old").name == "best_old.pth"
    with pytest.raises(CheckpointError, match=r"several: 040\.pth, 140\.pth, 240\.pth"):
        find_checkpoint(tmp_path, "40")
    with pytest.raises(CheckpointError, match="none; there are: 040"):
        find_checkpoint(tmp_path, "last")
    with pytest.raises(CheckpointError, match="no such folder"):
        find_checkpoint(tmp_path / "nowhere", "best")
    (tmp_path / "ckpt" / "240.pt").touch()
    assert find_checkpoint(tmp_path, "240.pth").name == "240.pth"
    with pytest.raises(CheckpointError, match=r"several: 240\.pt, 240\.pth"):
        find_checkpoint(tmp_path, "240")


@pytest.mark.parametrize("name", ["best.pt", "best.pth.tar", "best.ckpt", "best.th", "model_best.pth"])
def test_checkpoints_of_other_projects_are_found(tmp_path, name):
    (tmp_path / "ckpt").mkdir()
    file = tmp_path / "ckpt" / name
    file.touch()
    (tmp_path / "ckpt" / "best.txt").touch()
    assert find_checkpoint(tmp_path, "best") == find_checkpoint(file, "anything") == file
    assert teacher_name(file) == (tmp_path.name, "model_best" if "model" in name else "best")


def config(**settings):
    base = {"epoch": 2, "lr": 0.1, "save_interval": 40, "milestones": []}
    settings = {**base, **settings}
    effective = {**settings, "save_interval": 40, "teacher_sha256": "a"}
    named = {"settings": settings, "effective_settings": effective, "defaults": base}
    return {**named, "kind": "student", "arch": "resnet8", "precision": "fp32", "device": "here"}


def run_in(folder, settings, fresh=False):
    return Run(Namespace(experiments=folder.parent, fresh=fresh), folder.name, settings)


def open_run(folder, settings, fresh=False):
    with run_in(folder, settings, fresh):
        pass


class Trained:
    """Stands in for a trainer."""

    def __init__(self):
        self.model = torch.nn.Linear(1, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1)

    def state(self):
        return {}

    def load_state(self, state):
        assert state == {}

    def files(self):
        return {}


def test_a_folder_is_not_shared_by_runs_of_other_settings(tmp_path):
    open_run(tmp_path / "run", config())
    open_run(tmp_path / "run", config(save_interval=1))  # changes no result
    for other in (config(lr=0.2), config(teacher_sha256="b"), config(milestones=[1])):
        other["effective_settings"] |= other["settings"]
        with pytest.raises(RunError, match=r"holds a run with .* --fresh"):
            open_run(tmp_path / "run", other)
    open_run(tmp_path / "run", config(lr=0.2), fresh=True)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["lr"] == 0.2
    (backup,) = (path for path in tmp_path.iterdir() if path.name != "run")
    assert json.loads((backup / "config.json").read_text())["settings"]["lr"] == 0.1


def test_a_setting_that_an_earlier_version_did_not_know_has_its_default(tmp_path):
    open_run(tmp_path / "run", config())
    new = config()
    new["defaults"], new["effective_settings"] = (
        {**new[part], "new": 1} for part in ("defaults", "effective_settings")
    )
    open_run(tmp_path / "run", new)
    new["effective_settings"]["new"] = 2
    with pytest.raises(RunError, match="new 1, not 2"):
        open_run(tmp_path / "run", new)


def test_a_resumed_run_keeps_the_precision_that_it_began_with(tmp_path, capsys):
    open_run(tmp_path / "run", config())
    elsewhere = {**config(), "precision": "bf16"}  # what --precision auto chooses on another machine
    assert run_in(tmp_path / "run", elsewhere).config["precision"] == "fp32"
    assert "precision: fp32, in which this run began" in capsys.readouterr().out
    assert run_in(tmp_path / "run", {**config(), "precision": "bf16"}, fresh=True).config["precision"] == "bf16"


def test_a_resumed_run_names_every_device_that_it_ran_on(tmp_path):
    for device in ("here", "there", "here", "there"):
        open_run(tmp_path / "run", {**config(), "device": device})
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == {**config(), "device": "here, then there"}


@pytest.mark.parametrize("before, after", [(0, 1), (1, 0)])
def test_momentum_takes_the_memory_format_of_the_weights(tmp_path, before, after):
    """fp32 weights are channels last on a CPU and first on a GPU: a run that moves goes on as if it had stayed."""
    images = torch.randn(2, 4, 5, 5)

    def trained(place):
        torch.manual_seed(0)
        trainer, formats = Trained(), (torch.contiguous_format, torch.channels_last)
        trainer.model = torch.nn.Conv2d(4, 6, 3).to(memory_format=formats[place])
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), 0.1, 0.9, fused=True)
        return trainer

    def step(trainer):
        trainer.optimizer.zero_grad()
        trainer.model(images).square().mean().backward()
        trainer.optimizer.step()

    stayed, moved = trained(before), trained(after)
    step(stayed)
    for trainer in (stayed, moved):
        with run_in(tmp_path / "run", config()) as run:
            run.restore(trainer)
            run.save(trainer)
        step(trainer)
    torch.testing.assert_close(moved.model.state_dict(), stayed.model.state_dict())


def test_a_downloaded_teacher_is_not_overwritten(tmp_path):
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt" / "best.pth").write_bytes(b"precious")
    with pytest.raises(RunError, match="another origin"):
        open_run(tmp_path, config())
    assert (tmp_path / "ckpt" / "best.pth").read_bytes() == b"precious"


@pytest.mark.parametrize("result", ["{}", "[]", "{", '{"best_acc": 1}'])
def test_a_damaged_result_is_no_result(tmp_path, result):
    open_run(tmp_path / "run", config())
    (tmp_path / "run" / "result.json").write_text(result)
    with run_in(tmp_path / "run", config()) as run:
        assert run.result is None and not run.finished()


def test_a_foreign_last_checkpoint_is_not_taken_for_a_state(tmp_path):
    (tmp_path / "ckpt").mkdir()
    torch.save({"state_dict": {"a": torch.ones(1)}}, tmp_path / "ckpt" / "student_last.pth")
    with pytest.raises(RunError, match="another origin"), run_in(tmp_path, config()) as run:
        run.restore(Trained())


def test_a_damaged_state_never_takes_the_sound_one_s_place(tmp_path):
    trainer = Trained()
    for _ in range(2):
        with run_in(tmp_path / "run", config()) as run:
            run.restore(trainer)
            run.save(trainer)
            run.save(trainer)
            folder = run.folder / "ckpt"
            (folder / "student_last.pth").write_bytes(b"damaged")
    with run_in(tmp_path / "run", config()) as run:
        assert run.restore(trainer) is None
        assert (folder / "student_previous.pth").stat().st_size > 100 and not (folder / "student_last.pth").exists()


def test_a_folder_moved_aside_while_waiting_for_its_lock_is_not_taken(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    flock = fcntl.flock

    def moved_meanwhile(file, how):
        flock(file, how)
        (tmp_path / "run").rename(tmp_path / "aside")
        (tmp_path / "run").mkdir()

    monkeypatch.setattr(fcntl, "flock", moved_meanwhile)
    with pytest.raises(RunError, match="in use"):
        lock(tmp_path / "run")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_without_locks_a_run_goes_on_and_says_so_once(tmp_path, monkeypatch, capsys, number):
    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    open_run(tmp_path / "run", config())
    open_run(tmp_path / "run", config(), fresh=True)  # locks the old folder and the new one
    err = capsys.readouterr().err
    assert err.startswith(f"warning: {tmp_path / 'run' / '.lock'}: {os.strerror(number)}; two processes in this folder")
    assert err.count("\n") == 1 and (tmp_path / "run" / "config.json").exists()


def test_a_lock_names_its_holder(tmp_path):
    held = lock(tmp_path)
    with pytest.raises(RunError, match=rf"in use by another process \(pid {os.getpid()} on "):
        lock(tmp_path)
    held.close()
    lock(tmp_path).close()


@pytest.mark.parametrize("number, fatal", [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_folders_that_cannot_be_synced(tmp_path, monkeypatch, number, fatal):
    def only_files(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", only_files)
    with pytest.raises(OSError, match=f"{tmp_path} could not be synced") if fatal else nullcontext():
        write_file(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"


def test_a_link_to_nothing_is_no_folder(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunError, match=f"cannot be made: {tmp_path / 'link'} is a link to nothing"):
        open_run(tmp_path / "link" / "run", config())
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("script, commit", [
    ("echo fatal: detected dubious ownership in repository >&2; echo more >&2; exit 128",
     "(fatal: detected dubious ownership in repository)"),
    ("echo 0123-dirty", "0123-dirty"), ("exit 1", "(git failed)"), (None, "(git is not installed)"),
])  # fmt: skip
def test_an_unknown_commit_says_why(tmp_path, monkeypatch, script, commit):
    monkeypatch.setenv("PATH", str(tmp_path))
    if script:
        (tmp_path / "git").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "git").chmod(0o755)
    parser = teacher.make_parser()
    args = parser.parse_args(["--arch", "resnet8"])
    assert make_config(parser, args, torch.device("cpu"), "fp32")["versions"]["commit"] == commit


@pytest.mark.parametrize("cpuinfo, name", [
    ("processor\t: 0\nmodel name\t: A Processor @ 2 GHz\n\nprocessor\t: 1\nmodel name\t: A Processor @ 2 GHz\n",
     "A Processor @ 2 GHz"),
    ("processor\t: 0\nBogoMIPS\t: 200.0\n", platform.machine()), (None, platform.machine()),
])  # fmt: skip
def test_the_processor_is_told(monkeypatch, cpuinfo, name):
    def read_text(path):
        if cpuinfo is None:
            raise FileNotFoundError
        return cpuinfo

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert cpu_name() == f"{name}, 3 of 4 cores"


def test_which_checkpoints_are_kept(tmp_path):
    trainer = Trained()
    settings = {**config(epoch=7, save_interval=3, milestones=[4]), "kind": "teacher"}
    with run_in(tmp_path / "run", settings) as run:
        run.restore(trainer)
        for acc in (1, 5, 2, 5, 3, 4, 2):
            trainer.model.weight.data.fill_(len(run.rows))
            run.end_epoch(trainer, {"val/cls_acc": acc, "train_seconds": 1.0, "val_seconds": 0.5})
        run.finish(10, teacher_queries=0, train_macs=1)
    names = sorted(path.name for path in (tmp_path / "run" / "ckpt").iterdir())
    assert names == ["003.pth", "004.pth", "006.pth", "007.pth", "best.pth", "last.pth"]
    best = torch.load(tmp_path / "run" / "ckpt" / "best.pth", weights_only=True)
    assert (best["epoch"], best["acc"], best["arch"]) == (2, 5, "resnet8") and best["state_dict"]["weight"].item() == 1
    assert run.result == {
        "best_acc": 5, "best_epoch": 2, "last_acc": 2, "epochs": 7, "train_seconds": 7, "val_seconds": 3.5,
        "images_per_second": 10, "startup_seconds": None, "teacher_queries": 0, "train_macs": 1,
    }  # fmt: skip


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    write_file(tmp_path / "x", b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError):
        write_file(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
