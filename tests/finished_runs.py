"""Run folders as the programs leave them, without training: for the tests of report.py."""

import csv
import json
import os
import shlex
from unittest.mock import patch

import numpy as np
import torch

import student_v0
import teacher
from engine.run import make_config

_counters = {}


def config_of(program, line, teacher_arch=None):
    """What config.json holds of a command line."""
    parser = {"teacher.py": teacher, "student_v0.py": student_v0}[program].make_parser()
    args = parser.parse_args(shlex.split(line))
    more = {"kind": "teacher", "arch": getattr(args, "arch", None)}
    if teacher_arch:
        more = {
            "kind": "student",
            "arch": args.student_arch,
            "teacher_arch": teacher_arch,
            "teacher_file": f"{args.teacher_path}/ckpt/{args.teacher_ckpt}.pth",
            "teacher_sha256": f"of {args.teacher_path}",
        }
    with patch("engine.run.git_commit"):  # takes time
        config = make_config(parser, args, torch.device("cpu"), "bf16", **more)
    return {**config, "command": shlex.join([program, *shlex.split(line)]), "versions": None}


def make_run(folder, program, line, teacher_arch=None, epochs=2, finished=True, images=0, **result):
    """Write a run's files. line: its flags. epochs: rows of metrics.csv. images: columns of counter.npy, 0 for none.

    result: what of result.json differs from 70 % best and 69 % last.
    """
    folder.mkdir(parents=True)
    config = config_of(program, line, teacher_arch)
    settings = config["settings"]
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(settings["seed"])
    x = np.arange(1, epochs + 1) / epochs
    columns = {
        "epoch": range(1, epochs + 1),
        "val/cls_acc": 70 * x**0.3 + rng.normal(0, 0.5, epochs),
        "val/cls_loss": 3 - 2 * x**0.3 + rng.normal(0, 0.02, epochs),
        **{f"train/other{i}": x for i in range(12)},
    }
    if config["kind"] == "student":
        scored = np.arange(epochs) % settings["score_every"] == 0
        for i, part in enumerate(("select", "all", "else") if settings["strategy"] else ("select", "all")):
            columns[f"train/s_{part}_entropy"] = np.where(scored, (i + 1) * (2 - x), "")
    with (folder / "metrics.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values()))
    if images:
        write_counter(folder / "counter.npy", epochs, images)
    if finished:
        base = {
            "best_acc": 70.0, "best_epoch": epochs, "last_acc": 69.0, "epochs": epochs, "train_seconds": 100.0,
            "images_per_second": 500.0, "teacher_queries": 0, "student_macs": 10, "train_macs": 5 * 10**12,
            "teacher_acc": None,
        }  # fmt: skip
        (folder / "result.json").write_text(json.dumps({**base, **result}))
    return folder


def write_counter(path, epochs, images):
    """Image i is selected in the first i of the epochs, cyclically; one file, linked, for all of a shape."""
    first = _counters.setdefault((epochs, images, path.parents[1]), path)
    if first == path:
        np.save(path, (np.arange(epochs)[:, None] < np.arange(images) % (epochs + 1)).astype(np.uint8))
    else:
        os.link(first, path)
