"""The two programs end to end, on generated images."""

import hashlib
import json
import re
import shutil
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import QUICK
from small_runs import (
    KD,
    TINY,
    ctrl_c_after,
    differences,
    distil,
    distiller_of,
    metrics,
    outcome,
    result,
    scalars,
    train,
    weights,
)
from torchvision.datasets import CIFAR100

import student_v0
import teacher
from engine.flops import forward_macs
from engine.run import RunError
from losses import FEATURE_LOSSES, attention_transfer, similarity_preserving
from models import CheckpointError, load_model, model_dict
from models.resnet import BasicBlock, ResNet
from utils import run_main

MEASURES = ("confidence", "margin", "entropy")
STATISTICS = {f"train/{group}_{measure}" for group in ("s_select", "s_else", "s_all", "t") for measure in MEASURES}
STATISTICS |= {"train/acc", "train/loss", "train/center_dist"}
VALIDATION = {"val/cls_loss", "val/cls_acc"}
COST = {"cost/teacher_queries", "cost/train_macs", "cost/train_macs_usual"}
NO_BAR = Namespace(update=lambda n: False)  # stands in for tqdm's where nothing is shown
MACS = forward_macs(model_dict["resnet8"]())

# -------------------------------------------------------------------------------------------------------- learning


def test_learning_happens(tmp_path, capsys):
    """Chance is 1 %, with a standard error of 0.45 points on 500 images."""
    flags = "--train-limit 1200 --val-limit 500 --epoch 4 --milestones 3 --batch-size 32 --precision auto"
    folder = train(tmp_path, flags)
    teacher_acc = result(folder)["best_acc"]
    assert teacher_acc > 8
    for method in ("--k 24 --b 16", "--strategy 0 --k 32 --b 32 --w 1000"):
        student = distil(folder, tmp_path / method, flags, method)
        assert result(student)["last_acc"] > 4
        assert result(student)["teacher_acc"] == pytest.approx(teacher_acc, abs=0.6)  # rounding of bf16
        losses = [float(row["train/loss"]) for row in metrics(student)]
        assert losses == sorted(losses, reverse=True)
    assert f"{teacher_acc:.2f} % on the validation images" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------- what is written


def test_files_of_a_teacher(trained_teacher):
    assert trained_teacher.name == (
        "teacher_resnet8_epoch2_milestones1_datasetsynthetic_trainlimit640_vallimit200_precisionfp32"
    )
    events = scalars(trained_teacher)
    assert set(events) == {"train/cls_loss", "train/cls_acc"} | VALIDATION | COST
    for tag, values in events.items():
        assert [step for step, _ in values] == [1, 2]
        expected = [float(row[tag]) for row in metrics(trained_teacher)]
        assert [value for _, value in values] == pytest.approx(expected, rel=1e-5)
    saved = result(trained_teacher)
    assert saved["train_macs"] == 640 * 2 * 2 * MACS and saved["train_macs_usual"] == 640 * 2 * 3 * MACS
    assert saved["teacher_queries"] == 0 and 1e8 < saved["peak_memory_bytes"] < 1e11
    config = json.loads((trained_teacher / "config.json").read_text())
    assert config["settings"]["lr"] == 0.05 and config["versions"][0]["torch"] == torch.__version__


