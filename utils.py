"""What both programs share: the flags and their checks, the choice of a device, and errors in one line."""

import argparse
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from engine.device import PRECISIONS, DeviceError, choose_device, choose_precision

TRAIN_SIZE, TEST_SIZE = 50_000, 10_000
MAX_INT = 1_000_000  # a bound for what has no natural one

# ----------------------------------------------------------------------------------------------------------- flags


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description and adds each flag's default to its help."""


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line. program: its file's name."""

    def __init__(self, program: str, description: str):
        super().__init__(program, description=description, formatter_class=Formatter, allow_abbrev=False)

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: error: {message} (--help explains every flag)\n")


def as_path(text: str) -> Path:
    """An argparse type: a Path, with ~ expanded, which shells do not do in --flag=~/x."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return Path(os.path.expanduser(text))  # noqa: PTH111  Path's own raises where there is no such user


def bounded(
    kind: type, low: float = -math.inf, high: float = math.inf, below: float = math.inf
) -> Callable[[str], int | float]:
    """An argparse type: an int or float with low <= value <= high and value < below, never nan or infinite."""
    bounds = {"at least": low, "at most": high, "below": below}
    limits = " and ".join(f"{text} {limit}" for text, limit in bounds.items() if math.isfinite(limit))
    wanted = f"{'a whole number' if kind is int else 'a number'} {limits}"

    def convert(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if low <= value <= high and value < below:
            return value
        raise argparse.ArgumentTypeError(f"must be {wanted}, not {text!r}")

    return convert


def add_shared_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of both programs: recipe, data, and where and how to run."""
    # fmt: off
    add = parser.add_argument_group("recipe (the defaults are the published one)").add_argument
    add("--epoch", type=bounded(int, 1, MAX_INT), default=240,
        help="number of epochs; a shorter run needs other --milestones")
    add("--batch-size", type=bounded(int, 2, TRAIN_SIZE), default=64,
        help="images in a step; another size needs another --lr, --k and --b")
    add("--lr", type=bounded(float, 1e-12, 1e6), default=0.05,
        help="initial learning rate; published runs use 0.01 for MobileNetV2, ShuffleV1 and ShuffleV2")
    add("--momentum", type=bounded(float, 0, below=1), default=0.9, help="momentum of SGD, without Nesterov")
    add("--weight-decay", type=bounded(float, 0, 1e6), default=5e-4, help="weight decay of SGD, on all parameters")
    add("--gamma", type=bounded(float, 1e-12, 1), default=0.1,
        help="factor by which the learning rate is multiplied at each milestone")
    add("--milestones", type=bounded(int, 1, MAX_INT), nargs="*", default=[150, 180, 210], metavar="EPOCH",
        help="epochs after which the learning rate drops; --milestones without a number keeps it constant")
    add("--seed", type=bounded(int, 0, 2**63 - 1), default=0,
        help="seed of initial weights, order, augmentation, mixing and --holdout")

    add = parser.add_argument_group("data").add_argument
    add("--dataset", choices=("cifar100", "synthetic"), default="cifar100",
        help="synthetic is 100 classes of generated images and needs no files")
    add("--data-root", type=as_path, default=Path("data"), metavar="DIR",
        help="folder that holds cifar-100-python/, or to which it is downloaded")
    add("--train-limit", type=bounded(int, 2, TRAIN_SIZE), metavar="N",
        help="use only the first N training images; not given, all are used")
    add("--val-limit", type=bounded(int, 1, TEST_SIZE), metavar="N",
        help="use only the first N test images; not given, all are used")
    add("--holdout", type=bounded(int, 0, TRAIN_SIZE), default=0, metavar="N",
        help="choose the best epoch on N training images that are kept apart, and use the test images once, at the "
        "end; with 0 the best epoch is chosen on the test images, as in the paper")

    add = parser.add_argument_group("machine and files").add_argument
    add("--gpu-id", type=bounded(int, -1, MAX_INT), metavar="ID",
        help="index among the visible GPUs; -1 is the CPU; not given, the first visible GPU is used, else the CPU")
    add("--precision", choices=("auto", *PRECISIONS), default="auto",
        help="arithmetic of the networks, whose weights stay fp32; auto takes bf16 where the hardware is faster in it, "
        "fp16 on older GPUs with tensor cores, else fp32")
    add("--experiments", type=as_path, default=Path("experiments"), metavar="DIR", help="folder of all runs")
    add("--save-interval", type=bounded(int, 1, MAX_INT), default=40, metavar="N",
        help="write a numbered checkpoint every N epochs, besides those at milestones and at the end")
    add("--fresh", action="store_true", help="rename the folder of an earlier run of these settings, and start over")
    add("--debug", action="store_true", help="show the traceback of an error instead of one line")
    # fmt: on


def check_shared_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Check what a single flag cannot tell. Exits with code 2 for a conflict, and warns of what is likely a mistake."""
    milestones = args.milestones
    if milestones != sorted(set(milestones)):
        parser.error(f"argument --milestones: must rise, not {' '.join(map(str, milestones))}")
    if milestones != parser.get_default("milestones") and any(m >= args.epoch for m in milestones):
        parser.error(f"argument --milestones: {milestones[-1]} is not below --epoch {args.epoch}")
    if args.lr * args.gamma ** len(milestones) < 1e-12:
        parser.error("argument --gamma: the learning rate falls below 1e-12 at the milestones")
    train_size = args.train_limit or TRAIN_SIZE
    if args.holdout > train_size - 2:
        parser.error(f"argument --holdout: {args.holdout} of {train_size} training images leaves too few to train on")
    if milestones and milestones[-1] >= args.epoch:
        print(f"warning: --epoch {args.epoch} ends before the milestones {[m for m in milestones if m >= args.epoch]}")


def set_up(parser: argparse.ArgumentParser, args: argparse.Namespace) -> tuple[torch.device, str]:
    """The device and the name of the precision that the flags ask for. Exits with code 2 where they are not there."""
    flag = "--gpu-id"
    try:
        device = choose_device(args.gpu_id)
        flag = "--precision"
        precision = choose_precision(args.precision, device)
    except DeviceError as e:
        parser.error(f"argument {flag}: {e}")
    print(f"device: {device}, precision: {precision}")
    return device, precision


# ---------------------------------------------------------------------------------------------------- running main


def run_main(main: Callable[[], None]) -> None:
    """Run a program's main().

    An error of the world (files, data, weights, memory) is one line and exit code 1. Ctrl-C and SIGTERM end the program
    with one line and 128 + the signal's number; what was saved stays, and the same command goes on from there.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's stream has none
            # each line is seen at once, also through a pipe, and one that the terminal cannot show does not end a run
            stream.reconfigure(errors="replace", line_buffering=True)
    stopped_by = signal.SIGINT

    def stop(number: int, _: object) -> None:
        nonlocal stopped_by
        stopped_by = number
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        main()
    except KeyboardInterrupt as e:
        goes_on = f"; the same command goes on {e}" if str(e) else ""  # where a run was open
        print(f"stopped{goes_on}", file=sys.stderr)
        sys.exit(128 + stopped_by)
    except Exception as e:
        out_of_memory = isinstance(e, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(e)
        if "--debug" in sys.argv or not (out_of_memory or isinstance(e, OSError)):
            raise
        message = " ".join(str(e).split()) or "out of memory"
        sys.exit(f"{Path(sys.argv[0]).name}: error: {message}")
