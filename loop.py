"""The epoch loop of both programs: train, validate, save; stop at a signal, and go on where a run stopped."""

import math
import signal
import sys
import time

import torch

import processes
from evaluation import Evaluator, Meters
from models import read_checkpoint
from run import RunError
from speed import Replay
from utils import Progress, learning_rate, process_seconds, say


class Learner:
    """What fit() trains: a network, its optimizer and the training step."""

    tag = "train/"  # before `loss` and `acc` in the names of the step's statistics

    def __init__(self, model, args):
        self.model, self.args = model, args
        self.optimizer = torch.optim.SGD(
            model.parameters(), args.lr, args.momentum, weight_decay=args.weight_decay, fused=True
        )

    def draw(self, epoch):
        """An epoch's randomness: a list, for each step the tensors that step() takes."""
        raise NotImplementedError

    def step(self, *drawn):
        """Train on a batch. Returns {name: (m,) tensor of a statistic of m samples}, `loss` and `acc` among them.

        It has to be a function for speed.Replay: nothing is asked of the device, and what stays from step to step
        stays at its place in memory.
        """
        raise NotImplementedError

    def end_epoch(self, epoch, meters, centres):
        """After validation, which gave the class centres (see utils.Evaluator). Returns what the run cost: see
        cost.spent."""
        raise NotImplementedError

    def state(self):
        """What resuming needs besides weights and optimizer: tensors, numbers, lists and dicts."""
        return {}

    def load_state(self, state):
        """Take back what state() gave."""


class TrainingStep:
    """A learner's step and what fit() wants to know of it, which stays on the device: one function for speed.Replay."""

    def __init__(self, learner, device):
        self.learner, self.meters = learner, Meters(device)
        self.finite = torch.tensor(True, device=device)
        self.finite_steps = torch.tensor(0, device=device)  # before the first loss that is not finite
        self.replay = Replay(self.run, learner.args.batch_size)

    def restart(self, step=0, meters=None):
        """At the beginning of an epoch, or where meters.state() was saved after `step` steps of it."""
        self.meters.restart(meters if processes.rank() == 0 else None)  # saved for all, so only one has them again
        self.finite_steps.fill_(step)

    def run(self, *drawn):
        stats = self.learner.step(*drawn)
        self.meters.add(stats)
        self.finite.logical_and_(stats[f"{self.learner.tag}loss"].isfinite().all())
        self.finite_steps.add_(self.finite)
        return stats

    def __call__(self, *drawn):
        self.meters.count(self.replay(*drawn))


class StopRequest:
    """Within this context a first SIGTERM or SIGINT is only noted, as `.signal`; a second one stops at once, unless it
    comes within a second: who ends a group of processes may reach each of them by two ways."""

    ASK = 16  # steps until several processes ask each other for it

    def __enter__(self):
        self.signal, self.noted = None, math.inf
        self.before = {number: signal.signal(number, self.note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number, _):
        if self.signal is None:
            self.signal, self.noted = number, time.monotonic()
        elif time.monotonic() > self.noted + 1:
            sys.exit(128 + number)
        else:
            return
        say("stopping after this step; once more stops at once")

    def agreed(self, step=0):
        """Whether to stop after this step: all processes, or none."""
        if step % self.ASK and processes.count() > 1:
            return False
        self.signal = max(number or 0 for number in processes.everyone(self.signal)) or None
        return self.signal is not None

    def leave(self, where):
        """End the program. where: in words, what was just saved."""
        processes.part()  # not before the first one has saved
        name = signal.Signals(self.signal).name
        say(f"stopped by {name} {where}, saved; the same command (without --fresh) goes on from there")
        sys.exit(128 + self.signal)


def fit(args, run, data, learner, cast):
    """Train `learner` until --epoch, from wherever the run stands.

    run: see run.Run. data: see dataset.Data. cast: see utils.autocast.
    Raises RunError at a loss that is not finite; what was saved before stays.
    """
    model, optimizer, device = learner.model, learner.optimizer, data.train.labels.device
    steps = -(-len(data.train) // args.batch_size)
    evaluate = Evaluator(model, data.val, cast)
    step = TrainingStep(learner, device)
    meters = step.meters
    saved = run.restore(model, optimizer)
    begun = None  # where an epoch that was interrupted stands
    if saved:
        learner.load_state(saved["learner"])
        begun = saved["begun"]
    progress = Progress(learner.tag, args, len(data.train), len(run.rows), begun["step"] if begun else 0)
    with StopRequest() as stop:
        for epoch in range(len(run.rows) + 1, args.epoch + 1):
            if optimizer.param_groups[0]["lr"] != learning_rate(args, epoch):
                optimizer.param_groups[0]["lr"] = learning_rate(args, epoch)
                step.replay.forget()
            model.train()
            begun = begun or {"step": 0, "seconds": 0, "meters": None}
            start = time.monotonic() - begun["seconds"]
            step.restart(begun["step"], begun["meters"])
            for i, drawn in enumerate(learner.draw(epoch)[begun["step"] :], begun["step"]):
                step(*drawn)
                run.startup_seconds = run.startup_seconds or process_seconds()
                progress.step(len(drawn[0]), meters)
                if stop.agreed(i):
                    meters.combine()
                    check_finite(run, model, epoch, step.finite_steps, i + 1)
                    begun = {"step": i + 1, "seconds": time.monotonic() - start, "meters": meters.state()}
                    run.save(model, optimizer, learner.state(), begun)
                    stop.leave(f"in epoch {epoch} after step {i + 1}")
            begun = None
            meters.combine()
            check_finite(run, model, epoch, step.finite_steps, steps)
            row = {name: mean for name, mean in meters.means().items() if not math.isnan(mean)}  # center_dist may be
            validating = time.monotonic()
            row["val/cls_loss"], row["val/cls_acc"], centres = evaluate()
            row |= {f"cost/{name}": value for name, value in learner.end_epoch(epoch, meters, centres).items()}
            row |= {"lr": optimizer.param_groups[0]["lr"], "train_seconds": validating - start}
            row["val_seconds"] = time.monotonic() - validating
            run.end_epoch(model, optimizer, row, learner.state())
            progress.epoch(row, run.best["val/cls_acc"])
            if stop.agreed():
                stop.leave(f"after epoch {epoch}")
    progress.close()


def final_test(run, model, test, cast):
    """With a holdout, the one look at the test images: top-1 of the last weights and of the best checkpoint.

    model holds the last weights, and the best ones afterwards. test: Split, or None for no holdout: nothing to add.
    """
    if test is None:
        return {}
    evaluate = Evaluator(model, test, cast)
    _, last, _ = evaluate()
    model.load_state_dict(processes.from_first(lambda: read_checkpoint(run.checkpoint("best"))["state_dict"]))
    _, best, _ = evaluate()
    return {"test_acc_best": best, "test_acc_last": last}


def check_finite(run, model, epoch, finite_steps, steps):
    """Before saving: raises RunError where the loss of a step of this epoch, or a weight by now, is not finite.

    finite_steps: steps before the first such loss.
    """
    finite_steps = min(processes.everyone(finite_steps.item()))
    weights = [tensor.isfinite().all() for tensor in model.state_dict().values() if tensor.is_floating_point()]
    if finite_steps < steps:
        what = f"the loss was not finite in epoch {epoch}, step {finite_steps + 1}"
    elif not torch.stack(weights).all():
        what = f"weights are no longer finite in epoch {epoch}"
    else:
        return
    raise RunError(f"{what}: stopped, {run.folder} keeps the state before; try a smaller --lr, or --precision fp32")
