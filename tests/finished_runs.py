"""Finished runs as the programs leave them, without training: for the tests of report.py."""

import csv
import json
import shlex
from pathlib import Path
from unittest.mock import patch

import numpy as np

import student_v0
import teacher
from engine.run import make_config
from models import arch_from_name

PAIR = "student_v0.py --teacher-path experiments/teacher_vgg13 --student-arch vgg8"


def make_run(folder: Path, line: str, epochs: int = 2, images: int = 0, config: dict | None = None, **result) -> Path:
    """Write a run's files. line: its command. images: columns of counter.npy, 0 for none.

    config, result: what config.json and result.json hold besides, or instead. The teacher is what its folder says.
    """
    program, *words = shlex.split(line)
    parser = {"teacher.py": teacher, "student_v0.py": student_v0}[program].make_parser()
    args = parser.parse_args(words)
    more = {"kind": "teacher", "arch": getattr(args, "arch", None), "identity": {}}
    if program == "student_v0.py":
        path = f"{args.teacher_path}/ckpt/{args.teacher_ckpt}.pth"
        more |= {"kind": "student", "arch": args.student_arch, "teacher_arch": arch_from_name(args.teacher_path.name)}
        more |= {"teacher_file": path, "teacher_sha256": f"hash of {path}", "teacher_settings": None}
    with patch("engine.run.versions"), patch("engine.run.device_name", return_value="a processor"):
        content = make_config(parser, args, words, None, "bf16", **more)
    costs = {"train_seconds": 100.0, "teacher_queries": 0, "train_macs": 5e12, "train_macs_usual": 6e12}
    results = {"best_acc": 70.0, "last_acc": 69.0, "best_epoch": epochs, "images_per_second": 500.0, **costs, **result}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**content, "versions": [], **(config or {})}))
    (folder / "result.json").write_text(json.dumps(results))
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "val/cls_acc", "train/acc"])
        writer.writerows(
            [epoch, 70 - 50 / epoch + args.seed, 80 - 20 / epoch + args.seed] for epoch in range(1, epochs + 1)
        )
    if images:  # image i is selected in the first i of the epochs, cyclically
        counter = np.arange(epochs)[:, None] < np.arange(images) % (epochs + 1)
        np.save(folder / "counter.npy", counter.astype(np.uint8))
    return folder


def settings_of(folder: Path) -> dict:
    """What a run was given, as its students keep it."""
    return json.loads((folder / "config.json").read_text())["settings"]
