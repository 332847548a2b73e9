"""The published CIFAR-100 results (arXiv 2012.09413, table 3), from published.csv, and the settings they belong to.

Its columns: top-1 accuracies in percent (best epoch, means of 4 runs), the student's learning rate, UNIX's computation
in percent of KD's.
"""

import csv
from functools import cache
from pathlib import Path


@cache
def pairs():
    """{(teacher, student): {column: number, None where none was published}}."""
    with Path(__file__).with_name("published.csv").open(newline="") as file:
        rows = {(row.pop("teacher"), row.pop("student")): row for row in csv.DictReader(file)}
    return {pair: {name: float(text) if text else None for name, text in row.items()} for pair, row in rows.items()}


def recipe(run):
    """{flag: value} of the published run of a RunFolder's network and method; of "random" as if it were published."""
    student_lr = {student: row["student_lr"] for (_, student), row in pairs().items()}
    values = {**run.defaults, "lr": student_lr.get(run.network, run.defaults["lr"])}
    if run.method == "KD":
        values |= {"strategy": 0, "k": run.settings["batch_size"], "b": run.settings["batch_size"], "w": 1000.0}
    elif run.method == "random":
        values["strategy"] = 0
    return values


def accuracy(run):
    """The published accuracy of a RunFolder's network and method, None where there is none."""
    if run.teacher:
        return pairs().get((run.teacher, run.network), {}).get(run.method.lower())
    as_student = [row["alone"] for (_, student), row in pairs().items() if student == run.network]
    as_teacher = [row["teacher_acc"] for (teacher, _), row in pairs().items() if teacher == run.network]
    return next(iter(as_student + as_teacher), None)
