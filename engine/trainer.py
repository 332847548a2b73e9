"""The epoch loop of both programs: train, validate, save; stop at a signal, and resume where a run stopped."""

import math
import signal
import sys
import time
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from engine import distributed
from engine.compile import CUDAGraphed, place, resolve_compile
from engine.meters import Evaluator, Meters
from engine.run import RunError
from models import read_checkpoint
from utils import hours, learning_rate, peak_memory, print0, process_seconds, reset_peak_memory, stop_signals


class Trainer:
    """What fit() trains: a network, its optimizer and the training step. A program subclasses it.

    model: is moved to the data's device. data: see dataset.Data. autocast: gives a context for a forward pass, see
    utils.autocast.
    """

    tag = "train/"  # of `loss` and `acc` in the step's statistics

    def __init__(self, model, args, data, autocast):
        self.args, self.data, self.autocast = args, data, autocast
        device, steps = data.train.labels.device, args.epoch * -(-len(data.train) // args.batch_size)
        self.compile = resolve_compile(args.compile, device, steps)
        self.model = place(model, device, autocast)
        if args.sync_bn:
            torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.optimizer = torch.optim.SGD(
            model.parameters(), args.lr, args.momentum, weight_decay=args.weight_decay, fused=True
        )
        with autocast():
            fp16 = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=fp16)  # keeps the in-place contract with fused SGD
        if fp16:  # where the first step overflows, torch would leave these as allocated
            for weights in model.parameters():
                self.optimizer.state[weights]["momentum_buffer"] = torch.zeros_like(weights)

    def begin_epoch(self, epoch):
        """Set the numbers that step() reads. Returns them: another tuple has the step recorded anew."""
        self.optimizer.param_groups[0]["lr"] = learning_rate(self.args, epoch)
        return (learning_rate(self.args, epoch),)

    def batches(self, epoch):
        """The epoch's randomness: a list, for each step the tensors that step() takes."""

    def step(self, *batch):
        """Train on a batch, under the in-place contract of engine.compile.

        Returns {name: (m,) tensor, one value a sample}, `loss` and `acc` (with the tag) among them.
        """

    def update(self, loss):
        """A step of the optimizer; with fp16 of the scaled loss, or none where that overflows."""
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def end_epoch(self, centers):
        """Called after validation, which gave the class centers."""

    def cost(self, epochs):
        """What so many epochs cost: see flops.cost_so_far."""

    def state(self):
        """What resuming needs besides weights and optimizer: tensors, numbers, lists and dicts."""
        return {"scaler": self.scaler.state_dict()}

    def load_state(self, state):
        """Take back what state() gave."""
        self.scaler.load_state_dict(state["scaler"])

    def files(self):
        """{name: bytes} of what the run's folder holds beside the usual files, written after each epoch."""
        return {}


class TrainStep:
    """A trainer's step and what fit() counts of it on the device: one function for a CUDA graph."""

    def __init__(self, trainer):
        device = trainer.data.train.labels.device
        self.trainer, self.meters = trainer, Meters(device)
        self.finite = torch.tensor(True, device=device)
        self.finite_steps = torch.tensor(0, device=device)  # before the first loss that is not finite
        self.graphed, self.numbers = CUDAGraphed(self.run, trainer.args.batch_size), None

    def begin_epoch(self, epoch, partial):
        """Start an epoch, or resume one."""
        before, self.numbers = self.numbers, self.trainer.begin_epoch(epoch)
        if self.numbers != before:
            self.graphed.reset()
        saved = partial.meters or {}  # those of all processes, so rank 0 alone takes them up
        self.meters.reset(saved if distributed.rank() == 0 else {name: [0, 0] for name in saved})
        self.finite_steps.fill_(partial.step)

    def run(self, *batch):
        stats = self.trainer.step(*batch)
        self.meters.add(stats)
        self.finite.logical_and_(stats[f"{self.trainer.tag}loss"].isfinite().all())
        self.finite_steps.add_(self.finite)

    def __call__(self, *batch):
        self.graphed(*batch)


