"""Runs on disk, found and read."""

import csv
import json
from functools import cached_property

from engine.run import RESULT_KEYS, read_json

CONFIG_KEYS = set("command kind arch settings defaults effective_settings precision device".split())
TASK = ("dataset", "train_limit", "val_limit", "holdout", "batch_size")  # alike in a section
UNMIXED = 1000  # from this w on, and with b the whole batch, no image is mixed to speak of


class RunFolder:
    """One run as its folder tells it; without a result it is unfinished. Raises ValueError where it is none."""

    def __init__(self, folder):
        self.folder, self.config, self.result = folder, read_dict(folder / "config.json", CONFIG_KEYS), None
        if (folder / "result.json").exists():
            self.result = read_dict(folder / "result.json", RESULT_KEYS)
        self.settings, self.defaults = self.config["settings"], self.config["defaults"]
        self.network, self.teacher = self.config["arch"], self.config.get("teacher_arch")  # None: trained alone
        self.teacher_hash = self.config.get("teacher_sha256")
        self.processes = self.config.get("world_size", 1)  # batch norm sees the share of one
        self.machine = f"{self.config['device']}, {self.config['precision']}"  # alike where times are compared
        if self.processes > 1:
            self.machine += f", {self.processes} processes"
        self.seed, self.task = self.settings["seed"], tuple(self.settings[flag] for flag in TASK)
        self.budget = self.network, self.task, self.settings["epoch"]  # alike where costs are compared
        # Runs that share it repeat each other, also where --precision auto chose differently: that is but rounding.
        # Without defaults: a flag may be younger than the run.
        effective = self.config["effective_settings"].items()
        decisive = {flag: value for flag, value in effective if value != self.defaults.get(flag)}
        decisive |= {"processes": self.processes, "seed": None}
        self.key = json.dumps(decisive, sort_keys=True)

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
    if not isinstance(content, dict) or keys - set(content):
        raise ValueError(f"{path.name} is missing, damaged or not of these programs")
    return content


def find(folders):
    """The runs in and below `folders`, and a line about each folder that was passed over: (RunFolders, lines).

    A run found twice counts once, and of runs of the same settings and seed the one that lies highest (one's own before
    those in experiments/results/), then the first by name.
    """
    paths, runs, passed_over = {}, {}, []
    for folder in folders:
        signs = [path for sign in ("config.json", "result.json", "ckpt") for path in folder.rglob(sign)]
        paths = {path.parent.resolve(): path.parent for path in signs} | paths
        if not signs:
            passed_over.append(f"{folder}: no run there")
    for path in sorted(paths.values(), key=lambda path: (len(path.parts), path)):
        try:
            run = RunFolder(path)
        except (ValueError, OSError) as e:
            passed_over.append(f"{path}: {e}, passed over")
            continue
        first = runs.setdefault((run.key, run.seed, run.result is None), run)
        if first is not run:
            passed_over.append(f"{path}: same settings and seed as {first.folder}, passed over")
    return list(runs.values()), passed_over
