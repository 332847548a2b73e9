"""Runs on disk, found and read."""

import csv
import json
import os
from functools import cached_property
from pathlib import Path

from engine.run import RESULT_KEYS, read_json

CONFIG_KEYS = {"kind", "arch", "settings", "defaults", "effective_settings", "precision"}
TASK = ("dataset", "train_limit", "val_limit", "holdout", "epoch", "batch_size")  # alike where costs are compared
UNMIXED = 1000  # from this steepness on, and with b the whole batch, no image is mixed to speak of


class NotARun(ValueError):
    """A folder that holds no run. The message says why."""


class RunFolder:
    """One run as its folder tells it; without a result it is unfinished.

    Raises NotARun where config.json or result.json is damaged or not of these programs.
    """

    def __init__(self, folder):
        self.folder, self.config, self.result = folder, read_dict(folder / "config.json", CONFIG_KEYS), None
        if (folder / "result.json").exists():
            self.result = read_dict(folder / "result.json", RESULT_KEYS)
        self.settings, self.defaults = self.config["settings"], self.config["defaults"]
        self.network, self.teacher = self.config["arch"], self.config.get("teacher_arch")  # None: trained alone
        self.seed, self.task = self.settings["seed"], tuple(self.settings[flag] for flag in TASK)
        decisive = {**self.config["effective_settings"], "precision": self.config["precision"], "seed": None}
        self.key = json.dumps(decisive, sort_keys=True)  # runs that share it are repetitions of each other

    @property
    def method(self):
        """ "alone", "KD" (all kept and in effect unmixed), "UNIX" or "random" (reduced, but not by uncertainty)."""
        s = self.settings
        if self.config["kind"] == "teacher":
            return "alone"
        if (s["strategy"], s["k"], s["b"]) == (0, s["batch_size"], s["batch_size"]) and s["w"] >= UNMIXED:
            return "KD"
        return "UNIX" if s["strategy"] else "random"

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


def read_dict(path, keys):
    content = read_json(path)
    if not isinstance(content, dict):
        raise NotARun(f"{path.name} is missing or damaged")
    if missing := keys - set(content):
        raise NotARun(f"{path.name} has no {', '.join(sorted(missing))}")
    return content


def find(folders):
    """The runs in and below `folders`, and a line about each folder that was passed over: (RunFolders, lines).

    A run found twice counts once, and of runs of the same settings and seed the first by name.
    """
    paths, runs, passed_over, first = {}, [], [], {}
    for folder in folders:
        below = {path.resolve(): path for path in candidates(folder)}
        paths = below | paths
        if not below:
            passed_over.append(f"{folder}: no run there")
    for path in sorted(paths.values()):
        try:
            run = RunFolder(path)
        except NotARun as e:
            passed_over.append(f"{path}: {e}, passed over")
            continue
        same = first.setdefault((run.key, run.seed, run.result is None), path)
        if same is path:
            runs.append(run)
        else:
            passed_over.append(f"{path}: same settings and seed as {same}, passed over")
    return runs, passed_over


def candidates(folder):
    """`folder` itself where it looks like a run, else those below it that do."""
    for path, below, files in os.walk(folder):
        if "ckpt" in below or {"config.json", "result.json", "metrics.csv"} & set(files):
            below.clear()
            yield Path(path)
