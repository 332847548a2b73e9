"""The published CIFAR-100 results (arXiv 2012.09413, table 3): figures, and the settings that they belong to."""

from pathlib import Path
from typing import NamedTuple

import student_v0
import teacher

DEFAULTS = {  # {flag: value} of each program, as config.json would have it
    program: {flag: str(value) if isinstance(value, Path) else value for flag, value in vars(args).items()}
    for program, args in (
        ("teacher.py", teacher.flags().parse_args(["--arch", "vgg8"])),
        ("student_v0.py", student_v0.flags().parse_args([])),
    )
}


class Pair(NamedTuple):
    """Top-1 accuracies in percent, best epoch, means of 4 runs; computation of UNIX in percent of KD's."""

    teacher: float | None
    alone: float
    kd: float
    unix: float
    computation: float


PAIRS = {  # (teacher, student)
    ("vgg13", "MobileNetV2"): Pair(75.38, 65.79, 67.94, 68.09, 77.49),
    ("ResNet50", "MobileNetV2"): Pair(79.10, 65.79, 68.33, 68.76, 75.57),
    ("ResNet50", "vgg8"): Pair(79.10, 70.68, 73.43, 74.02, 81.43),
    ("resnet32x4", "ShuffleV1"): Pair(79.63, 70.77, 74.52, 76.48, 78.43),
    ("resnet32x4", "ShuffleV2"): Pair(79.63, 73.12, 75.07, 76.86, 78.92),
    ("wrn_40_2", "ShuffleV1"): Pair(76.46, 70.77, 76.04, 77.06, 84.79),
    ("wrn_40_2", "wrn_16_2"): Pair(76.46, 73.64, 75.40, 75.40, 94.06),
    ("wrn_40_2", "wrn_40_1"): Pair(76.46, 72.24, 73.77, 74.38, 91.88),
    ("resnet56", "resnet20"): Pair(73.44, 69.63, 70.72, 70.41, 94.76),
    ("resnet32x4", "resnet8x4"): Pair(79.63, 72.51, 73.34, 74.86, 87.32),
    ("vgg13", "vgg8"): Pair(75.38, 70.68, 73.38, 73.55, 95.10),
    ("vgg16", "vgg8"): Pair(None, 70.68, 72.10, 73.06, 91.29),
}
SLOW = ("MobileNetV2", "ShuffleV1", "ShuffleV2")  # trained at a learning rate of 0.01
UNIX = {"strategy": 3, "k": 48, "b": 32, "w": 10.0}


def recipe(program, network, method, batch_size):
    """{flag: value} of the published run of a network.

    method: "alone", "KD", "UNIX" or "random", which was not published and gets UNIX's k, b and w. batch_size: what
    KD's k and b, the whole batch, are taken from.
    """
    values = {**DEFAULTS[program], "lr": 0.01 if network in SLOW else 0.05}
    if method == "KD":
        values |= {"strategy": 0, "k": batch_size, "b": batch_size, "w": 1000.0}
    elif method != "alone":
        values |= UNIX
    return values


def accuracy(network, method, teacher_arch):
    """The published accuracy of a method, None where there is none."""
    if method == "alone":
        figures = [
            pair.alone if network == student else pair.teacher
            for (of, student), pair in PAIRS.items()
            if network in (of, student)
        ]
        return figures[0] if figures else None
    pair = PAIRS.get((teacher_arch, network))
    return pair and {"KD": pair.kd, "UNIX": pair.unix}.get(method)
