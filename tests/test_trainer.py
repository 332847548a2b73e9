"""engine/trainer.py and engine/fit.py: the learning rate, the optimizer, fp16's scaling, the order of epochs."""

import itertools
import re
from argparse import Namespace

import pytest
import torch
from small_runs import TINY, ctrl_c_after, distiller_of, metrics, result, train

import dataset
import engine.fit
import teacher
from engine.device import Precision
from engine.fit import final_test
from engine.meters import Evaluator
from engine.trainer import learning_rate
from models import load_model, model_dict

FP32 = Precision("fp32", "cpu")


def test_the_learning_rate_is_torch_s_multistep():
    args = Namespace(lr=0.05, gamma=0.1, milestones=[150, 180, 210])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.05)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [150, 180, 210], 0.1)
    for epoch in range(1, 241):
        assert learning_rate(args, epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), epoch
        optimizer.step()
        schedule.step()


def test_the_optimizer_is_torch_s_sgd_with_its_flags():
    """Over a milestone: with a rate that is a tensor, and momentum that begins as zeros."""
    words = "--arch resnet8 --lr 0.02 --momentum 0.8 --weight-decay 1e-2 --milestones 1 --batch-size 32".split()
    data = dataset.load("synthetic", None, torch.device("cpu"), 64, 1)
    reference, model = model_dict["resnet8"](), model_dict["resnet8"]()
    model.load_state_dict(reference.state_dict())
    trainer = teacher.TeacherTrainer(model, teacher.make_parser().parse_args(words), data, FP32)
    optimizer = torch.optim.SGD(reference.parameters(), 0.02, 0.8, weight_decay=1e-2)
    for epoch in (1, 2):
        means = trainer.train_epoch(epoch, Namespace(update=lambda n: False))
        losses = []
        for batch in data.train.draw_epoch(32, 0, epoch):
            images, labels, _ = data.train.load_batch(*batch)
            loss = torch.nn.functional.cross_entropy(reference(images), labels)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert means["train/cls_loss"] == pytest.approx(sum(losses) / 2, rel=1e-4)
        torch.testing.assert_close(model.state_dict(), reference.state_dict(), rtol=1e-3, atol=1e-5)
        optimizer.param_groups[0]["lr"] = 0.002
    for buffer, state in zip(trainer.state()["momentum"], optimizer.state.values()):
        torch.testing.assert_close(buffer, state["momentum_buffer"], rtol=1e-3, atol=1e-4)


def test_fp16_scales_its_loss(trained_teacher):
    """A step that overflows changes nothing but the scale, which a resumed run takes back."""
    teacher_model, _ = load_model(trained_teacher / "ckpt" / "best.pth")
    flags = "--lr 0.005 --batch-size 8 --k 6 --b 4"
    trainer, resumed = (distiller_of(model_dict["resnet8"](), teacher_model, flags, 24, "fp16") for _ in range(2))
    assert trainer.scaler.is_enabled()
    first, *others = trainer.draw_epoch(1)
    weights = trainer.model.fc.weight
    before = weights.clone()
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    trainer.metered_step(*first)
    assert trainer.scaler.get_scale() == 2.0**39
    assert torch.equal(weights, before) and not any(buffer.any() for buffer in trainer.momentum_buffers)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    for batch in others:
        trainer.metered_step(*batch)
    assert trainer.scaler.get_scale() == 2.0**11
    assert not torch.equal(weights, before) and weights.isfinite().all()

    resumed.load_state(trainer.state())
    assert resumed.scaler.state_dict() == trainer.scaler.state_dict()
    for ours, theirs in zip(resumed.momentum_buffers, trainer.momentum_buffers):
        assert torch.equal(ours, theirs) and ours.any()


def test_an_epoch_is_a_row_and_a_line(tmp_path, monkeypatch, capsys):
    """On a clock that moves by a second whenever it is read, four times an epoch; the remaining time counts those of
    epochs that were trained here."""
    clock = itertools.count()
    monkeypatch.setattr(engine.fit, "time", Namespace(monotonic=lambda: next(clock)))
    with ctrl_c_after(1):
        train(tmp_path, TINY, "--epoch 4")
    folder = train(tmp_path, TINY, "--epoch 4")
    rows = metrics(folder)
    assert list(rows[0]) == [
        *("epoch", "train/cls_loss", "train/cls_acc", "val/cls_loss", "val/cls_acc"),
        *("cost/teacher_queries", "cost/train_macs", "cost/train_macs_usual", "lr", "train_seconds", "val_seconds"),
    ]
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.05, 0.005, 0.005, 0.005])
    assert result(folder)["train_seconds"] == 4 and result(folder)["images_per_second"] == 128
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    for row, line, seconds in zip(rows[1:], lines, (8, 4, 0), strict=True):
        expected = f"train loss {float(row['train/cls_loss']):.3f} .* val loss {float(row['val/cls_loss']):.3f} acc"
        assert re.match(rf"epoch +{row['epoch']}/4  {expected}", line)
        assert line.endswith(f" 128 img/s  eta 0:00:{seconds:02d}")


def test_the_best_weights_are_tested_as_such(trained_teacher):
    split = dataset.load("synthetic", None, torch.device("cpu"), 10, 200).val
    best, _ = load_model(trained_teacher / "ckpt" / "best.pth")
    last = model_dict["resnet8"]()
    run = Namespace(checkpoint=lambda name: trained_teacher / "ckpt" / f"{name}.pth")
    expected = {
        "test_acc_best": Evaluator(best, split, FP32)()[1],
        "test_acc_last": Evaluator(last, split, FP32)()[1],
    }
    assert expected["test_acc_best"] != expected["test_acc_last"]
    trainer = Namespace(model=last, data=Namespace(test=split), precision=FP32)
    assert final_test(run, trainer) == expected
    trainer.data.test = None
    assert final_test(run, trainer) == {}