@dataclass
class PartialEpoch:
    """How far an epoch has come: steps, seconds and Meters.state()."""

    step: int = 0
    seconds: float = 0.0
    meters: dict | None = None


class StopRequest:
    """A context in which the first SIGTERM, SIGINT or SIGHUP lets the step finish, the run save and exit.

    The second one exits at once, unless it comes within a second: a launcher may signal both a process and its group.
    """

    INTERVAL = 16  # steps between two questions to the other processes

    def __enter__(self):
        self.signal, self.time = None, math.inf
        self.previous = {number: signal.signal(number, self.handler) for number in stop_signals()}
        return self

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def handler(self, number, _):
        if self.signal is None:
            self.signal, self.time = number, time.monotonic()
            print0("stopping after this step; once more stops at once")
        elif time.monotonic() > self.time + 1:
            sys.exit(128 + number)

    def should_stop(self, step=0):
        """Whether to stop after this step: all processes, or none."""
        if step % self.INTERVAL and distributed.world_size() > 1:
            return False
        agreed = max(number or 0 for number in distributed.all_gather_object(self.signal))
        if agreed:  # otherwise a signal that has come meanwhile waits for the next time
            self.signal = agreed
        return agreed > 0

    def exit_saved(self, where):
        """End the program. where: in words, up to where it is saved."""
        distributed.shutdown()  # not before rank 0 has saved
        name = signal.Signals(self.signal).name
        print0(f"stopped by {name} {where}, saved; the same command (without --fresh) goes on from there")
        sys.exit(128 + self.signal)


def fit(run, trainer, **result):
    """Train until --epoch from wherever the run stands, and write its result.

    run: see engine.run.Run. result: entries of result.json beside the usual ones.
    Raises RunError at a loss or a weight that is not finite; what was saved before stays.
    """
    train_data = trainer.data.train
    run.config["compile"] = trainer.compile
    if trainer.args.compile == "auto":
        print(f"compilation: {trainer.compile} (--compile overrides)")
    with run:
        train(run, trainer)
        result |= {**final_test(run, trainer), "peak_memory_bytes": peak_memory(train_data.labels.device)}
        run.finish(len(train_data), **result)
    run.summarize()