def test_files_of_unix(trained_teacher, tmp_path):
    folder = distil(trained_teacher, tmp_path, "--train-limit 528")  # 8 batches of 64 and one of 16
    assert re.fullmatch(
        r"v0_student_resnet8_teacher_resnet8_epoch2_.*-best_strategy3_k48_b32_w10_seed0_epoch2_.*", folder.name
    )
    events = scalars(folder)
    assert set(events) == STATISTICS | VALIDATION | COST | {"cost/computation", "cost/computation_usual"}
    # no validation pass comes before the first epoch, so there are no class centers in it
    assert [step for step, _ in events["train/center_dist"]] == [2] and metrics(folder)[0]["train/center_dist"] == ""
    assert all([step for step, _ in events[tag]] == [1, 2] for tag in events if tag != "train/center_dist")

    saved = result(folder)
    assert saved["teacher_queries"] == 2 * (8 * 48 + 16)
    for ending, passes in (("", 3), ("_usual", 4)):  # teacher, student forward, and backward as one or two
        spent = 400 * passes * MACS + 528 * MACS  # kept, and scored
        assert saved[f"train_macs{ending}"] == 2 * spent
        assert saved[f"computation{ending}"] == pytest.approx(spent / (528 * passes * MACS))
        assert [value for _, value in events[f"cost/train_macs{ending}"]] == pytest.approx([spent, 2 * spent])
    counter = np.load(folder / "counter.npy")
    assert counter.shape == (2, 528) and counter.max() == 1
    assert counter.sum(1).tolist() == [8 * 32 + 16] * 2 and (counter[0] != counter[1]).any()

    last = {name: float(value) for name, value in metrics(folder)[-1].items()}
    for measure in ("confidence", "margin"):
        assert last[f"train/s_select_{measure}"] < last[f"train/s_all_{measure}"] < last[f"train/s_else_{measure}"]
    assert last["train/s_select_entropy"] > last["train/s_all_entropy"] > last["train/s_else_entropy"]
    # all is the mean of the 400 kept and the 128 dropped
    mean = (400 * last["train/s_select_entropy"] + 128 * last["train/s_else_entropy"]) / 528
    assert last["train/s_all_entropy"] == pytest.approx(mean, rel=1e-6)

    names = sorted(path.name for path in (folder / "ckpt").iterdir())
    assert names == ["student_001.pth", "student_002.pth", "student_best.pth", "student_last.pth"]
    config = json.loads((folder / "config.json").read_text())
    best = (trained_teacher / "ckpt" / "best.pth").read_bytes()
    assert config["teacher_sha256"] == hashlib.sha256(best).hexdigest() and config["teacher_arch"] == "resnet8"
    assert config["teacher_settings"]["train_limit"] == 640


def test_kd_costs_what_it_costs(trained_teacher, tmp_path):
    """The student sees each image once, the teacher too; statistics that need a scoring pass are left out."""
    networks = model_dict["resnet8"](), load_model(trained_teacher / "ckpt" / "best.pth")[0]
    seen = []
    for network in networks:
        network.register_forward_hook(lambda net, inputs, output: seen.append((net, len(inputs[0]))))
    distiller = distiller_of(*networks, KD, images=96)
    seen.clear()  # of counting operations
    distiller.train_epoch(1, NO_BAR)
    student, teacher_model = networks
    assert seen == [(teacher_model, 64), (student, 64), (teacher_model, 32), (student, 32)]

    folder = distil(trained_teacher, tmp_path / "kd", TINY, KD)
    assert result(folder)["teacher_queries"] == 2 * 128 and result(folder)["computation"] == 1
    assert STATISTICS - set(scalars(folder)) == {f"train/s_else_{measure}" for measure in MEASURES}
    assert not (folder / "counter.npy").exists()  # nothing was uncertain to anyone

    folder = distil(trained_teacher, tmp_path / "random", TINY, "--strategy 0")  # who was left out is not known
    left_out = {f"train/{group}_{measure}" for group in ("s_else", "s_all") for measure in MEASURES}
    assert STATISTICS - set(scalars(folder)) == left_out and result(folder)["teacher_queries"] == 2 * 2 * 48


def confidences(p):
    top = p.sort(descending=True).values
    return {"confidence": top[:, 0], "margin": top[:, 0] - top[:, 1], "entropy": -(p * p.log()).sum(1)}


