"""Finished runs grouped over seeds, named, compared with KD and set in sections: what report.py and figures.py show."""

import re
import shlex
from dataclasses import dataclass, field
from statistics import mean, stdev

from run import WITHOUT_EFFECT, own_name, written

from reporting import published
from reporting.results import RunFolder, is_number

LOSSES = ("T", "kd_weight", "ce_weight", "other_distill")
NOT_NAMED = {
    *WITHOUT_EFFECT,
    "seed",
    "precision",
    "teacher_path",
    "teacher_ckpt",
    "teacher_arch",
    "arch",
    "student_arch",
}


@dataclass
class Group:
    """Finished runs that differ in the seed alone."""

    runs: list[RunFolder]
    words: list[str] = field(default_factory=list)  # its settings that are not the published ones, see group()

    def __getattr__(self, name):
        if name in ("network", "teacher", "method", "task", "program", "settings", "config"):
            return getattr(self.runs[0], name)
        raise AttributeError(name)

    @property
    def seeds(self):
        return [run.settings["seed"] for run in self.runs]

    def values(self, name):
        """A number of result.json for each run that has it."""
        return [run.result[name] for run in self.runs if is_number(run.result.get(name))]

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
        if unlike_published(self.runs[0]):
            return None
        if self.method != "alone":
            standard = re.fullmatch(rf"teacher_{self.teacher}(_seed\d+)?", own_name(self.settings["teacher_path"]))
            if not standard or self.settings["teacher_ckpt"] != "best":
                return None
        return published.accuracy(self.network, self.method, self.teacher)

    @property
    def command(self):
        """The shell command that repeats the runs: their settings that are not the default, and the method's always."""
        defaults, words = published.DEFAULTS[self.program], []
        always = {"arch", "teacher_path", "student_arch", "strategy", "k", "b", "w", "lr"}
        for flag, value in self.settings.items():
            shared = all(run.settings[flag] == value for run in self.runs)
            known = flag in defaults and flag not in ("seed", "fresh", "debug")
            if not (known and shared and (flag in always or value != defaults[flag])):
                continue
            name = f"--{flag.replace('_', '-')}"
            if isinstance(value, list):
                words += [name, *map(str, value)]
            elif str(value).startswith("-"):
                words.append(f"{name}={value}")
            else:
                words += [name, written(value)]
        line = f"python {self.program} {shlex.join(words)} --seed"
        if len(self.seeds) == 1:
            return f"{line} {self.seeds[0]}"
        return f"for seed in {' '.join(map(str, self.seeds))}; do {line} $seed; done"


def unlike_published(run):
    """[(flag, value)] of the settings that change a result and are not those of the published run."""
    recipe = published.recipe(run.program, run.network, run.method, run.settings["batch_size"])
    unlike = [(f, v) for f, v in run.settings.items() if f not in NOT_NAMED and f in recipe and v != recipe[f]]
    return [(f, v) for f, v in unlike if not (f == "strategy" and run.method == "random")]


def group(runs):
    """The finished runs as Groups: alone, then by teacher, student and method. Sets each group's `words`."""
    by_key = {}
    for run in runs:
        if run.result is not None:
            by_key.setdefault(run.key, []).append(run)
    groups = [Group(sorted(same, key=lambda run: run.settings["seed"])) for same in by_key.values()]
    teachers = {}
    for g in groups:
        teachers.setdefault(g.teacher, set()).add(g.config.get("teacher_sha256"))
    for g in groups:
        for flag, value in unlike_published(g.runs[0]):
            values = value if isinstance(value, list) else [value]
            g.words.append(f"{flag} {' '.join(map(written, values)) or 'none'}")
        g.words.append(f"precision {g.config.get('precision')}")
        if g.teacher and len(teachers[g.teacher]) > 1:
            g.words.append(f"teacher {str(g.config.get('teacher_sha256'))[:8]}")
    order = ("alone", "KD", "UNIX", "random")
    return sorted(groups, key=lambda g: (g.teacher or "", g.network, order.index(g.method), len(g.words), g.words))


def shared_words(groups):
    """The settings that all groups share, in order."""
    first, *others = groups
    return [word for word in first.words if all(word in g.words for g in others)]


def label(g, without):
    """A group's method and those of its settings that are not in `without`."""
    return ", ".join([g.method, *(word for word in g.words if word not in without)])


def kd_of(g, groups):
    """The KD that a group's cost is compared with: of the same network, task and teacher, where there are several that
    of the same losses, else of the published ones. None unless just one fits. Runs alone take any teacher's."""
    fitting = [
        kd
        for kd in groups
        if kd.method == "KD"
        and (kd.network, kd.task) == (g.network, g.task)
        and g.teacher in (None, kd.teacher)
        and g.config.get("teacher_sha256") in (None, kd.config.get("teacher_sha256"))
    ]
    for losses in (g.settings, published.DEFAULTS["student_v0.py"]):
        alike = [kd for kd in fitting if all(kd.settings[flag] == losses.get(flag) for flag in LOSSES)]
        fitting = alike or fitting
    return fitting[0] if len(fitting) == 1 else None


def of_kd(g, kd, name):
    """A mean of `g` in percent of its KD's, None where either is missing. Times are compared on like machines only."""
    if kd is None or (name == "train_seconds" and machine(g) != machine(kd)):
        return None
    ours, theirs = g.mean(name), kd.mean(name)
    return 100 * ours / theirs if ours is not None and theirs else None


def machine(g):
    return {(run.config.get("device"), run.config.get("precision")) for run in g.runs}


@dataclass
class Section:
    """A teacher and a student on one task, with every group that belongs to them: a part of the paper's table."""

    teacher: str | None  # None: networks that no pair of the report contains
    student: str | None
    words: list[str]  # settings that all its groups share and other sections do not
    rows: list[tuple[str, Group]]  # (label, group); the teacher's own training has the label "teacher"

    @property
    def title(self):
        pair = f"{self.teacher} → {self.student}" if self.teacher else "Networks alone"
        return ", ".join([pair, *self.words])

    @property
    def teacher_acc(self):
        """Of the teacher that was distilled from, in percent on the validation images; None where no run tells."""
        values = {g.mean("teacher_acc") for _, g in self.rows if g.teacher} - {None}
        return values.pop() if len(values) == 1 else None


def sections(groups):
    """The groups by pair and task. A network alone stands in every pair that it belongs to."""
    common = shared_words(groups)
    pairs = dict.fromkeys((g.teacher, g.network, g.task) for g in groups if g.teacher)
    found, placed = [], []
    for teacher, student, task in pairs:
        distilled = [g for g in groups if (g.teacher, g.network, g.task) == (teacher, student, task)]
        networks = [g for g in groups if g.teacher is None and g.task == task and g.network in (teacher, student)]
        networks.sort(key=lambda g: g.network != teacher)
        placed += networks
        words = [word for word in shared_words(distilled) if word not in common]
        rows = [("teacher" if g.network == teacher != student else label(g, common + words), g) for g in networks] + [
            (label(g, common + words), g) for g in distilled
        ]
        found.append(Section(teacher, student, words, rows))
    left = [g for g in groups if g.teacher is None and g not in placed]
    if left:
        rows = [(f"{g.network} {label(g, common)}", g) for g in left]
        found.append(Section(None, None, [], rows))
    return found
