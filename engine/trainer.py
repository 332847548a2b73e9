"""What both programs train with: one epoch of a network's training."""

from argparse import Namespace
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from dataset import Data
from engine.compile import CUDAGraphed
from engine.device import Precision, to_device
from engine.flops import forward_macs
from engine.meters import Meters


class Trainer:
    """Trains a network for one epoch at a time. A program supplies draw_epoch(), step() and cost().

    model: is moved to the device that holds the data. args: the program's flags.
    """

    tag = "train/"  # of `loss` and `acc` among the step's statistics

    def __init__(self, model: nn.Module, args: Namespace, data: Data, precision: Precision):
        self.args = args
        self.data = data
        self.precision = precision
        self.macs = forward_macs(model)
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
