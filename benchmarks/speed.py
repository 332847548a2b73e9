"""Measure the speed of a training step: ours beside a plain loop, and UNIX beside KD.

    python benchmarks/speed.py                                                   four pairs of networks
    python benchmarks/speed.py --pairs all                                       the twelve published pairs
    python benchmarks/speed.py --pairs resnet56:resnet20 --precision fp32

Prints a Markdown table with a row for each pair. A cell is the median of the rounds, with their range in brackets:

    KD, UNIX                    images/s of our program
    KD / plain, UNIX / plain    these divided by the images/s of the loop in plain.py, which runs in fp32
    UNIX in % of KD             the time of a step of UNIX relative to a step of KD
    counted                     the same by operations: a backward pass is counted as one forward pass, then as two
    --score-every 5             the time when UNIX scores in one of five epochs
    memory                      the peak of our UNIX: on a GPU that of its tensors, on a CPU that of the process

A step includes its data, its training and its statistics. The networks are untrained and the images are random.
"""

import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

import dataset
import student_v0
from benchmarks.plain import PlainDistiller, PlainImages, endless_batches
from engine.device import PRECISIONS, Precision, choose_device, device_name, peak_memory, setup_backend, to_device
from engine.flops import cost_so_far, forward_macs
from models import model_dict
from reporting import published
from utils import Parser, bounded, run_main, set_up

PAIRS = ["wrn_40_2:wrn_16_2", "resnet32x4:resnet8x4", "vgg13:MobileNetV2", "resnet56:resnet20"]
BATCH = 64
KEPT = 48
IMAGES = 781 * BATCH  # an epoch of CIFAR-100 in whole batches
WARM_UP = 8  # steps before each round, which record a CUDA graph and use up what the plain loop's workers have ready
SCORE_EVERY = 5
TITLES = ["teacher → student", "KD", "KD / plain", "UNIX", "UNIX / plain", "UNIX in % of KD", "counted"]
TITLES += [f"--score-every {SCORE_EVERY}", "counted", "memory"]

# ------------------------------------------------------------------------------------------------------------ the sides


@cache
def next_step(plain: bool, pair: str, flags: str) -> Callable[[], None]:
    """A function that takes the next step of the plain loop or of our program. flags: of student_v0.py."""
    args = student_v0.make_parser().parse_args(flags.split())
    device = choose_device(args.gpu_id)
    teacher, student = networks(pair)
    if plain:
        distiller = PlainDistiller(student.to(device), teacher.to(device), args)
        split = random_images("cpu")
        images = PlainImages(split.images.numpy(), split.labels.numpy())
        batches = endless_batches(images, BATCH, device)
        return lambda: distiller.step(*next(batches))
    precision = Precision(args.precision, device.type)
    setup_backend(device, precision)
    split = random_images(device)
    data = dataset.Data(split, split, None, IMAGES)
    trainer = student_v0.Distiller(student, to_device(teacher, device, precision), args, data, precision)
    batches = (batch for epoch in count(1) for batch in trainer.draw_epoch(epoch))
    return lambda: trainer.graphed_step(*next(batches))


KD = "--strategy 0 --k 64 --b 64 --w 1000"
SIDES = {  # whether it is the plain loop, and the method's flags
    "KD": (False, KD),
    "UNIX": (False, ""),
    "unscored": (False, "--strategy 0"),  # as UNIX between two scorings
    "plain KD": (True, KD),
    "plain UNIX": (True, ""),
}


def networks(pair: str) -> list[nn.Module]:
    """The teacher and the student, untrained, on the CPU."""
    torch.manual_seed(0)
    teacher, student = (model_dict[arch]() for arch in pair.split(":"))
    return [teacher.eval(), student.train()]


def random_images(device: torch.device | str) -> dataset.Split:
    """Random pixels with random labels."""
    images = torch.randint(256, (IMAGES, 32, 32, 3), dtype=torch.uint8, device=device)
    labels = torch.randint(dataset.NUM_CLASSES, (IMAGES,), device=device)
    return dataset.Split(images, labels, torch.arange(IMAGES, device=device))


