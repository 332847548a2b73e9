"""The training of both programs: one epoch (Trainer), and the order of epochs (fit)."""

import math
import sys
import time
from argparse import Namespace
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from dataset import Data
from engine.compile import CUDAGraphed
from engine.device import Precision, peak_memory, to_device
from engine.meters import Evaluator, Meters
from engine.run import Run
from models import read_checkpoint


class Trainer:
    """Trains a network for one epoch at a time. A program supplies draw_epoch(), step() and cost().

    model: is moved to the device that holds the data. args: the program's flags.
    """

    tag = "train/"  # of `loss` and `acc` among the step's statistics

    def __init__(self, model: nn.Module, args: Namespace, data: Data, precision: Precision):
        self.args = args
        self.data = data
        self.precision = precision
        device = data.train.labels.device
        self.model = to_device(model, device, precision)
        self.learning_rate = torch.tensor(args.lr, device=device)  # a tensor, so that a recorded step reads it anew
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), self.learning_rate, args.momentum, weight_decay=args.weight_decay, fused=True
        )
        # Made here, so that resuming has something to fill, and as torch leaves them unset where the first step of
        # fp16 overflows. With zeros the first step is the same as without.
        self.momentum_buffers = [torch.zeros_like(weights) for weights in self.model.parameters()]
        for weights, buffer in zip(self.model.parameters(), self.momentum_buffers):
            self.optimizer.state[weights]["momentum_buffer"] = buffer
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.name == "fp16")
        self.meters = Meters(device)
        self.graphed_step = CUDAGraphed(self.metered_step, args.batch_size)

    # ------------------------------------------------------------------------------------------ supplied by a program

    def draw_epoch(self, epoch: int) -> list[tuple[torch.Tensor, ...]]:
        """The epoch's randomness: for each step the tensors that step() takes."""
        raise NotImplementedError

    def step(self, *batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Train on a batch, under the in-place contract of engine.compile.

        Returns {name: (m,) tensor, one value a sample}, `loss` and `acc` (with the tag) among them.
        """
        raise NotImplementedError

    def cost(self, epochs: int) -> dict[str, float]:
        """What so many epochs cost: see flops.cost_so_far."""
        raise NotImplementedError

    # ---------------------------------------------------------------------------------------------- may be extended

    def end_epoch(self, centers: torch.Tensor) -> None:
        """Called after validation, which gave the class centers (see Evaluator)."""

    def state(self) -> dict[str, Any]:
        """What resuming needs besides the weights."""
        return {"momentum": [buffer.cpu() for buffer in self.momentum_buffers], "scaler": self.scaler.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what state() gave."""
        for buffer, saved in zip(self.momentum_buffers, state["momentum"]):
            buffer.copy_(saved)
        self.scaler.load_state_dict(state["scaler"])

    def files(self) -> dict[str, bytes]:
        """{name: content} of what the run's folder holds besides the usual files."""
        return {}

    # ----------------------------------------------------------------------------------------------------- one epoch

    def train_epoch(self, epoch: int, bar: tqdm) -> dict[str, float]:
        """Train for an epoch, numbered from 1. Returns the mean of each of the step's statistics."""
        self.model.train()
        self.learning_rate.fill_(learning_rate(self.args, epoch))
        self.meters.reset()
        for batch in self.draw_epoch(epoch):
            self.graphed_step(*batch)
            if bar.update(len(batch[0])):  # the bar was redrawn; this is rare, so waiting for the device is fine
                accuracy = self.meters.means()[f"{self.tag}acc"]
                bar.set_postfix_str(f"epoch {epoch}/{self.args.epoch}, train acc {accuracy:.1f} %", refresh=False)
        return self.meters.means()

    def metered_step(self, *batch: torch.Tensor) -> None:
        """A step, its statistics added to the meters."""
        self.meters.add(self.step(*batch))

    def update(self, loss: torch.Tensor) -> None:
        """A step of the optimizer; with fp16 of the scaled loss, or none where that overflows."""
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


def learning_rate(args: Namespace, epoch: int) -> float:
    """The rate in an epoch, numbered from 1: lr times gamma for every milestone that has passed."""
    return args.lr * args.gamma ** sum(epoch > milestone for milestone in args.milestones)


def fit(run: Run, trainer: Trainer, **result: Any) -> None:
    """Train until --epoch from wherever the run stands, and write its result.

    result: entries of result.json besides the usual ones. Raises RunError where training diverges.
    """
    args, data = trainer.args, trainer.data
    images = len(data.train)
    evaluate = Evaluator(trainer.model, data.val, trainer.precision)
    with run:
        run.restore(trainer)
        first = run.epoch + 1
        start = time.monotonic()
        with progress_bar(args.epoch * images, run.epoch * images) as bar:
            for epoch in range(first, args.epoch + 1):
                begin = time.monotonic()
                means = trainer.train_epoch(epoch, bar)
                end = time.monotonic()
                val_loss, val_acc, centers = evaluate()
                trainer.end_epoch(centers)
                row = {
                    **{name: mean for name, mean in means.items() if not math.isnan(mean)},  # no centers in epoch 1
                    "val/cls_loss": val_loss,
                    "val/cls_acc": val_acc,
                    **{f"cost/{name}": value for name, value in trainer.cost(epoch).items()},
                    "lr": learning_rate(args, epoch),
                    "train_seconds": end - begin,
                    "val_seconds": time.monotonic() - end,
                }
                run.end_epoch(trainer, row)
                seconds_left = (time.monotonic() - start) / (epoch - first + 1) * (args.epoch - epoch)
                bar.write(
                    f"epoch {epoch:3d}/{args.epoch}  "
                    f"train loss {row[f'{trainer.tag}loss']:.3f} acc {row[f'{trainer.tag}acc']:5.2f} %  "
                    f"val loss {val_loss:.3f} acc {val_acc:5.2f} % (best {run.best['val/cls_acc']:.2f})  "
                    f"{images / row['train_seconds']:.0f} img/s  eta {format_duration(seconds_left)}",
                    file=sys.stdout,
                )
        result |= {**final_test(run, trainer), "peak_memory_bytes": peak_memory(data.train.labels.device)}
        run.finish(images, **result)
    run.summarize()


def progress_bar(total: int, done: int) -> tqdm:
    """A bar over the images of a run, with rate and remaining time; nothing where the output is not a terminal."""
    return tqdm(
        total=total,
        initial=done,
        unit="img",
        unit_scale=True,
        disable=not sys.stderr.isatty(),
        leave=False,
        dynamic_ncols=True,
        smoothing=0.02,
        mininterval=0.5,
    )


def final_test(run: Run, trainer: Trainer) -> dict[str, float]:
    """With a holdout the one look at the test images: {"test_acc_best": ..., "test_acc_last": ...}, else nothing.

    The network holds the last weights before, the best ones after.
    """
    if trainer.data.test is None:
        return {}
    evaluate = Evaluator(trainer.model, trainer.data.test, trainer.precision)
    _, last, _ = evaluate()
    trainer.model.load_state_dict(read_checkpoint(run.checkpoint("best"))["state_dict"])
    _, best, _ = evaluate()
    return {"test_acc_best": best, "test_acc_last": last}


def format_duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