def train(run, trainer):
    """The epochs of fit()."""
    args, data = trainer.args, trainer.data
    steps = -(-len(data.train) // args.batch_size)
    evaluate, step = Evaluator(trainer.model, data.val, trainer.autocast), TrainStep(trainer)
    partial = PartialEpoch(**(run.restore(trainer) or {}))
    progress = Progress(trainer.tag, args, len(data.train), len(run.rows), partial.step)
    first = len(run.rows) + 1
    with StopRequest() as stop:
        for epoch in range(first, args.epoch + 1):
            if epoch == first + 1:
                reset_peak_memory(data.train.labels.device)  # cudnn has tried its algorithms, some in large workspaces
            trainer.model.train()
            step.begin_epoch(epoch, partial)
            start = time.monotonic() - partial.seconds
            for i, batch in enumerate(trainer.batches(epoch)[partial.step :], partial.step):
                step(*batch)
                run.startup_seconds = run.startup_seconds or process_seconds()
                progress.step(len(batch[0]), step.meters)
                if stop.should_stop(i):
                    step.meters.reduce()
                    check_finite(run, trainer.model, epoch, step.finite_steps, i + 1)
                    run.save(trainer, asdict(PartialEpoch(i + 1, time.monotonic() - start, step.meters.state())))
                    stop.exit_saved(f"in epoch {epoch} after step {i + 1}")
            partial = PartialEpoch()
            step.meters.reduce()
            check_finite(run, trainer.model, epoch, step.finite_steps, steps)
            row = {name: mean for name, mean in step.meters.means().items() if not math.isnan(mean)}  # no center yet
            end = time.monotonic()
            row["val/cls_loss"], row["val/cls_acc"], centers = evaluate()
            row |= {f"cost/{name}": value for name, value in trainer.cost(epoch).items()}
            trainer.end_epoch(centers)
            row |= {"lr": learning_rate(args, epoch), "train_seconds": end - start}
            row["val_seconds"] = time.monotonic() - end
            run.end_epoch(trainer, row)
            progress.epoch(row, run.best["val/cls_acc"])
            if stop.should_stop():
                stop.exit_saved(f"after epoch {epoch}")
    progress.close()


def final_test(run, trainer):
    """With a holdout, the one look at the test images: {"test_acc_last": ..., "test_acc_best": ...}, else nothing.

    The network holds the last weights before, the best ones after.
    """
    if trainer.data.test is None:
        return {}
    evaluate = Evaluator(trainer.model, trainer.data.test, trainer.autocast)
    _, last, _ = evaluate()
    best_weights = distributed.run_on_rank0(lambda: read_checkpoint(run.checkpoint("best"))["state_dict"])
    trainer.model.load_state_dict(best_weights)
    _, best, _ = evaluate()
    return {"test_acc_best": best, "test_acc_last": last}


def check_finite(run, model, epoch, finite_steps, steps):
    """Before saving: raises RunError if a loss of this epoch, or a weight by now, is not finite."""
    finite_steps = min(distributed.all_gather_object(finite_steps.item()))
    weights = [tensor.isfinite().all() for tensor in model.state_dict().values() if tensor.is_floating_point()]
    if finite_steps < steps:
        what = f"the loss was not finite in epoch {epoch}, step {finite_steps + 1}"
    elif not torch.stack(weights).all():
        what = f"weights are no longer finite in epoch {epoch}"
    else:
        return
    raise RunError(f"{what}: stopped, {run.folder} keeps the state before; try a smaller --lr, or --precision fp32")


class Progress:
    """A bar with rate, remaining time and current accuracy on a terminal; elsewhere a line an epoch.

    tag: of `loss` and `acc` in the training meters. done: epochs done before; done_steps: steps of the next one.
    """

    REFRESH = 0.5  # seconds between two looks at the running accuracy, each a synchronization

    def __init__(self, tag, args, images_per_epoch, done, done_steps):
        self.tag, self.epochs, self.images_per_epoch = tag, args.epoch, images_per_epoch
        self.done = self.done_before = done
        self.seconds, self.refreshed = 0, time.monotonic()
        self.bar = tqdm(
            total=args.epoch * images_per_epoch,
            initial=done * images_per_epoch + min(done_steps * args.batch_size, images_per_epoch),
            unit="img",
            unit_scale=True,
            disable=distributed.rank() > 0 or not sys.stderr.isatty(),
            leave=False,
            dynamic_ncols=True,
            smoothing=0.02,
        )

    def step(self, n, meters):
        """n more images have been trained on."""
        self.bar.update(n)
        if not self.bar.disable and time.monotonic() - self.refreshed > self.REFRESH:
            accuracy = meters.means()[f"{self.tag}acc"]
            self.bar.set_postfix_str(f"epoch {self.done + 1}/{self.epochs}, train acc {accuracy:.1f} %")
            self.refreshed = time.monotonic()

    def epoch(self, row, best_acc):
        """An epoch is over. row: as Run.end_epoch takes it."""
        self.done += 1
        self.seconds += row["train_seconds"] + row["val_seconds"]  # of whole epochs, also of one begun before a stop
        left = self.seconds / (self.done - self.done_before) * (self.epochs - self.done)
        self.bar.write(
            f"epoch {self.done:3d}/{self.epochs}  "
            f"train loss {row[f'{self.tag}loss']:.3f} acc {row[f'{self.tag}acc']:5.2f} %  "
            f"val loss {row['val/cls_loss']:.3f} acc {row['val/cls_acc']:5.2f} % (best {best_acc:.2f})  "
            f"{self.images_per_epoch / row['train_seconds']:.0f} img/s  eta {hours(left)}",
            file=sys.stdout,
        )
        sys.stdout.flush()

    def close(self):
        self.bar.close()
