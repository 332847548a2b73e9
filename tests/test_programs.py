"""The two programs end to end, on synthetic data."""

import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import QUICK, ROOT
from faults import scalars
from torchvision.datasets import CIFAR100

import dataset
import student_v0
import teacher
from engine.flops import forward_macs
from engine.meters import Evaluator, Meters
from engine.trainer import Progress, TrainStep, final_test
from losses import attention_transfer, similarity_preserving
from models import load_model, model_dict, read_checkpoint

KD = "--strategy 0 --k 64 --b 64 --w 1000"
STATISTICS = {
    f"train/{group}_{measure}"
    for group in ("s_select", "s_else", "s_all", "t")
    for measure in ("confidence", "margin", "entropy")
} | {"train/acc", "train/loss", "train/center_dist"}  # fmt: skip
COST = ("teacher_queries", "train_macs", "train_macs_usual", "computation", "computation_usual")


def distil(trained_teacher, experiments, *flags, quick=QUICK):
    """Run student_v0.py in this process; returns the run's folder."""
    before = set(experiments.glob("v0_*"))
    arguments = ["--teacher-path", str(trained_teacher), "--student-arch", "resnet8", "--experiments", str(experiments)]
    student_v0.main([*arguments, *quick.split(), *(word for flag in flags for word in flag.split())])
    (folder,) = set(experiments.glob("v0_*")) - before
    return folder


def read(folder):
    with (folder / "metrics.csv").open() as f:
        metrics = list(csv.DictReader(f))
    return json.loads((folder / "result.json").read_text()), metrics


# -------------------------------------------------------------------------------------------------------- learning


