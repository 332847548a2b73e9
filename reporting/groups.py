"""Runs grouped over their seeds, named as a person would name them, and put into tables."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from reporting.runs import FinishedRun

METHODS = ("alone", "KD", "random, unmixed", "random, mixed", "UNIX")
WORDS = {  # how a person says a setting; what is missing here is said as "flag value"
    "dataset": "{} data",
    "train_limit": "{} images",
    "val_limit": "{} test images",
    "holdout": "{} images held out",
    "score_every": "scored every {} epochs",
    "other_distill": "with {}",
    "teacher_cache": "teacher cache",
    "epoch": "{} epochs",
    "precision": "{}",
}


@dataclass(frozen=True)
class Row:
    """Runs that differ in the seed alone."""

    name: str
    line: str  # the name without the number of epochs; figures join rows that share it
    runs: list[FinishedRun]

    @property
    def first(self) -> FinishedRun:
        return self.runs[0]

    def values(self, name: str) -> list[float]:
        return [run.numbers[name] for run in self.runs]

    def mean(self, name: str) -> float:
        return float(np.mean(self.values(name)))

    def spread(self, name: str) -> float:
        """The sample standard deviation over the seeds, nan for fewer than two."""
        return float(np.std(self.values(name), ddof=1)) if len(self.runs) > 1 else np.nan

    @property
    def command(self) -> str:
        """The shell command that repeats the runs: as the first was typed, for every seed."""
        seeds = " ".join(str(run.seed) for run in self.runs)
        return f"for seed in {seeds}; do python {self.first.command} --seed $seed; done"


@dataclass(frozen=True)
class Table:
    """A teacher and a student on some data, or a network that belongs to no such pair."""

    title: str
    rows: list[Row]


def in_words(run: FinishedRun) -> dict[str, str]:
    """How a person says each unpublished setting. Milestones are left out where the number of epochs is unusual."""
    words = {}
    for flag, value in run.deviations.items():
        if flag != "milestones" or "epoch" not in run.deviations:
            form = WORDS.get(flag, flag.replace("_", " ") + " {}")
            words[flag] = form.replace("{}", f"{float(value):,.0f}" if value.isdecimal() else value)
    return words


def make_table(title: str, groups: list[tuple[str, list[FinishedRun]]]) -> Table:
    """Name the groups. groups: (name, runs that differ in the seed alone).

    The title tells the settings that all groups share, a name those that its group does not share with the others.
    """
    said = [in_words(runs[0]) for _, runs in groups]
    if len({runs[0].teacher_hash for _, runs in groups} - {""}) == 1:  # one teacher needs no name
        for words in said:
            words.pop("teacher", None)
    shared = [flag for flag, words in said[0].items() if all(words == other.get(flag) for other in said)]
    rows, names = [], []
    for words, (name, runs) in zip(said, groups):
        own = {flag: text for flag, text in words.items() if flag not in shared}
        line = ", ".join([name, *(text for flag, text in own.items() if flag != "epoch")])
        name = ", ".join([name, *own.values()])
        names.append(name)
        number = f" ({names.count(name)})" if names.count(name) > 1 else ""  # teachers or milestones may differ
        rows.append(Row(name + number, line + number, runs))
    return Table(", ".join([title, *(said[0][flag] for flag in shared)]), rows)


def make_tables(runs: Iterable[FinishedRun]) -> list[Table]:
    """A table for each pair and data, and for each network and data that belong to no pair.

    A network that was trained alone stands in the tables of the pairs in which it is the student, and in those whose
    students learned from it.
    """
    groups, teachers = {}, {}
    for run in sorted(runs, key=lambda run: (METHODS.index(run.method), len(run.deviations), run.settings, run.seed)):
        groups.setdefault(run.settings, []).append(run)
        if run.teacher:
            teachers.setdefault((run.teacher, run.network, run.data), []).append(run.teacher_settings)
    tables = []
    for (teacher, student, data), teacher_settings in teachers.items():
        named = []
        for group in groups.values():
            run = group[0]
            if run.data == data and run.network == student and run.teacher in (None, teacher):
                named.append((run.method, group))
            elif run.data == data and not run.teacher and any(member.given in teacher_settings for member in group):
                named.append(("teacher", group))
        named.sort(key=lambda member: member[0] != "teacher")
        tables.append(make_table(f"{teacher} → {student}", named))
    in_tables = {row.first.settings for table in tables for row in table.rows}
    left = {}
    for settings, group in groups.items():
        if settings not in in_tables:
            left.setdefault((group[0].network, group[0].data), []).append((group[0].method, group))
    return tables + [make_table(f"{network} alone", named) for (network, _), named in left.items()]