@pytest.mark.parametrize(
    "flags",
    ["", "--ce-weight 0.5 --kd-weight 2 --T 3", "--other-distill AT", "--other-distill SP", "--strategy 1 --k 30"],
)
def test_one_step_is_the_method(trained_teacher, flags):
    """A step against the method written down again, with plain torch and loops: weights and every statistic."""
    torch.manual_seed(1)
    teacher_model, _ = load_model(trained_teacher / "ckpt" / "best.pth")
    student, reference = model_dict["resnet8"](), model_dict["resnet8"]()
    reference.load_state_dict(student.state_dict())
    distiller = distiller_of(student, teacher_model, flags)
    args, centers = distiller.args, torch.randn(100, 64)
    distiller.centers.copy_(centers)
    (batch,) = distiller.draw_epoch(1)
    stats = distiller.step(*batch)
    images, labels, indices = distiller.data.train.load_batch(*batch[:3])
    lam, partner = batch[3:]

    # score, rank
    reference.train()
    with torch.no_grad():
        p = reference(images).softmax(1)
    uncertain = -p.amax(1) if args.strategy == 1 else -(p * p.log()).sum(1)
    order = uncertain.argsort(descending=True)
    # mix, keep k
    mask = torch.stack([lam / (1 + np.exp(-10 * (r / 64 - 63 / 128))) for r in range(args.k)])
    mixed = torch.stack([(1 - m) * images[order[r]] + m * images[partner[r]] for r, m in enumerate(mask)])
    kept, dropped = order[: args.k], order[args.k :]
    # learn
    with torch.no_grad():
        t_features, t = teacher_model(mixed, is_feat=True)
    s_features, s = reference(mixed, is_feat=True)
    q = (t / args.T).softmax(1)
    loss = args.kd_weight * (q * (q.log() - (s / args.T).log_softmax(1))).sum(1).mean() * args.T**2
    logs = s.log_softmax(1)
    ce = [-(1 - m) * logs[r, labels[order[r]]] - m * logs[r, labels[partner[r]]] for r, m in enumerate(mask)]
    loss = loss + args.ce_weight * torch.stack(ce).mean()
    if args.other_distill:
        weight, function = {"AT": (1000, attention_transfer), "SP": (3000, similarity_preserving)}[args.other_distill]
        loss = loss + weight * function(s_features, t_features)
    optimizer = torch.optim.SGD(reference.parameters(), 0.05, 0.9, weight_decay=5e-4)
    loss.backward()
    optimizer.step()

    # momentum makes nothing of a first step but its gradient; feature losses magnify rounding by their weights
    tolerance = {"rtol": 2e-3, "atol": 2e-4} if args.other_distill else {"rtol": 1e-4, "atol": 1e-5}
    for (name, ours), theirs in zip(student.state_dict().items(), reference.state_dict().values()):
        torch.testing.assert_close(ours, theirs, **tolerance, msg=name)
    expected = {"train/loss": loss.detach(), "train/acc": (p.argmax(1) == labels) * 100.0}
    expected["train/center_dist"] = (s_features[-1] - centers[labels[kept]]).square().sum(1).sqrt()
    for group, rows in (("t", t.softmax(1)), ("s_select", p[kept]), ("s_else", p[dropped]), ("s_all", p)):
        expected |= {f"train/{group}_{measure}": values for measure, values in confidences(rows).items()}
    assert set(stats) == set(expected) == STATISTICS
    for name, values in expected.items():
        torch.testing.assert_close(stats[name].mean(), values.mean(), rtol=1e-4, atol=1e-4, msg=name)
        counts = {"s_else": len(dropped), "s_all": 64, "acc": 64}
        assert len(stats[name]) == counts.get(name[6:].rsplit("_", 1)[0], args.k)
    assert distiller.most_uncertain.nonzero()[:, 0].tolist() == sorted(indices[order[: args.b]].tolist())
    assert torch.equal(distiller.scores[indices].argsort(descending=True), order)