def test_learning_happens(tmp_path, capsys):
    """Chance is 1 %, with a standard error of 0.3 points on 1000 images; 8 % is more than twenty of those above.
    (Measured: teacher 36 %, UNIX 13 %, KD 17 %, UNIX with labels alone 28 %.)"""
    quick = "--dataset synthetic --train-limit 3000 --val-limit 1000 --epoch 3 --milestones 2 --gpu-id -1"
    teacher.main(["--arch", "resnet8", *quick.split(), "--experiments", str(tmp_path)])
    (folder,) = tmp_path.iterdir()
    teacher_result, metrics = read(folder)
    assert teacher_result["best_acc"] > 8
    assert [float(row["lr"]) for row in metrics] == pytest.approx([0.05, 0.05, 0.005])
    last = torch.load(folder / "ckpt" / "last.pth", weights_only=True)
    group = last["optimizer"]["param_groups"][0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (pytest.approx(0.005), 0.9, 5e-4)
    for flags in ((), (KD,), ("--kd-weight 0 --ce-weight 1",)):
        result, metrics = read(distil(folder, tmp_path, *flags, quick=quick))
        assert result["best_acc"] > 8 and result["last_acc"] > 8
        assert result["teacher_acc"] == pytest.approx(teacher_result["best_acc"], abs=0.2)  # rounding of bf16
        assert float(metrics[0]["train/loss"]) > float(metrics[-1]["train/loss"])
    assert f"{teacher_result['best_acc']:.2f} % on the validation images" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------- what is written


def test_teacher_files(trained_teacher):
    assert trained_teacher.name == (
        "teacher_resnet8_epoch2_milestones1_datasetsynthetic_trainlimit640_vallimit200_precisionfp32"
    )
    result, metrics = read(trained_teacher)
    accuracies = [float(row["val/cls_acc"]) for row in metrics]
    assert result["best_acc"] == max(accuracies) and result["last_acc"] == accuracies[-1] and result["epochs"] == 2
    assert result["best_epoch"] == accuracies.index(max(accuracies)) + 1
    events = scalars(trained_teacher)
    cost = {"cost/teacher_queries", "cost/train_macs", "cost/train_macs_usual"}
    assert set(events) == {"train/cls_loss", "train/cls_acc", "val/cls_loss", "val/cls_acc"} | cost
    macs = forward_macs(model_dict["resnet8"]())
    assert (result["teacher_queries"], result["train_macs"]) == (0, 2 * 640 * 2 * macs)
    assert result["train_macs_usual"] == 2 * 640 * 3 * macs and "computation" not in result
    for tag, values in events.items():
        assert [step for step, _ in values] == [1, 2]
        assert [value for _, value in values] == pytest.approx([float(row[tag]) for row in metrics], rel=1e-5)
    names = sorted(path.name for path in (trained_teacher / "ckpt").iterdir())
    assert names == ["001.pth", "002.pth", "best.pth", "last.pth"]
    assert load_model(trained_teacher / "ckpt" / "best.pth")[1]["arch"] == "resnet8"
    config = json.loads((trained_teacher / "config.json").read_text())
    assert config["settings"]["lr"] == 0.05 and config["precision"] == "fp32"
    assert config["versions"]["torch"] == torch.__version__


def test_student_files_of_unix(trained_teacher, tmp_path):
    folder = distil(trained_teacher, tmp_path, "--train-limit 528")  # 8 batches of 64 and one of 16
    assert re.fullmatch(
        r"v0_student_resnet8_teacher_resnet8_epoch2_.*-best_strategy3_k48_b32_w10_seed0_epoch2_.*", folder.name
    )
    result, metrics = read(folder)
    events = scalars(folder)
    assert set(events) == STATISTICS | {"val/cls_loss", "val/cls_acc"} | {f"cost/{name}" for name in COST}
    # no validation pass comes before the first epoch, so there are no class centers in it
    assert [step for step, _ in events["train/center_dist"]] == [2] and metrics[0]["train/center_dist"] == ""
    assert all([step for step, _ in events[tag]] == [1, 2] for tag in events if tag != "train/center_dist")

    assert result["teacher_queries"] == 2 * (8 * 48 + 16)
    fs = ft = forward_macs(model_dict["resnet8"]())
    for ending, c in (("", 1), ("_usual", 2)):
        spent, kd = 400 * (ft + (1 + c) * fs) + 528 * fs, 528 * (ft + (1 + c) * fs)  # kept, and scored
        assert result[f"train_macs{ending}"] == 2 * spent and result[f"computation{ending}"] == pytest.approx(
            spent / kd
        )
        assert [value for _, value in events[f"cost/train_macs{ending}"]] == pytest.approx([spent, 2 * spent])
    assert [value for _, value in events["cost/teacher_queries"]] == [400, 800]
    assert 1e8 < result["peak_memory_bytes"] < 1e11 and result["startup_seconds"] > 0
    counter = np.load(folder / "counter.npy")
    assert counter.shape == (2, 528) and counter.max() == 1
    assert counter.sum(1).tolist() == [8 * 32 + 16] * 2 and (counter[0] != counter[1]).any()

    last = {name: float(value) for name, value in metrics[-1].items()}
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
    assert config["teacher_arch"] == "resnet8" and config["teacher_sha256"] == hashlib.sha256(best).hexdigest()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert not head or config["versions"]["commit"].startswith(head)
    group = torch.load(folder / "ckpt" / "student_last.pth", weights_only=True)["optimizer"]["param_groups"][0]
    assert (group["momentum"], group["weight_decay"]) == (0.9, 5e-4)
    for entry in ("best_acc", "best_epoch", "last_acc", "epochs", "teacher_acc", "train_seconds", "images_per_second"):
        assert entry in result


def test_ordinary_distillation_costs_what_it_costs(trained_teacher, tmp_path, monkeypatch):
    """The student sees each image once a step, the teacher too; statistics that need a scoring pass are left out."""
    forwards = {"student": 0, "teacher": 0}

    class Counting(student_v0.Distiller):
        def __init__(self, student, teacher, *rest):
            super().__init__(student, teacher, *rest)
            for name, network in (("student", student), ("teacher", teacher)):
                network.register_forward_hook(lambda *_, name=name: forwards.update({name: forwards[name] + 1}))

    monkeypatch.setattr(student_v0, "Distiller", Counting)
    folder = distil(trained_teacher, tmp_path, KD)
    evaluations = 2  # one batch of 200 an epoch
    assert forwards == {"student": 2 * 10 + evaluations, "teacher": 2 * 10}
    result, _ = read(folder)
    assert result["teacher_queries"] == 2 * 640 and result["computation"] == result["computation_usual"] == 1
    assert STATISTICS - set(scalars(folder)) == {f"train/s_else_{m}" for m in ("confidence", "margin", "entropy")}
    assert not (folder / "counter.npy").exists()  # nothing was uncertain to anyone
    saved = read_checkpoint(folder / "ckpt" / "student_last.pth")["trainer"]
    assert saved["counter"].numel() == 0

    folder = distil(trained_teacher, tmp_path, "--strategy 0 --train-limit 656")  # random 48 of 64: not known who not
    left_out = {f"train/{group}_{m}" for group in ("s_else", "s_all") for m in ("confidence", "margin", "entropy")}
    assert STATISTICS - set(scalars(folder)) == left_out and read(folder)[0]["teacher_queries"] == 2 * 496


def distiller_of(student, teacher_model, *flags, images=64, cast=nullcontext):
    """A Distiller of so many synthetic images on the CPU."""
    args = student_v0.make_parser().parse_args([word for flag in flags for word in flag.split()])
    data = dataset.load("synthetic", None, "cpu", images, 1)
    return student_v0.Distiller(student.train(), teacher_model, args, data, cast)


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
    (batch,) = distiller.batches(1)
    stats = distiller.step(*batch)
    images, labels, indices = distiller.data.train.batch(*batch[:3])
    lam, partner = batch[3:]

    # score, rank
    reference.train()
    with torch.no_grad():
        raw_features, raw_logits = reference(images, is_feat=True)
    p = raw_logits.softmax(1)
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
    expected = {"train/loss": loss.detach(), "train/acc": (raw_logits.argmax(1) == labels) * 100.0}
    expected["train/center_dist"] = (raw_features[-1][kept] - centers[labels[kept]]).square().sum(1).sqrt()
    for group, rows in (("t", t.softmax(1)), ("s_select", p[kept]), ("s_else", p[dropped]), ("s_all", p)):
        expected |= {f"train/{group}_{measure}": values for measure, values in confidences(rows).items()}
    assert set(stats) == set(expected) == STATISTICS
    for name, values in expected.items():
        torch.testing.assert_close(stats[name].mean(), values.mean(), rtol=1e-4, atol=1e-4, msg=name)
        counts = {"s_else": len(dropped), "s_all": 64, "acc": 64}
        assert len(stats[name]) == counts.get(name[6:].rsplit("_", 1)[0], args.k)
    assert distiller.most_uncertain.nonzero()[:, 0].tolist() == sorted(indices[order[: args.b]].tolist())


def test_between_scoring_epochs_an_image_has_its_last_score(trained_teacher):
    """Ranked by place in the data set, not in the batch; the student sees nothing but what is kept."""
    teacher_model, _ = load_model(trained_teacher / "ckpt" / "best.pth")
    student, seen = model_dict["resnet8"](), []
    student.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    distiller = distiller_of(student, teacher_model, "--score-every 3", images=96)
    scores = torch.full((96,), torch.nan)
    for epoch in range(1, 6):
        distiller.begin_epoch(epoch)
        for batch in distiller.batches(epoch):
            images, _, index = distiller.data.train.batch(*batch[:3])
            distiller.most_uncertain.zero_()
            seen.clear()
            stats = distiller.step(*batch)
            if epoch in (1, 4):
                raw, (_, logits) = seen[0]
                assert torch.equal(raw, images)
                scores[index] = torch.distributions.Categorical(logits=logits).entropy()
            assert len(seen) == 1 + (epoch in (1, 4)) and len(seen[-1][0]) == min(48, len(images))
            assert ("train/s_all_entropy" in stats, "train/center_dist" in stats) == ((epoch in (1, 4)),) * 2
            most = scores[index].argsort(descending=True)[:32]
            assert distiller.most_uncertain.nonzero()[:, 0].tolist() == sorted(index[most].tolist())
    assert not torch.equal(scores, torch.full((96,), torch.nan)) and distiller.scores.isfinite().all()


def test_what_scoring_every_second_epoch_leaves(trained_teacher, tmp_path, capsys):
    folder = distil(trained_teacher, tmp_path, "--score-every 2 --epoch 3")
    result, metrics = read(folder)
    assert "_scoreevery2" in folder.name
    assert [bool(row["train/s_all_entropy"]) for row in metrics] == [True, False, True]
    assert all(row["train/acc"] and row["train/t_entropy"] for row in metrics)
    fs = ft = forward_macs(model_dict["resnet8"]())
    assert result["train_macs"] == 3 * 480 * (ft + 2 * fs) + 2 * 640 * fs
    computation = f"computation {100 * result['computation']:.1f} % of KD's"
    assert capsys.readouterr().out.count(computation) == 2  # before training and after it


@pytest.mark.parametrize("flags", ["", KD, "--other-distill AT", "--other-distill SP", "--ce-weight 1"])
def test_a_step_never_asks_the_device_for_a_value(trained_teacher, flags):
    """Tensors of the meta device have no values: anything that would read one on the host raises."""
    teacher_model, _ = load_model(trained_teacher / "ckpt" / "best.pth")
    distiller = distiller_of(model_dict["resnet8"](), teacher_model, flags)
    (batch,) = distiller.batches(1)
    distiller.student = distiller.ddp_student = distiller.model.to("meta")
    distiller.teacher = teacher_model.to("meta")
    distiller.optimizer = torch.optim.SGD(distiller.model.parameters(), 0.05)  # the fused one knows no such device
    for owner, names in (
        (distiller, ("centers", "most_uncertain", "scores")),
        (distiller.data.train, vars(distiller.data.train)),
    ):
        for name in names:
            setattr(owner, name, getattr(owner, name).to("meta"))
    step = TrainStep(distiller)
    step.run(*(tensor.to("meta") for tensor in batch))
    assert step.meters.buffers and all(buffer.device.type == "meta" for buffer in step.meters.buffers.values())


def test_a_teacher_s_step_and_validation_never_ask_either():
    meta, data = torch.device("meta"), dataset.load("synthetic", None, "cpu", 64, 64)
    args = teacher.make_parser().parse_args(["--arch", "resnet8"])
    trainer = teacher.TeacherTrainer(model_dict["resnet8"]().train(), args, data, nullcontext)
    evaluator = Evaluator(trainer.model, data.val, nullcontext)
    evaluator.meters = Meters(meta)
    (batch,) = trainer.batches(1)
    for owner in (data.train, evaluator.split, evaluator):
        for name, value in vars(owner).items():
            if torch.is_tensor(value):
                setattr(owner, name, value.to("meta"))
    trainer.ddp_model = evaluator.model = trainer.model.to("meta")
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), 0.05)
    step = TrainStep(trainer)
    step.run(*(tensor.to("meta") for tensor in batch))
    with torch.no_grad():
        evaluator.add_batch(evaluator.split.images, evaluator.split.labels)
    buffers = {**step.meters.buffers, **evaluator.meters.buffers}
    assert len(buffers) == 4 and all(buffer.device.type == "meta" for buffer in buffers.values())