def time_steps(plain: bool, pair: str, flags: str, steps: int) -> float:
    """Seconds a step."""
    step = next_step(plain, pair, flags)  # made in the first round, and kept
    synchronize = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    for _ in range(WARM_UP):
        step()
    synchronize()
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize()
    return (time.perf_counter() - begin) / steps


# ------------------------------------------------------------------------------------------------------------ the table


def measure(pair: str, flags: str, rounds: int, steps: int, device: torch.device) -> tuple[dict[str, list[float]], int]:
    """Time all sides in turn. flags: of student_v0.py, for all sides.

    Returns each side's seconds a step in each round, and the peak memory of our UNIX in bytes. A side has a process of
    its own, because setup_backend would speed up the plain loop too.
    """
    seconds = {name: [] for name in SIDES}
    with ExitStack() as stack:
        pools = {name: stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"))) for name in SIDES}
        for _ in range(rounds):
            for name, (plain, method) in SIDES.items():
                timing = pools[name].submit(time_steps, plain, pair, f"{flags} {method}", steps)
                seconds[name].append(timing.result())
        memory = pools["UNIX"].submit(peak_memory, device).result()
    return seconds, memory


def table_row(pair: str, seconds: dict[str, list[float]], memory: int) -> list[str]:
    """A pair's cells under TITLES. seconds, memory: see measure."""
    cells = [pair.replace(":", " → ")]
    for method in ("KD", "UNIX"):
        ours = np.array(seconds[method])
        plain = np.array(seconds[f"plain {method}"])
        cells += [with_range(BATCH / ours, 0), with_range(plain / ours, 2)]
    teacher_macs, student_macs = map(forward_macs, networks(pair))
    for scored in (1, 1 / SCORE_EVERY):  # the share of the epochs
        unix = scored * np.array(seconds["UNIX"]) + (1 - scored) * np.array(seconds["unscored"])
        cost = cost_so_far(student_macs, KEPT, scored * BATCH, teacher_macs, KEPT, BATCH)
        counted = f"{100 * cost['computation']:.1f}, {100 * cost['computation_usual']:.1f}"
        cells += [with_range(100 * unix / seconds["KD"], 1), counted]
    return [*cells, f"{memory / 1e9:.1f} GB"]


def with_range(values: np.ndarray, digits: int) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def pair_name(text: str) -> str:
    """An argparse type: two networks with a colon between them, or "all"."""
    if text != "all" and (text.count(":") != 1 or not all(arch in model_dict for arch in text.split(":"))):
        raise ArgumentTypeError(f"must be two networks with a colon between them, not {text!r}")
    return text


def main(argv: list[str] | None = None) -> None:
    parser = Parser("speed.py", __doc__)
    add = parser.add_argument
    add("--pairs", nargs="+", type=pair_name, default=PAIRS, metavar="TEACHER:STUDENT", help="all: the published ones")
    add("--precision", choices=("auto", *PRECISIONS), default="auto", help="arithmetic of our networks")
    add("--compile", action="store_true", help="compile the teacher and the scoring, as student_v0.py does")
    add("--rounds", type=bounded(int, 1, 1000), default=3, help="number of times that each side is timed")
    add("--steps", type=bounded(int, 1, 1000), default=10, help="number of steps that are timed in a round")
    add("--gpu-id", type=bounded(int, -1, 1000), help="as in student_v0.py")
    args = parser.parse_args(argv)
    device, precision = set_up(parser, args)
    pairs = [":".join(pair) for pair in published.pairs()] if "all" in args.pairs else args.pairs

    gpu_id = -1 if device.type == "cpu" else device.index
    flags = f"--precision {precision} --gpu-id {gpu_id} {'--compile' if args.compile else ''}"
    print(f"{device_name(device)}: {args.rounds} rounds of {args.steps} steps of {BATCH} images\n")
    for row in (TITLES, ["---"] * len(TITLES)):
        print("|", " | ".join(row), "|")
    for pair in pairs:
        row = table_row(pair, *measure(pair, flags, args.rounds, args.steps, device))
        print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    run_main(main)
