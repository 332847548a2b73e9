"""Finished runs, found on disk and read. Whatever is wrong with a run shows here, and nowhere later."""

import csv
import os
import re
import shlex
from collections.abc import Iterable
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from engine.files import read_json
from engine.run import ROOT, format_value
from models import teacher_name
from reporting import published

BUNDLED = ROOT / "experiments" / "results"
NUMBERS = ("best_acc", "last_acc", "teacher_queries", "train_seconds", "train_macs", "train_macs_usual")
OPTIONAL = ("test_acc_best", "test_acc_last", "computation", "computation_usual")  # not in every result.json
TEACHER_RECIPE = "epoch batch_size lr momentum weight_decay gamma milestones dataset train_limit holdout".split()


def safe(value: object) -> str:
    """A text of sound length without control characters, line ends and bytes that are not UTF-8."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(value)[:1000])


def as_text(value: Any) -> str:
    """A setting as it is typed, a list as its words."""
    return safe(" ".join(map(format_value, value if isinstance(value, list) else [value])) or "none")


def number(value: Any) -> float:
    if not 0 <= float(value) < 1e30:
        raise ValueError(f"it holds the number {value}")
    return float(value)


def method_of(settings: dict[str, str]) -> tuple[str, dict[str, str]]:
    """The method that a student's settings amount to, and the settings that make it this method."""
    n = settings["batch_size"]
    unmixed = {"strategy": "0", "b": n, "w": "1000"}
    methods = {"KD": unmixed | {"k": n}, "random, unmixed": unmixed, "random, mixed": {"strategy": "0"}, "UNIX": {}}
    return next((name, of_method) for name, of_method in methods.items() if of_method.items() <= settings.items())


def read_selected(path: Path, held_out: int) -> np.ndarray | None:
    """In how many percent of the epochs images were selected: (101,) quantiles, the highest first. None without a file.

    Images that were held out could not be selected. They are among the smallest counts.
    """
    if not path.exists():
        return None
    counter = np.load(path, mmap_mode="r")
    counts = np.sort(counter.sum(0, dtype=np.int64))[held_out:]
    with np.errstate(all="raise"):
        return np.quantile(100 * counts / len(counter), np.linspace(1, 0, 101))


class FinishedRun:
    """What the report needs of a run. Its texts are safe to print, its numbers are finite, or nan where it has none.

    Raises any Exception unless the folder, which may hold anything, holds a sound finished run.
    """

    def __init__(self, folder: Path):
        for name in ("config.json", "result.json", "metrics.csv", "counter.npy"):
            if os.path.lexists(folder / name) and not (folder / name).is_file():
                raise ValueError(f"its {name} is no file")  # reading a pipe would wait for ever
        self.folder = folder
        config = read_json(folder / "config.json")
        settings = {safe(flag): as_text(value) for flag, value in config["effective_settings"].items()}
        defaults = {safe(flag): as_text(value) for flag, value in config["defaults"].items()}
        self.seed = int(settings["seed"])
        self.epochs = int(settings["epoch"])
        self.machine = f"{as_text(config['device'])}, {as_text(config['precision'])}"  # times compare where it is alike
        command = shlex.join(shlex.split(str(config["command"])))
        self.command = safe(re.sub(r" --(fresh|debug|(seed|gpu-id)[ =]\S+)(?= |$)", "", command))

        result = read_json(folder / "result.json")
        if result is None:
            raise ValueError("unfinished")
        self.numbers = {name: number(result[name]) for name in NUMBERS}
        self.numbers |= {name: nan if result.get(name) is None else number(result[name]) for name in OPTIONAL}
        if min(self.numbers[name] for name in ("train_seconds", "train_macs", "train_macs_usual")) < 1e-6:
            raise ValueError("it cost nothing")  # and nothing can be compared with it
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self.accuracies = [number(row["val/cls_acc"]) for row in rows]
        self.numbers["train_acc"] = number(rows[-1].get("train/acc") or rows[-1].get("train/cls_acc"))
        self.selected = read_selected(folder / "counter.npy", int(settings["holdout"]))

        # `deviations` are the settings that are not the method's published ones.
        self.network = as_text(config["arch"])
        self.teacher = as_text(config["teacher_arch"]) if config["kind"] == "student" else None
        self.teacher_hash = as_text(config["teacher_sha256"]) if self.teacher else ""
        self.given = dict(config["settings"])
        self.teacher_settings = config.get("teacher_settings")  # what its teacher's run was given; None if downloaded
        self.method, of_method = method_of(settings) if self.teacher else ("alone", {})
        recipe = defaults | {"lr": published.learning_rate(self.network, defaults["lr"])} | of_method
        compared = settings.keys() & recipe.keys() - {"seed", "arch", "student_arch", "teacher_arch"}
        self.deviations = {flag: settings[flag] for flag in sorted(compared) if settings[flag] != recipe[flag]}
        as_published = not self.deviations.keys() - {"precision"}
        if self.teacher:
            label, checkpoint = map(safe, teacher_name(Path(config["teacher_file"])))
            label = label.removeprefix("teacher_") + ("" if checkpoint == "best" else f" {checkpoint}")
            if label != self.teacher:
                self.deviations["teacher"] = label
            own = self.teacher_settings
            if isinstance(own, dict):
                changed = [flag for flag in TEACHER_RECIPE if as_text(own.get(flag)) != defaults[flag]]
                as_published = as_published and not changed and checkpoint == "best"
        accuracy = published.accuracy(self.network, self.teacher, self.method)
        self.published = accuracy if as_published else nan

        # Runs with other data stand in another table. Runs of the same settings differ in the seed alone, or in the
        # precision that --precision auto chose.
        self.data = tuple(self.deviations.get(flag) for flag in ("dataset", "train_limit", "val_limit", "holdout"))
        deviations = tuple(self.deviations.items())
        self.settings = self.teacher or "", self.network, self.method, deviations, self.teacher_hash


def find(folders: Iterable[Path]) -> tuple[list[FinishedRun], list[str]]:
    """Read the runs in and below some folders, also behind links.

    Returns the runs, and a line about each folder that was passed over. A run that is found twice counts once. Of two
    runs of the same settings and seed the first counts, and our bundled runs come last.
    """
    paths, passed_over, seen, runs = [], [], set(), {}

    def pass_over(path: object, reason: object) -> None:
        passed_over.append(f"{safe(path)}: {safe(reason)}, passed over")

    for top in folders:
        for folder, subfolders, files in os.walk(top, onerror=lambda e: pass_over(e.filename, e), followlinks=True):
            if os.path.realpath(folder) in seen:
                subfolders.clear()  # links may lead in a circle
                continue
            seen.add(os.path.realpath(folder))
            if {"config.json", "result.json"} & set(files):
                paths.append(Path(folder))
    for path in sorted(paths, key=lambda path: (path.resolve().is_relative_to(BUNDLED), path)):
        try:
            run = FinishedRun(path)
        except Exception as e:  # files may hold anything; the other runs are shown
            pass_over(path, e if type(e) is ValueError else f"damaged or not of these programs ({e!r})")
            continue
        first = runs.setdefault((run.settings, run.seed), run)
        if first is not run:
            pass_over(path, f"same settings and seed as {first.folder}")
    return list(runs.values()), passed_over