def test_the_best_weights_are_tested_as_such(trained_teacher, tmp_path):
    split = dataset.load("synthetic", None, "cpu", 10, 200).val
    best, last = load_model(trained_teacher / "ckpt" / "best.pth")[0], model_dict["resnet8"]()

    class Finished:
        def checkpoint(self, name):
            return trained_teacher / "ckpt" / f"{name}.pth"

    def trainer(test):
        return Namespace(model=last, data=Namespace(test=test), autocast=nullcontext)

    expected = {
        "test_acc_best": Evaluator(best, split, nullcontext)()[1],
        "test_acc_last": Evaluator(last, split, nullcontext)()[1],
    }
    assert expected["test_acc_best"] != expected["test_acc_last"]
    assert final_test(Finished(), trainer(split)) == expected and final_test(None, trainer(None)) == {}


def test_holdout(trained_teacher, tmp_path, capsys):
    folder = distil(trained_teacher, tmp_path, "--holdout 100")
    result, _ = read(folder)
    assert {"test_acc_best", "test_acc_last"} <= set(result)
    assert "warning: the teacher was not trained with the same --holdout" in capsys.readouterr().out
    counter = np.load(folder / "counter.npy")
    assert counter.shape == (2, 640) and ((counter.sum(0) == 0).sum()) >= 100


