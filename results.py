"""Runs on disk: found, read, grouped over seeds, named and compared. What report.py tabulates and figures.py draws."""

import csv
import json
import math
import os
import re
import shlex
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev

import published
from run import WITHOUT_EFFECT, identity, own_name, written

TASK = ("dataset", "train_limit", "val_limit", "holdout", "epoch", "batch_size")
"""What two runs share whose costs and accuracies may be compared."""

LOSSES = ("T", "kd_weight", "ce_weight", "other_distill")
RESULT = {"best_acc", "best_epoch", "last_acc", "teacher_queries", "train_macs", "train_seconds"}
UNMIXED = 1000  # from this steepness on, and with b the whole batch, no image is mixed to speak of
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


class NotARun(ValueError):
    """A folder that holds no run. The message says why."""


# --------------------------------------------------------------------------------------------------------- reading


@dataclass
class RunFolder:
    """One run as its folder tells it."""

    folder: Path
    config: dict
    result: dict | None  # None: unfinished

    @classmethod
    def read(cls, folder):
        """Raises NotARun where config.json or result.json is damaged or not of these programs."""
        config = read_object(folder / "config.json")
        settings = config.get("settings")
        if not isinstance(settings, dict):
            raise NotARun("config.json is not of these programs")
        numbers, names = ["epoch", "batch_size", "seed"], [settings.get("arch")]
        if "student_arch" in settings:
            numbers += ["strategy", "k", "b", "w"]
            names = [settings["student_arch"], config.get("teacher_arch"), settings.get("teacher_path")]
        if not all(is_number(settings.get(flag)) for flag in numbers) or not all(isinstance(n, str) for n in names):
            raise NotARun("config.json is not of these programs")
        if not (folder / "result.json").exists():
            return cls(folder, config, None)
        result = read_object(folder / "result.json")
        if "arch" in settings:
            result = {"teacher_queries": 0, **result}
        missing = sorted(name for name in RESULT if not is_number(result.get(name)))
        if missing:
            raise NotARun(f"result.json has no {', '.join(missing)}")
        return cls(folder, config, result)

    @property
    def program(self):
        return "student_v0.py" if "student_arch" in self.config["settings"] else "teacher.py"

    @cached_property
    def settings(self):
        """Every flag's value; what the run's code did not know yet is the default."""
        return {**published.DEFAULTS[self.program], **self.config["settings"]}

    @property
    def network(self):
        return self.settings.get("student_arch") or self.settings["arch"]

    @property
    def teacher(self):
        return self.config.get("teacher_arch")

    @property
    def method(self):
        """ "alone", "KD" (all kept and in effect unmixed), "UNIX" or "random" (reduced, but not by uncertainty)."""
        if self.program == "teacher.py":
            return "alone"
        s = self.settings
        if (s["strategy"], s["k"], s["b"]) == (0, s["batch_size"], s["batch_size"]) and s["w"] >= UNMIXED:
            return "KD"
        return "UNIX" if s["strategy"] else "random"

    @property
    def key(self):
        """What decides the result, the seed apart: runs that share it are repetitions of each other."""
        decisive = {**identity({**self.config, "settings": self.settings}), "teacher": self.teacher, "seed": None}
        return json.dumps([self.program, decisive], sort_keys=True)

    @property
    def task(self):
        return tuple(self.settings[flag] for flag in TASK)

    @cached_property
    def metrics(self):
        """{column: [value an epoch, nan where there is none]} of metrics.csv, empty where it cannot be read."""
        try:
            with (self.folder / "metrics.csv").open(newline="") as file:
                header, *rows = csv.reader(file)
            columns = zip(*([float(cell or "nan") for cell in row] for row in rows if len(row) == len(header)))
            return dict(zip(header, map(list, columns)))
        except (OSError, ValueError):
            return {}


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_object(path):
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise NotARun(f"no {path.name}") from None
    except (OSError, ValueError):
        raise NotARun(f"{path.name} is damaged") from None
    if not isinstance(content, dict):
        raise NotARun(f"{path.name} is not of these programs")
    return content


def find(folders):
    """The runs in and below `folders`, and a line about each folder that was passed over: (RunFolders, lines).

    A run found twice counts once, and of runs of the same settings and seed the first by name.
    """
    runs, passed_over, seen, held = [], [], set(), {}
    for given in folders:
        found = list(candidates(given))
        if not found:
            passed_over.append(f"{given}: {'no run in it' if given.is_dir() else 'no such folder'}")
        for folder in found:
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            try:
                run = RunFolder.read(folder)
            except NotARun as e:
                passed_over.append(f"{folder}: {e}, passed over")
                continue
            same = held.setdefault((run.key, run.settings["seed"], run.result is None), folder)
            if same is folder:
                runs.append(run)
            else:
                passed_over.append(f"{folder}: same settings and seed as {same}, passed over")
    return runs, passed_over


def candidates(folder):
    """`folder` itself where it looks like a run, else those below it that do."""
    for path, below, files in os.walk(folder):
        below.sort()
        if "ckpt" in below or {"config.json", "result.json", "metrics.csv"} & set(files):
            below.clear()
            yield Path(path)


# -------------------------------------------------------------------------------------------------------- grouping


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
