"""Runs on disk, found and read."""

import csv
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from engine.run import RESULT_KEYS, read_json

CONFIG_KEYS = {"kind", "arch", "settings", "defaults", "effective_settings", "precision"}
TASK = ("dataset", "train_limit", "val_limit", "holdout", "epoch", "batch_size")
"""The settings that runs share whose costs and accuracies may be compared."""

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
        config = read_dict(folder / "config.json", CONFIG_KEYS)
        finished = (folder / "result.json").exists()
        return cls(folder, config, read_dict(folder / "result.json", RESULT_KEYS) if finished else None)

    @property
    def settings(self):
        return self.config["settings"]

    @property
    def defaults(self):
        return self.config["defaults"]

    @property
    def network(self):
        return self.config["arch"]

    @property
    def teacher(self):
        """The teacher's architecture, None for a network alone."""
        return self.config.get("teacher_arch")

    @property
    def method(self):
        """ "alone", "KD" (all kept and in effect unmixed), "UNIX" or "random" (reduced, but not by uncertainty)."""
        if self.config["kind"] == "teacher":
            return "alone"
        s = self.settings
        if (s["strategy"], s["k"], s["b"]) == (0, s["batch_size"], s["batch_size"]) and s["w"] >= UNMIXED:
            return "KD"
        return "UNIX" if s["strategy"] else "random"

    @property
    def key(self):
        """What decides the result, the seed apart: runs that share it are repetitions of each other."""
        decisive = {**self.config["effective_settings"], "precision": self.config["precision"], "seed": None}
        return json.dumps(decisive, sort_keys=True)

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


def read_dict(path, keys):
    content = read_json(path)
    if not isinstance(content, dict):
        raise NotARun(f"{path.name} is missing or damaged")
    if missing := sorted(set(keys) - set(content)):
        raise NotARun(f"{path.name} has no {', '.join(missing)}")
    return content


def find(folders):
    """The runs in and below `folders`, and a line about each folder that was passed over: (RunFolders, lines).

    A run found twice counts once, and of runs of the same settings and seed the first by name.
    """
    runs, passed_over, seen, first = [], [], set(), {}
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
            same = first.setdefault((run.key, run.settings["seed"], run.result is None), folder)
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