def test_between_scoring_epochs_an_image_has_its_last_score(trained_teacher):
    """Ranked by place in the data set, not in the batch; the student sees nothing but what is kept."""
    student = model_dict["resnet8"]()
    seen = []
    student.register_forward_hook(lambda _, inputs, output: seen.append(len(inputs[0])))
    teacher_model, _ = load_model(trained_teacher / "ckpt" / "best.pth")
    distiller = distiller_of(student, teacher_model, "--score-every 3", images=96)
    for epoch in range(1, 6):
        seen.clear()
        distiller.most_uncertain.zero_()
        before = distiller.scores.clone()
        means = distiller.train_epoch(epoch, NO_BAR)
        scored = epoch in (1, 4)
        assert seen == ([64, 48, 32, 32] if scored else [48, 32])
        assert ("train/s_all_entropy" in means) == scored and {"train/center_dist", "train/acc"} <= set(means)
        assert torch.equal(distiller.scores, before) != scored
        expected = torch.zeros(96, dtype=torch.uint8)
        for chosen, *_ in distiller.draw_epoch(epoch):
            expected[chosen[distiller.scores[chosen].argsort(descending=True)[:32]]] = 1
        assert torch.equal(distiller.most_uncertain, expected)


def test_what_scoring_every_second_epoch_leaves(trained_teacher, tmp_path, capsys):
    folder = distil(trained_teacher, tmp_path, "--score-every 2 --epoch 3", TINY)
    assert "_scoreevery2" in folder.name
    rows = metrics(folder)
    assert [bool(row["train/s_all_entropy"]) for row in rows] == [True, False, True]
    assert all(row["train/acc"] and row["train/t_entropy"] for row in rows)
    assert result(folder)["train_macs"] == 3 * 96 * 3 * MACS + 2 * 128 * MACS
    computation = f"computation {100 * result(folder)['computation']:.1f} % of KD's"
    assert capsys.readouterr().out.count(computation) == 2  # before training and after it


def test_holdout(trained_teacher, tmp_path, capsys):
    folder = distil(trained_teacher, tmp_path, "--holdout 100")
    assert {"test_acc_best", "test_acc_last"} <= set(result(folder))
    assert "warning: the teacher had another --holdout" in capsys.readouterr().out
    counter = np.load(folder / "counter.npy")
    assert counter.shape == (2, 640) and ((counter.sum(0) == 0).sum()) >= 100


# ------------------------------------------------------------------------------------------------- going on, repeating


def test_a_resumed_run_ends_in_the_same_bits(tmp_path, capsys):
    """A teacher in bf16 with a holdout; faults.py does so with students."""
    flags = f"{TINY} --epoch 3 --precision bf16 --holdout 100"
    whole = train(tmp_path / "whole", flags)
    with ctrl_c_after(1):
        train(tmp_path / "resumed", flags)
    assert not list((tmp_path / "resumed").glob("*/result.json"))
    resumed = train(tmp_path / "resumed", flags)
    assert f"resuming {resumed} after epoch 1" in capsys.readouterr().out
    assert not differences(outcome(resumed), outcome(whole))

    before = (resumed / "result.json").stat().st_mtime_ns
    train(tmp_path / "resumed", flags)  # a finished run prints its result and trains nothing
    assert (resumed / "result.json").stat().st_mtime_ns == before
    assert f"{resumed}: best {result(resumed)['best_acc']:.2f} %" in capsys.readouterr().out


@pytest.mark.parametrize("finished", [True, False])
def test_a_network_that_has_changed_is_another_run(tmp_path, monkeypatch, finished):
    if finished:
        train(tmp_path, TINY)
    else:
        with ctrl_c_after(1):
            train(tmp_path, TINY)

    def wider(num_classes):
        return ResNet(BasicBlock, [1, 1, 1], 16, (16, 32, 65), num_classes, "downsample", "fc")

    monkeypatch.setitem(model_dict, "resnet8", wider)
    with pytest.raises(RunError, match=r"holds a run with parameters \d+, not \d+; --fresh"):
        train(tmp_path, TINY)


