"""Runs on disk, found and read."""

import csv
import json
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from run import identity

from reporting import published

TASK = ("dataset", "train_limit", "val_limit", "holdout", "epoch", "batch_size")
"""What two runs share whose costs and accuracies may be compared."""

RESULT = {"best_acc", "best_epoch", "last_acc", "teacher_queries", "train_macs", "train_seconds"}
UNMIXED = 1000  # from this steepness on, and with b the whole batch, no image is mixed to speak of


class NotARun(ValueError):
    """A folder that holds no run. The message says why."""


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