# ------------------------------------------------------------------------------------------------- going on, repeating


def weights(folder, name):
    return torch.load(folder / "ckpt" / name, weights_only=True)["state_dict"]


def test_repeating_and_resuming_end_in_the_same_bits(trained_teacher, tmp_path, monkeypatch, capsys):
    a, b = tmp_path / "a", tmp_path / "b"
    whole = distil(trained_teacher, a, "--epoch 3")
    saved = student_v0.Run.end_epoch

    def stop_after_two(self, *args, **kwargs):
        saved(self, *args, **kwargs)
        if len(self.rows) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(student_v0.Run, "end_epoch", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        distil(trained_teacher, b, "--epoch 3")
    monkeypatch.undo()
    (folder,) = b.iterdir()
    assert not (folder / "result.json").exists()
    arguments = f"--teacher-path {trained_teacher} --student-arch resnet8 --experiments {b} {QUICK} --epoch 3".split()
    student_v0.main(arguments)
    assert "resuming" in capsys.readouterr().out
    for name in ("student_last.pth", "student_best.pth"):
        ours, theirs = weights(folder, name), weights(whole, name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert (folder / "counter.npy").read_bytes() == (whole / "counter.npy").read_bytes()
    for ours, theirs in zip(read(folder)[1], read(whole)[1]):
        assert {k: v for k, v in ours.items() if "seconds" not in k} == {
            k: v for k, v in theirs.items() if "seconds" not in k
        }
    before = (folder / "result.json").stat().st_mtime_ns
    student_v0.main(arguments)  # a finished run prints its result and trains nothing
    assert (folder / "result.json").stat().st_mtime_ns == before and "best" in capsys.readouterr().out


def test_a_teacher_in_bf16_resumes_to_the_same_bits(tmp_path, monkeypatch):
    flags = f"--arch resnet8 {QUICK} --epoch 3 --precision bf16 --holdout 100 --experiments".split()
    teacher.main([*flags, str(tmp_path / "a")])
    saved = teacher.Run.end_epoch

    def stop_after_one(self, *args, **kwargs):
        saved(self, *args, **kwargs)
        if len(self.rows) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(teacher.Run, "end_epoch", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        teacher.main([*flags, str(tmp_path / "b")])
    monkeypatch.undo()
    teacher.main([*flags, str(tmp_path / "b")])
    (whole,), (resumed,) = ((tmp_path / name).iterdir() for name in "ab")
    for name in ("last.pth", "best.pth"):
        ours, theirs = weights(resumed, name), weights(whole, name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert read(resumed)[0]["test_acc_best"] == read(whole)[0]["test_acc_best"]


def test_seeds_differ(trained_teacher, tmp_path):
    one = distil(trained_teacher, tmp_path, "--epoch 1 --milestones")
    other = distil(trained_teacher, tmp_path, "--epoch 1 --milestones --seed 1")
    assert not torch.equal(
        weights(one, "student_last.pth")["fc.weight"], weights(other, "student_last.pth")["fc.weight"]
    )


# ---------------------------------------------------------------------------------------------------------- teachers


def test_teacher_path_in_every_form(trained_teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(trained_teacher)
    for i, path in enumerate((f"{trained_teacher}/", ".", f"../{trained_teacher.name}")):
        folder = distil(path, tmp_path / str(i), "--epoch 1 --milestones --train-limit 64")
        assert "teacher_resnet8_epoch2" in folder.name


@pytest.mark.parametrize("key, prefix", [("model", ""), ("model", "module."), ("state_dict", "module.")])
def test_foreign_teacher(trained_teacher, tmp_path, key, prefix):
    state = {prefix + name: tensor for name, tensor in weights(trained_teacher, "best.pth").items()}
    for name, flags in (("teacher_resnet8", ""), ("found_somewhere", "--teacher-arch resnet8")):
        (tmp_path / name / "ckpt").mkdir(parents=True)
        torch.save({key: state, "epoch": 240}, tmp_path / name / "ckpt" / "best.pth")
        folder = distil(tmp_path / name, tmp_path, f"--epoch 1 --milestones --train-limit 64 {flags}")
        assert "teacher_resnet8" in folder.name
        assert read(folder)[0]["teacher_acc"] == read(trained_teacher)[0]["best_acc"]


# --------------------------------------------------------------------------------------------------------- bad input


def refused(main, flags, capsys, code=2):
    """main(flags) exits with this code; returns what it said."""
    with pytest.raises(SystemExit) as exit:
        main(flags.split())
    assert exit.value.code == code
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


SHARED_BAD_FLAGS = [
    "--epoch 0", "--epoch 1.5", "--batch-size 1", "--batch-size x", "--lr 0", "--lr -1", "--lr nan", "--lr inf",
    "--momentum 1", "--momentum -0.1", "--weight-decay -1", "--gamma 0", "--milestones 0", "--milestones 3 2",
    "--milestones 2 2", "--epoch 3 --milestones 3", "--save-interval 0", "--seed -1", "--gpu-id -2", "--gpu-id 99",
    "--train-limit 1", "--train-limit 50001", "--val-limit 0", "--val-limit 10001", "--holdout -1",
    "--holdout 49999", "--train-limit 100 --holdout 99", "--precision fp16", "--dataset cifar10", "--nonsense",
    "--epo 3", "--precision tf32", "--compile maybe", "--sync-bn",
    "--seed 100000000000000000000", "--epoch 1000000000000",
]  # fmt: skip
STUDENT_BAD_FLAGS = [
    "--k 0", "--k 65", "--b 0", "--b 65", "--w -1", "--T 0", "--kd-weight -1", "--ce-weight -1", "--kd-weight 0",
    "--strategy 4", "--strategy -1",
    "--w inf", "--T nan", "--other-distill FitNet", "--student-arch resnet9", "--teacher-arch resnet9",
    "--batch-size 32", "--strategy 0 --score-every 2", "--score-every 0", "--teacher-ckpt a/b", "--teacher-ckpt *",
    "--T 0.009",
]  # fmt: skip


@pytest.mark.parametrize("flags", SHARED_BAD_FLAGS)
def test_bad_flags_of_the_teacher(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flag = re.findall(r"--[\w-]+", flags)[-1]
    assert flag in refused(teacher.main, f"--arch resnet8 {flags}", capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", SHARED_BAD_FLAGS + STUDENT_BAD_FLAGS)
def test_bad_flags_of_the_student(flags, trained_teacher, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flag = re.findall(r"--[\w-]+", flags)[-1]
    message = refused(student_v0.main, f"--teacher-path {trained_teacher} --student-arch resnet8 {flags}", capsys)
    assert flag in message
    assert not list(tmp_path.iterdir())


def test_unknown_and_missing_network(capsys):
    assert "resnet9" in refused(teacher.main, "--arch resnet9", capsys)
    assert "--arch" in refused(teacher.main, "", capsys)


def test_features_that_cannot_be_paired(trained_teacher, tmp_path, capsys):
    flags = f"--teacher-path {trained_teacher} --student-arch vgg8 --other-distill AT --experiments {tmp_path} {QUICK}"
    assert "4 stages" in refused(student_v0.main, flags, capsys)
    assert not list(tmp_path.iterdir())


def test_contradicting_teacher_arch(trained_teacher, tmp_path):
    flags = f"--teacher-path {trained_teacher} --teacher-arch vgg8 --experiments {tmp_path} {QUICK}"
    with pytest.raises(student_v0.CheckpointError, match="holds resnet8"):
        student_v0.main(flags.split())


def program(name, *flags, cwd):
    return subprocess.run(
        [sys.executable, ROOT / name, *(word for flag in flags for word in str(flag).split())],
        cwd=cwd, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def world_error(result, *words):
    """The program ended with code 1 and one line on stderr, no traceback, holding these words."""
    assert result.returncode == 1, result.stderr
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
    assert all(word in result.stderr for word in words), result.stderr


def test_errors_of_the_world_are_one_line(trained_teacher, tmp_path):
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    world_error(program("student_v0.py", "--teacher-path teacher_none", QUICK, cwd=cwd), "teacher_none/ckpt")

    (tmp_path / "teacher_vgg8" / "ckpt").mkdir(parents=True)
    foreign = tmp_path / "teacher_vgg8" / "ckpt" / "best.pth"
    torch.save({"model": weights(trained_teacher, "best.pth")}, foreign)
    world_error(
        program("student_v0.py", "--teacher-path", foreign.parent.parent, QUICK, cwd=cwd), "not the weights of vgg8"
    )

    torch.save({"model": model_dict["vgg8"](num_classes=10).state_dict()}, foreign)
    world_error(program("student_v0.py", "--teacher-path", foreign.parent.parent, QUICK, cwd=cwd), "10 classes")
    assert not list(cwd.iterdir())

    (cwd / "experiments").write_text("a file, not a folder")
    world_error(program("teacher.py", "--arch resnet8", QUICK, cwd=cwd), "experiments")


def test_a_student_is_a_teacher_where_that_is_said(trained_teacher, tmp_path):
    short = "--epoch 1 --milestones --train-limit 64"
    folder = distil(trained_teacher, tmp_path, short)
    with pytest.raises(student_v0.CheckpointError, match="a distilled student; --teacher-arch resnet8 says"):
        distil(folder, tmp_path, short)
    assert "_teacher_resnet8_v0_student_" in distil(folder, tmp_path, short, "--teacher-arch resnet8").name


def test_in_a_notebook_s_thread(tmp_path):
    flags = f"--arch resnet8 {QUICK} --epoch 1 --milestones --train-limit 64 --experiments {tmp_path}".split()
    with ThreadPoolExecutor() as pool:
        pool.submit(teacher.main, flags).result()
    assert list(tmp_path.glob("*/result.json"))


def test_missing_data_writes_nothing(tmp_path, monkeypatch, trained_teacher):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(CIFAR100, "url", "http://127.0.0.1:9/cifar-100-python.tar.gz")
    for main, flags in (
        (teacher.main, ["--arch", "resnet8"]),
        (student_v0.main, ["--teacher-path", str(trained_teacher)]),
    ):
        with pytest.raises(OSError, match="--dataset synthetic"):
            main([*flags, "--gpu-id", "-1"])
        assert not list(tmp_path.iterdir())


def test_output_elsewhere_than_a_terminal_is_line_wise(tmp_path):
    result = program("teacher.py", "--arch resnet8", QUICK, "--experiments x --epoch 1 --milestones", cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert "\r" not in result.stdout and re.search(r"epoch +1/1 .* val loss .* img/s +eta 0:00:00\n", result.stdout)
    shutil.rmtree(tmp_path / "x")


def test_remaining_time_of_a_run_resumed_within_an_epoch(capsys):
    """Stopped after the 100 steps of epoch 3: that epoch's seconds count whole, though none is spent here."""
    progress = Progress("train/", Namespace(epoch=10, batch_size=64), 6400, done=2, done_steps=100)
    row = {"train/loss": 1, "train/acc": 1, "val/cls_loss": 1, "val/cls_acc": 1, "val_seconds": 10}
    for train_seconds, eta in ((90, "0:11:40"), (40, "0:07:30")):
        progress.epoch(row | {"train_seconds": train_seconds}, best_acc=1)
        assert capsys.readouterr().out.endswith(f"eta {eta}\n")
