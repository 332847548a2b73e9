"""The published CIFAR-100 results (arXiv 2012.09413, table 3), read from experiments/published.csv."""

import csv
from functools import cache
from math import nan

from engine.run import ROOT


@cache
def pairs() -> dict[tuple[str, str], dict[str, float]]:
    """Map (teacher, student) to the numbers of a pair, nan where none was published.

    teacher_acc, alone, kd, unix: top-1 accuracies in percent (best epoch, means of 4 runs). student_lr: the student's
    learning rate. computation: of UNIX, in percent of KD's.
    """
    found = {}
    with (ROOT / "experiments" / "published.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            pair = row.pop("teacher"), row.pop("student")
            found[pair] = {name: float(text or nan) for name, text in row.items()}
    return found


def learning_rate(network: str, default: str) -> str:
    """The published learning rate of a network, as text; `default` for a network without one."""
    rates = {student: str(row["student_lr"]) for (_, student), row in pairs().items()}
    return rates.get(network, default)


def accuracy(network: str, teacher: str | None, method: str) -> float:
    """The published accuracy of a network that was distilled, or trained alone (teacher None); nan without one."""
    if teacher:
        return pairs().get((teacher, network), {}).get(method.lower(), nan)
    as_student = {student: row["alone"] for (_, student), row in pairs().items()}
    as_teacher = {teacher: row["teacher_acc"] for (teacher, _), row in pairs().items()}
    return (as_teacher | as_student).get(network, nan)