def test_a_loss_whose_weight_has_changed_is_another_run(trained_teacher, tmp_path, monkeypatch):
    for weight in (10, 1000):
        monkeypatch.setitem(FEATURE_LOSSES, "cosine", (weight, lambda s, t: (s[-1] - t[-1]).square().mean()))
        if weight == 10:
            distil(trained_teacher, tmp_path, TINY, "--other-distill cosine")
    with pytest.raises(RunError, match="holds a run with feature_loss_weight 10, not 1000; --fresh"):
        distil(trained_teacher, tmp_path, TINY, "--other-distill cosine")


# ---------------------------------------------------------------------------------------------------------- teachers


def test_teacher_path_in_every_form(trained_teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(trained_teacher)
    for i, path in enumerate((f"{trained_teacher}/", ".", "ckpt/best.pth")):
        assert "_teacher_resnet8_epoch2" in distil(path, tmp_path / str(i), TINY).name


def test_foreign_teacher(trained_teacher, tmp_path):
    state = {f"module.{name}": tensor for name, tensor in weights(trained_teacher, "best").items()}
    for name, flags in (("teacher_resnet8", ""), ("found_somewhere", "--teacher-arch resnet8")):
        (tmp_path / name / "ckpt").mkdir(parents=True)
        torch.save({"model": state, "epoch": 240}, tmp_path / name / "ckpt" / "best.pth")
        folder = distil(tmp_path / name, tmp_path / f"of_{name}", "--train-limit 128", flags)
        assert "_teacher_resnet8" in folder.name
        assert result(folder)["teacher_acc"] == result(trained_teacher)["best_acc"]


def test_a_student_is_a_teacher_where_that_is_said(trained_teacher, tmp_path):
    folder = distil(trained_teacher, tmp_path / "a", TINY)
    with pytest.raises(CheckpointError, match="a distilled student; --teacher-arch resnet8 says"):
        distil(folder, tmp_path / "b", TINY)
    assert "_teacher_resnet8_v0_student_" in distil(folder, tmp_path / "b", TINY, "--teacher-arch resnet8").name


def test_a_teacher_whose_training_is_not_finished_is_told(trained_teacher, tmp_path, capsys):
    shutil.copytree(trained_teacher, tmp_path / "teacher_resnet8")
    told = "warning: the teacher's training is not finished; best.pth is of epoch"
    distil(tmp_path / "teacher_resnet8", tmp_path / "a", TINY)
    assert told not in capsys.readouterr().out
    (tmp_path / "teacher_resnet8" / "result.json").unlink()
    distil(tmp_path / "teacher_resnet8", tmp_path / "b", TINY)
    assert told in capsys.readouterr().out


def test_teachers_that_do_not_fit(trained_teacher, tmp_path):
    def saved(weights):
        path = tmp_path / "teacher_resnet8" / "ckpt" / "best.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": weights}, path)
        return path

    with pytest.raises(CheckpointError, match="holds resnet8, not --teacher-arch vgg8"):
        distil(trained_teacher, tmp_path, "--teacher-arch vgg8")
    with pytest.raises(CheckpointError, match="10 classes, but synthetic has 100"):
        distil(saved(model_dict["resnet8"](num_classes=10).state_dict()), tmp_path)
    overflowing = {**weights(trained_teacher, "best"), "fc.weight": torch.full((100, 64), 3e38)}
    with pytest.raises(RunError, match=r"best\.pth: the teacher's logits are not finite in fp32 .* try --precision"):
        distil(saved(overflowing), tmp_path)
    with pytest.raises(CheckpointError, match=r"nowhere.ckpt: no such folder.*\(see --teacher-path, --teacher-ckpt"):
        distil(tmp_path / "nowhere", tmp_path)
    assert not list(tmp_path.glob("v0_*"))


# --------------------------------------------------------------------------------------------------------- bad input


