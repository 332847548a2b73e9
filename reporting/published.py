"""The published CIFAR-100 results (arXiv 2012.09413, table 3), from published.csv, and the settings they belong to.

Its columns: top-1 accuracies in percent, best epoch, means of 4 runs; the student's learning rate; UNIX's computation
in percent of KD's.
"""

import csv
from functools import cache
from pathlib import Path


@cache
def pairs():
    """{(teacher, student): {column: number, None where none was published}}."""
    with Path(__file__).with_name("published.csv").open(newline="") as file:
        return {
            (row.pop("teacher"), row.pop("student")): {
                name: float(text) if text else None for name, text in row.items()
            }
            for row in csv.DictReader(file)
        }


def recipe(run):
    """{flag: value} of the published run of a RunFolder's network by its method.

    "random" was not published and gets UNIX's recipe, but for the strategy.
    """
    student_lr = {student: row["student_lr"] for (_, student), row in pairs().items()}
    values = {**run.defaults, "lr": student_lr.get(run.network, run.defaults["lr"])}
    if run.method == "KD":
        whole = run.settings["batch_size"]
        values |= {"strategy": 0, "k": whole, "b": whole, "w": 1000.0}
    elif run.method == "random":
        values["strategy"] = 0
    return values


def accuracy(network, method, teacher):
    """The published accuracy of a network trained by a method, None where there is none."""
    if method == "alone":
        found = [
            row["alone"] if network == pair[1] else row["teacher_acc"]
            for pair, row in pairs().items()
            if network in pair
        ]
        return found[0] if found else None
    return pairs().get((teacher, network), {}).get(method.lower())
