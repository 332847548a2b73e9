"""Finished runs grouped over seeds, named, compared with KD and set in sections: what tables and figures show."""

import re
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np

from reporting import published
from reporting.results import RunFolder


@dataclass
class Group:
    """Finished runs that differ in the seed alone."""

    runs: list[RunFolder]  # by seed
    settings: list[str]  # "flag value" where not as published, then --precision if given and where needed "teacher ..."

    @property
    def first(self):
        return self.runs[0]

    @property
    def machines(self):
        """What its runs ran on, in order. Times on different machines do not compare."""
        return sorted({run.machine for run in self.runs})

    def on(self, machine):
        """The Group of those of its runs that ran on it."""
        return Group([run for run in self.runs if run.machine == machine], self.settings)

    def values(self, name):
        """A number of result.json for each run that has it."""
        return [run.result[name] for run in self.runs if run.result.get(name) is not None]

    def mean(self, name):
        return mean(self.values(name)) if self.values(name) else None

    def spread(self, name):
        """Sample standard deviation over the seeds, None for fewer than two."""
        return stdev(self.values(name)) if len(self.values(name)) > 1 else None

    def logged(self, column):
        """A column of metrics.csv, (runs that have it, epochs)."""
        found = [run.metrics[column] for run in self.runs if run.metrics.get(column)]
        return np.array([values[: min(map(len, found))] for values in found])

    @property
    def command(self):
        """The shell command that repeats the runs: as the first was typed, for every seed."""
        typed = re.sub(r" --(fresh|debug|(seed|gpu-id)[ =]\S+)(?= |$)", "", self.first.config["command"])
        n = self.first.processes
        typed = f"python {typed}" if n == 1 else f"torchrun --nproc-per-node={n} {typed}"
        if len(self.runs) == 1:
            return f"{typed} --seed {self.first.seed}"
        return f"for seed in {' '.join(str(run.seed) for run in self.runs)}; do {typed} --seed $seed; done"


def group(runs):
    """The finished runs as Groups: alone, then by teacher, student and method."""
    finished, groups = sorted((run for run in runs if run.result), key=lambda run: run.seed), []
    for key in dict.fromkeys(run.key for run in finished):
        same = [run for run in finished if run.key == key]
        settings, precision = published.deviations(same[0]), same[0].settings["precision"]
        if precision != same[0].defaults["precision"]:
            settings.append(f"precision {precision}")
        if len({run.teacher_hash for run in finished if run.teacher == same[0].teacher}) > 1:
            settings.append(f"teacher {same[0].teacher_hash[:8]}")
        groups.append(Group(same, settings))
    return sorted(groups, key=lambda g: (g.first.teacher or "", g.first.network, g.first.method, len(g.settings)))


def shared_settings(groups):
    """The settings that all groups share, in order."""
    return [setting for setting in groups[0].settings if all(setting in g.settings for g in groups)]


def kd_baseline(g, groups):
    """The KD among a section's groups that a group's cost is compared with: of the same network, epochs and teacher
    (of any for runs alone) the one whose settings are most alike, None without such."""
    kds = [kd for kd in groups if kd.first.method == "KD" and kd.first.budget == g.first.budget]
    kds = [kd for kd in kds if g.first.teacher_hash in (None, kd.first.teacher_hash)]
    return min(kds, key=lambda kd: len(set(kd.settings) ^ set(g.settings)), default=None)


def relative_to_kd(g, kd, column):
    """A mean of `g` in percent of its KD's, None where either is missing. Times are compared machine by machine."""
    if kd is None:
        return None
    pairs = [(g, kd)]
    if column == "train_seconds":
        pairs = [(g.on(machine), kd.on(machine)) for machine in g.machines if machine in kd.machines]
    means = [(own.mean(column), of_kd.mean(column)) for own, of_kd in pairs]
    ratios = [100 * own / of_kd for own, of_kd in means if own and of_kd]
    return mean(ratios) if ratios else None


@dataclass
class Section:
    """A teacher and a student on one task, with every group that belongs to them: a part of the paper's table."""

    title: str
    teacher: str | None  # None: networks that no pair of the report contains
    student: str | None
    setting: str | None  # what all its groups share and not all of the report do
    named: list[tuple[str, Group]]  # the teacher's own training is named "teacher"


def sections(groups):
    """The groups by pair and task, of whatever number of epochs. A network alone stands in every pair it belongs to."""
    common, found, placed = shared_settings(groups) if groups else [], [], []

    def name(g, what, told=()):
        return ", ".join([what, *(setting for setting in g.settings if setting not in [*common, *told])])

    pairs = [(g.first.teacher, g.first.network, g.first.task) for g in groups if g.first.teacher]
    for teacher, student, task in dict.fromkeys(pairs):
        here = [(g.first.teacher, g.first.network, g) for g in groups if g.first.task == task]
        teachers = [g for *of, g in here if of == [None, teacher] and teacher != student]
        alone = [g for *of, g in here if of == [None, student]]
        distilled = [g for *of, g in here if of == [teacher, student]]
        told = [setting for setting in shared_settings(teachers + alone + distilled) if setting not in common]
        named = [(name(g, "teacher", told), g) for g in teachers]
        named += [(name(g, g.first.method, told), g) for g in alone + distilled]
        title = ", ".join([f"{teacher} → {student}", *told])
        found.append(Section(title, teacher, student, ", ".join(told) or None, named))
        placed += teachers + alone
    left = [(name(g, f"{g.first.network} alone"), g) for g in groups if not g.first.teacher and g not in placed]
    return found + ([Section("Networks alone", None, None, None, left)] if left else [])