BAD_FLAGS = [
    "--epoch 0", "--epoch 1.5", "--batch-size 1", "--batch-size x", "--lr 0", "--lr -1", "--lr nan", "--lr inf",
    "--momentum 1", "--momentum -0.1", "--weight-decay -1", "--gamma 0", "--milestones 0", "--milestones 3 2",
    "--milestones 2 2", "--epoch 3 --milestones 3", "--save-interval 0", "--seed -1", "--gpu-id -2", "--gpu-id 99",
    "--train-limit 1", "--train-limit 50001", "--val-limit 0", "--val-limit 10001", "--holdout -1",
    "--holdout 49999", "--train-limit 100 --holdout 99", "--gpu-id -1 --precision fp16", "--dataset cifar10",
    "--nonsense", "--epo 3", "--gpu-id -1 --precision tf32", "--seed 100000000000000000000", "--epoch 1000000000000",
    "--gamma 1e200", "--lr 1e-300", "--arch resnet9", "--lr 1e-12 --epoch 3 --milestones 1 2 --gamma 0.1",
    "--data-root=", "--experiments=",
]  # fmt: skip
BAD_FLAGS_OF_A_STUDENT = [
    "--k 0", "--k 65", "--b 0", "--b 65", "--w -1", "--T 0", "--kd-weight -1", "--ce-weight -1", "--kd-weight 0",
    "--strategy 4", "--strategy -1", "--w inf", "--T nan", "--T 1e200", "--T 0.009", "--other-distill FitNet",
    "--student-arch resnet9", "--teacher-arch resnet9", "--batch-size 32", "--strategy 0 --score-every 2",
    "--score-every 0", "--teacher-ckpt a/b", "--teacher-ckpt *", "--teacher-path=", "--epoch 0", "--precision x",
    "--student-arch vgg8 --other-distill AT",
]  # fmt: skip


@pytest.mark.parametrize(
    "program, flags",
    [(teacher, flags) for flags in BAD_FLAGS] + [(student_v0, flags) for flags in BAD_FLAGS_OF_A_STUDENT],
)
def test_bad_flags(program, flags, trained_teacher, tmp_path, monkeypatch, capsys):
    """One line that names the last of these flags, exit code 2, and no file."""
    monkeypatch.chdir(tmp_path)
    words = ["--arch", "resnet8"] if program is teacher else ["--teacher-path", str(trained_teacher)]
    with pytest.raises(SystemExit) as error:
        program.main([*words, *flags.split()])
    line = capsys.readouterr().err
    assert error.value.code == 2 and line.count("\n") == 1 and re.findall(r"--[\w-]+", flags)[-1] in line
    assert not list(tmp_path.iterdir())


def test_missing_data_makes_no_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(CIFAR100, "url", "http://127.0.0.1:9/cifar-100-python.tar.gz")
    with pytest.raises(OSError, match="--dataset synthetic"):
        teacher.main("--arch resnet8 --gpu-id -1".split())
    assert not (tmp_path / "experiments").exists()


# ----------------------------------------------------------------------------------------------------------- elsewhere


class OutStream(list):
    """A notebook's stream, which is no file."""

    write = list.append

    def flush(self):
        pass

    def isatty(self):
        return False


def test_in_a_notebook(tmp_path, monkeypatch):
    """%run, and main() in a thread's cell, whose sys.argv is the kernel's."""
    out = OutStream()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    words = f"--arch resnet8 {QUICK} {TINY} --experiments {tmp_path}".split()
    run_main(lambda: teacher.main([*words, "--seed", "1"]))
    with ThreadPoolExecutor() as pool:
        pool.submit(teacher.main, words).result()
    commands = {json.loads(path.read_text())["command"] for path in tmp_path.glob("*/config.json")}
    assert commands == {f"teacher.py {' '.join(words)}", f"teacher.py {' '.join(words)} --seed 1"}
    assert "".join(out).count("epoch   2/2  train loss") == 2 and "\r" not in "".join(out)
