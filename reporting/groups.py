"""Finished runs grouped over seeds, named, compared with KD and set in sections: what tables and figures show."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

from engine.run import format_value, teacher_name
from reporting import published
from reporting.results import RunFolder

PROGRAMS = {"teacher": "teacher.py", "student": "student_v0.py"}  # of a run's kind
LOSSES = ("T", "kd_weight", "ce_weight", "other_distill")
NOT_NAMED = {"seed", "precision", "arch", "student_arch", "teacher_arch"}  # told elsewhere than among the settings
ALWAYS_GIVEN = {"arch", "teacher_path", "student_arch", "strategy", "k", "b", "w", "lr"}  # in a command
NEVER_GIVEN = {"seed", "fresh", "debug"}


@dataclass
class Group:
    """Finished runs that differ in the seed alone."""

    runs: list[RunFolder]  # by seed
    settings: list[str] = field(default_factory=list)  # "flag value" where not as published, see group()

    @property
    def first(self):
        """The run that tells what all of them share."""
        return self.runs[0]

    def values(self, name):
        """A number of result.json for each run that has it."""
        return [run.result[name] for run in self.runs if run.result.get(name) is not None]

    def mean(self, name):
        """Mean over the seeds of a number of result.json, None where no run has it."""
        values = self.values(name)
        return mean(values) if values else None

    def spread(self, name):
        """Sample standard deviation over the seeds, None for fewer than two."""
        values = self.values(name)
        return stdev(values) if len(values) > 1 else None

    @property
    def teacher_hash(self):
        return self.first.config.get("teacher_sha256")

    @property
    def published(self):
        """The published accuracy, None unless these runs follow the published recipe in full.

        Of the teacher only the folder's name tells whether it does: it carries every setting that is not the default.
        """
        run = self.first
        if run.teacher:
            folder, checkpoint = teacher_name(Path(run.config["teacher_file"]))
            if checkpoint != "best" or not re.fullmatch(rf"teacher_{run.teacher}(_seed\d+)?", folder):
                return None
        return None if unlike_published(run) else published.accuracy(run)

    @property
    def command(self):
        """The shell command that repeats the runs: their settings that are not the default, and the method's always."""
        run = self.first
        words = ["python", PROGRAMS[run.config["kind"]]]
        for flag, value in run.settings.items():
            shared = all(other.settings[flag] == value for other in self.runs)
            if shared and flag not in NEVER_GIVEN and (flag in ALWAYS_GIVEN or value != run.defaults[flag]):
                words += [f"--{flag.replace('_', '-')}", *as_words(value)]
        line = f"{shlex.join(words)} --seed"
        if len(self.runs) == 1:
            return f"{line} {run.seed}"
        return f"for seed in {' '.join(str(run.seed) for run in self.runs)}; do {line} $seed; done"


def as_words(value):
    """A flag's value as a command line has it: several words for a list, none for a switch."""
    values = [] if value is True else value if isinstance(value, list) else [value]
    return [format_value(each) if isinstance(each, float) else str(each) for each in values]


def unlike_published(run):
    """["flag value"] of the settings that change a result and are not those of the published run."""
    recipe, settings = published.recipe(run), run.config["effective_settings"]
    unlike = [flag for flag in settings if flag in recipe and flag not in NOT_NAMED and settings[flag] != recipe[flag]]
    return [f"{flag} {' '.join(as_words(settings[flag])) or ('on' if settings[flag] else 'none')}" for flag in unlike]


def group(runs):
    """The finished runs as Groups: alone, then by teacher, student and method. Sets each group's `settings`."""
    by_key = {}
    for run in sorted(runs, key=lambda run: run.seed):
        if run.result is not None:
            by_key.setdefault(run.key, []).append(run)
    groups = [Group(same) for same in by_key.values()]
    for g in groups:
        g.settings = [*unlike_published(g.first), f"precision {g.first.config['precision']}"]
        if len({other.teacher_hash for other in groups if other.first.teacher == g.first.teacher}) > 1:
            g.settings.append(f"teacher {g.teacher_hash[:8]}")
    order = ("alone", "KD", "UNIX", "random")

    def place(g):
        return g.first.teacher or "", g.first.network, order.index(g.first.method), len(g.settings), g.settings

    return sorted(groups, key=place)


def shared_settings(groups):
    """The settings that all groups share, in order."""
    return [setting for setting in groups[0].settings if all(setting in g.settings for g in groups)]


def name(g, without):
    """A group's method and those of its settings that are not in `without`."""
    return ", ".join([g.first.method, *(setting for setting in g.settings if setting not in without)])


def kd_baseline(g, groups):
    """The KD that a group's cost is compared with: of the same network, task and teacher, where there are several that
    of the same losses, else of the published ones. None unless just one fits. Runs alone take any teacher's."""
    fitting = [
        kd
        for kd in groups
        if (kd.first.method, kd.first.network, kd.first.task) == ("KD", g.first.network, g.first.task)
        and g.teacher_hash in (None, kd.teacher_hash)
    ]
    alike = [kd for kd in fitting if all(kd.first.settings[f] == g.first.settings.get(f) for f in LOSSES)]
    plain = [kd for kd in fitting if all(kd.first.settings[f] == kd.first.defaults[f] for f in LOSSES)]
    fitting = alike or plain or fitting
    return fitting[0] if len(fitting) == 1 else None


def relative_to_kd(g, kd, column):
    """A mean of `g` in percent of its KD's, None where either is missing. Times are compared on like machines only."""
    if kd is None:
        return None
    machines = [{(run.config["device"], run.config["precision"]) for run in each.runs} for each in (g, kd)]
    own, of_kd = g.mean(column), kd.mean(column)
    if own is None or not of_kd or (column == "train_seconds" and machines[0] != machines[1]):
        return None
    return 100 * own / of_kd


@dataclass
class Section:
    """A teacher and a student on one task, with every group that belongs to them: a part of the paper's table."""

    teacher: str | None  # None: networks that no pair of the report contains
    student: str | None
    settings: list[str]  # that all its groups share and other sections do not
    named: list[tuple[str, Group]]  # the teacher's own training has the name "teacher"

    @property
    def title(self):
        pair = f"{self.teacher} → {self.student}" if self.teacher else "Networks alone"
        return ", ".join([pair, *self.settings])


def sections(groups):
    """The groups by pair and task. A network alone stands in every pair that it belongs to."""
    common, alone = shared_settings(groups), [g for g in groups if not g.first.teacher]
    pairs, found, placed = {}, [], []
    for g in groups:
        if g.first.teacher:
            pairs.setdefault((g.first.teacher, g.first.network, g.first.task), []).append(g)
    for (teacher, student, task), distilled in pairs.items():
        networks = [g for g in alone if g.first.task == task and g.first.network in (teacher, student)]
        networks.sort(key=lambda g: g.first.network != teacher)
        placed += networks
        settings = [setting for setting in shared_settings(distilled) if setting not in common]
        named = [(name(g, common + settings), g) for g in networks + distilled]
        if teacher != student:
            named = [("teacher" if g.first.network == teacher else text, g) for text, g in named]
        found.append(Section(teacher, student, settings, named))
    left = [(f"{g.first.network} {name(g, common)}", g) for g in alone if g not in placed]
    return found + ([Section(None, None, [], left)] if left else [])
