"""Finished runs grouped over seeds, named, compared with KD and set in sections: what tables and figures show."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

from engine.run import format_value, teacher_name
from reporting import published
from reporting.results import RunFolder

LOSSES = ("T", "kd_weight", "ce_weight", "other_distill")
NOT_NAMED = {"seed", "precision", "arch", "student_arch", "teacher_arch"}  # told elsewhere than among the settings
ALWAYS_GIVEN = {"arch", "teacher_path", "student_arch", "strategy", "k", "b", "w", "lr"}  # in a command


@dataclass
class Group:
    """Finished runs that differ in the seed alone."""

    runs: list[RunFolder]
    settings: list[str] = field(default_factory=list)  # "flag value" where not as published, see group()

    @property
    def first(self):
        """The run that stands for all in what they share."""
        return self.runs[0]

    @property
    def seeds(self):
        return [run.settings["seed"] for run in self.runs]

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
    def published(self):
        """The published accuracy, None unless these runs follow the published recipe in full.

        Of the teacher only the folder's name tells whether it does: it carries every setting that is not the default.
        """
        run = self.first
        if unlike_published(run):
            return None
        if run.method != "alone":
            folder, checkpoint = teacher_name(Path(run.config["teacher_file"]))
            if checkpoint != "best" or not re.fullmatch(rf"teacher_{run.teacher}(_seed\d+)?", folder):
                return None
        return published.accuracy(run.network, run.method, run.teacher)

    @property
    def command(self):
        """The shell command that repeats the runs: their settings that are not the default, and the method's always."""
        words = []
        for flag, value in self.first.settings.items():
            shared = all(run.settings[flag] == value for run in self.runs)
            given = flag in ALWAYS_GIVEN or value != self.first.defaults[flag]
            if shared and given and flag not in ("seed", "fresh", "debug"):
                words += [f"--{flag.replace('_', '-')}", *as_words(value)]
        program = {"teacher": "teacher.py", "student": "student_v0.py"}[self.first.config["kind"]]
        line = f"python {program} {shlex.join(words)} --seed"
        if len(self.seeds) == 1:
            return f"{line} {self.seeds[0]}"
        return f"for seed in {' '.join(map(str, self.seeds))}; do {line} $seed; done"


def as_words(value):
    """A flag's value as a command line has it: several words for a list, none for a switch."""
    if value is True:
        return []
    return [format_value(each) for each in (value if isinstance(value, list) else [value])]


def unlike_published(run):
    """["flag value"] of the settings that change a result and are not those of the published run."""
    recipe = published.recipe(run)
    return [
        f"{flag} {' '.join(as_words(value)) or ('on' if value else 'none')}"
        for flag, value in run.config["effective_settings"].items()
        if flag in recipe and flag not in NOT_NAMED and value != recipe[flag]
    ]


def group(runs):
    """The finished runs as Groups: alone, then by teacher, student and method. Sets each group's `settings`."""
    by_key = {}
    for run in runs:
        if run.result is not None:
            by_key.setdefault(run.key, []).append(run)
    groups = [Group(sorted(same, key=lambda run: run.settings["seed"])) for same in by_key.values()]
    teachers = {}
    for g in groups:
        teachers.setdefault(g.first.teacher, set()).add(teacher_hash(g))
    for g in groups:
        g.settings = [*unlike_published(g.first), f"precision {g.first.config['precision']}"]
        if g.first.teacher and len(teachers[g.first.teacher]) > 1:
            g.settings.append(f"teacher {teacher_hash(g)[:8]}")
    order = ("alone", "KD", "UNIX", "random")

    def place(g):
        return g.first.teacher or "", g.first.network, order.index(g.first.method), len(g.settings), g.settings

    return sorted(groups, key=place)


def teacher_hash(g):
    """Of the teacher's weights, None for a network alone."""
    return g.first.config.get("teacher_sha256")


def shared_settings(groups):
    """The settings that all groups share, in order."""
    first, *others = groups
    return [setting for setting in first.settings if all(setting in g.settings for g in others)]


def name(g, without):
    """A group's method and those of its settings that are not in `without`."""
    return ", ".join([g.first.method, *(setting for setting in g.settings if setting not in without)])


def kd_baseline(g, groups):
    """The KD that a group's cost is compared with: of the same network, task and teacher, where there are several that
    of the same losses, else of the published ones. None unless just one fits. Runs alone take any teacher's."""

    def losses(settings):
        return [settings.get(flag) for flag in LOSSES]

    fitting = [
        kd
        for kd in groups
        if kd.first.method == "KD"
        and (kd.first.network, kd.first.task) == (g.first.network, g.first.task)
        and teacher_hash(g) in (None, teacher_hash(kd))
    ]
    alike = [kd for kd in fitting if losses(kd.first.settings) == losses(g.first.settings)]
    plain = [kd for kd in fitting if losses(kd.first.settings) == losses(kd.first.defaults)]
    fitting = alike or plain or fitting
    return fitting[0] if len(fitting) == 1 else None


def relative_to_kd(g, kd, column):
    """A mean of `g` in percent of its KD's, None where either is missing. Times are compared on like machines only."""
    if kd is None or (column == "train_seconds" and machines(g) != machines(kd)):
        return None
    own, of_kd = g.mean(column), kd.mean(column)
    return 100 * own / of_kd if own is not None and of_kd else None


def machines(g):
    return {(run.config.get("device"), run.config["precision"]) for run in g.runs}


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

    @property
    def teacher_acc(self):
        """Of the teacher that was distilled from, in percent on the validation images; None where no run tells."""
        values = {g.mean("teacher_acc") for _, g in self.named if g.first.teacher} - {None}
        return values.pop() if len(values) == 1 else None


def sections(groups):
    """The groups by pair and task. A network alone stands in every pair that it belongs to."""
    common = shared_settings(groups)
    pairs = dict.fromkeys((g.first.teacher, g.first.network, g.first.task) for g in groups if g.first.teacher)
    found, placed = [], []
    for teacher, student, task in pairs:
        distilled = [g for g in groups if (g.first.teacher, g.first.network, g.first.task) == (teacher, student, task)]
        alone = [g for g in groups if g.first.teacher is None and g.first.task == task]
        networks = [g for arch in dict.fromkeys((teacher, student)) for g in alone if g.first.network == arch]
        placed += networks
        settings = [setting for setting in shared_settings(distilled) if setting not in common]
        named = [(name(g, common + settings), g) for g in networks + distilled]
        if teacher != student:
            named = [("teacher" if g.first.network == teacher else text, g) for text, g in named]
        found.append(Section(teacher, student, settings, named))
    if left := [g for g in groups if g.first.teacher is None and g not in placed]:
        found.append(Section(None, None, [], [(f"{g.first.network} {name(g, common)}", g) for g in left]))
    return found
