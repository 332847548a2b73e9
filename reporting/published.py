"""The published CIFAR-100 results (arXiv 2012.09413, table 3), from published.csv, and the settings they belong to.

Its columns: top-1 accuracies in percent (best epoch, means of 4 runs), the student's learning rate, UNIX's computation
in percent of KD's.
"""

import csv
import re
from functools import cache
from pathlib import Path

from engine.run import format_value, teacher_name

NOT_COMPARED = {"seed", "precision", "arch", "student_arch", "teacher_arch"}


@cache
def pairs():
    """{(teacher, student): {column: number, None where none was published}}."""
    with Path(__file__).with_name("published.csv").open(newline="") as file:
        rows = {(row.pop("teacher"), row.pop("student")): row for row in csv.DictReader(file)}
    return {pair: {name: float(text) if text else None for name, text in row.items()} for pair, row in rows.items()}


def deviations(run):
    """["flag value"] of the settings that change a RunFolder's result and are not those of the published run of its
    network and method, of "random" as if it were published; "... processes" where there were several."""
    n, student_lr = run.settings["batch_size"], {student: row["student_lr"] for (_, student), row in pairs().items()}
    of_method = {"KD": {"strategy": 0, "k": n, "b": n, "w": 1000.0}, "random": {"strategy": 0}}.get(run.method, {})
    recipe = {**run.defaults, "lr": student_lr.get(run.network, run.defaults["lr"]), **of_method}
    found = []
    for flag, value in run.config["effective_settings"].items():
        if flag in recipe.keys() - NOT_COMPARED and value != recipe[flag]:
            values = value if isinstance(value, list) else [value]
            found.append(f"{flag} {' '.join(map(format_value, values)) or 'none'}")
    return found if run.processes == 1 else [*found, f"{run.processes} processes"]


def accuracy(run):
    """The published accuracy of a RunFolder's network and method, None unless it follows the published recipe in full.

    Of the teacher only the folder's name tells whether it does: it carries every setting that is not the default.
    """
    if deviations(run):
        return None
    if run.teacher:
        folder, checkpoint = teacher_name(Path(run.config["teacher_file"]))
        as_published = checkpoint == "best" and re.fullmatch(rf"teacher_{run.teacher}(_seed\d+)?", folder)
        return pairs().get((run.teacher, run.network), {}).get(run.method.lower()) if as_published else None
    as_student = [row["alone"] for (_, student), row in pairs().items() if student == run.network]
    as_teacher = [row["teacher_acc"] for (teacher, _), row in pairs().items() if teacher == run.network]
    return next(iter(as_student + as_teacher), None)
