"""One run's folder: settings, checkpoints, logs and result, and picking a run up where it stopped.

<experiments>/<name>/config.json    every setting, versions, device
                     ckpt/          best, last and numbered checkpoints
                     events/        TensorBoard
                     metrics.csv    a row an epoch
                     result.json    once the run is finished
"""

import csv
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
from tensorboardX import SummaryWriter

from models import CheckpointError, model_dict, read_checkpoint

WITHOUT_EFFECT = {"save_interval", "gpu_id", "data_root", "experiments", "fresh", "debug"}
"""Flags that do not change a run's result."""


def differences(parser, args, named):
    """`_flagvalue` for each flag that changes the result and differs from its default.

    named: the flags that the run's name carries anyway.
    """
    parts = []
    for flag, value in vars(args).items():
        if flag not in WITHOUT_EFFECT and flag not in named and value != parser.get_default(flag):
            values = value if isinstance(value, list) else [value]
            text = "-".join(str(v).removesuffix(".0") for v in values) or "none"
            parts.append(f"_{flag.replace('_', '')}{text}")
    return "".join(parts)


def describe(args, device, precision, **more):
    """The content of config.json: the settings as given, what they resolved to, and what they ran on."""
    try:
        git = ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty", "--abbrev=40"]
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    except FileNotFoundError:
        commit = None
    return {
        "command": " ".join(sys.argv),
        "settings": {flag: str(value) if isinstance(value, Path) else value for flag, value in vars(args).items()},
        "precision": precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "commit": commit},
        **more,
    }


def identity(config):
    """The part of a configuration that decides the result: runs that differ in it must not share a folder."""
    settings = {flag: value for flag, value in config["settings"].items() if flag not in WITHOUT_EFFECT}
    for flag in ("teacher_path", "teacher_ckpt", "teacher_arch"):
        settings.pop(flag, None)  # the teacher is told by its weights, wherever they lie
    return {**settings, "precision": config["precision"], "teacher_sha256": config.get("teacher_sha256")}


class RunError(OSError):
    """A run folder that cannot be used. The message is one line and says what to do."""


class Run:
    """A folder that a run writes to, epoch by epoch.

    folder: Path, made if need be. config: see describe(). kind: "teacher" or "student". arch: the network trained.
    An earlier run of the same settings in the folder is resumed, or with fresh=True moved aside.
    Raises RunError where the folder holds a run of other settings.
    """

    def __init__(self, folder, config, kind, arch, fresh=False):
        self.folder, self.config, self.kind, self.arch = folder, config, kind, arch
        self.prefix = "student_" if kind == "student" else ""
        self.rows = []
        if fresh and folder.exists():
            aside = folder.with_name(f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S')}")
            folder.rename(aside)
            print(f"the earlier run is now {aside}")
        self.check_same_settings()
        (folder / "ckpt").mkdir(parents=True, exist_ok=True)
        if not self.finished:
            write_json(folder / "config.json", config)

    def check_same_settings(self):
        path = self.folder / "config.json"
        if not path.exists():
            if any(self.folder.glob("ckpt/*.pth")):
                raise RunError(f"{self.folder} holds checkpoints of another origin; --experiments names another place")
            return
        ours, theirs = identity(self.config), identity(json.loads(path.read_text()))
        for name in ours:
            if ours[name] != theirs.get(name):
                raise RunError(
                    f"{self.folder} holds a run with {name} {theirs.get(name)}, not {ours[name]}; "
                    f"--fresh moves it aside, --experiments names another place"
                )

    @property
    def finished(self):
        return (self.folder / "result.json").exists()

    @property
    def result(self):
        return json.loads((self.folder / "result.json").read_text())

    @property
    def best(self):
        """The row of the best epoch by validation accuracy, the first of equals."""
        return max(self.rows, key=lambda row: row["val/cls_acc"])

    def checkpoint(self, name):
        return self.folder / "ckpt" / f"{self.prefix}{name}.pth"

    def restore(self, model, optimizer):
        """Load the last state, if there is one, and open the logs. Returns the `extra` last saved, or {}."""
        extra = {}
        if self.checkpoint("last").exists():
            last = read_checkpoint(self.checkpoint("last"))
            model.load_state_dict(last["state_dict"])
            optimizer.load_state_dict(last["optimizer"])
            self.rows, extra = last["rows"], last["extra"]
            print(f"resuming {self.folder} after epoch {len(self.rows)}")
        self.events = SummaryWriter(str(self.folder / "events"), purge_step=len(self.rows) + 1)
        return extra

    def end_epoch(self, model, optimizer, row, extra=None):
        """Log and save one epoch.

        row: {"train/..." and "val/...": scalar, "val/cls_acc" among them; "train_seconds": ...; others}. The tags with
        a slash go to TensorBoard, everything to metrics.csv. extra: tensors that resuming needs besides weights and
        optimizer.
        """
        epoch = len(self.rows) + 1
        self.rows.append({"epoch": epoch, **row})
        for tag, value in row.items():
            if "/" in tag:
                self.events.add_scalar(tag, value, epoch)
        self.events.flush()
        self.write_metrics()

        settings = self.config["settings"]
        weights = {
            "state_dict": {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
            "arch": self.arch,
            "kind": self.kind,
            "epoch": epoch,
            "acc": row["val/cls_acc"],
            "settings": settings,
        }
        if self.best["epoch"] == epoch:
            write_checkpoint(self.checkpoint("best"), weights)
        if epoch % settings["save_interval"] == 0 or epoch in [*settings["milestones"], settings["epoch"]]:
            write_checkpoint(self.checkpoint(f"{epoch:03d}"), weights)
        last = {**weights, "optimizer": optimizer.state_dict(), "rows": self.rows, "extra": extra}
        write_checkpoint(self.checkpoint("last"), last)

    def write_metrics(self):
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_file(self.folder / "metrics.csv", text.getvalue().encode())

    def finish(self, images_per_epoch, **more):
        """Write result.json. images_per_epoch: training images drawn in one. more: further entries."""
        train_seconds = sum(row["train_seconds"] for row in self.rows)
        result = {
            "best_acc": self.best["val/cls_acc"],
            "best_epoch": self.best["epoch"],
            "last_acc": self.rows[-1]["val/cls_acc"],
            "epochs": len(self.rows),
            "train_seconds": train_seconds,
            "val_seconds": sum(row["val_seconds"] for row in self.rows),
            "images_per_second": images_per_epoch * len(self.rows) / train_seconds,
            **more,
        }
        write_json(self.folder / "result.json", result)
        self.events.close()

    def summarize(self):
        """Print a finished run's result."""
        result = self.result
        best, epoch, last = (result[name] for name in ("best_acc", "best_epoch", "last_acc"))
        print(f"{self.folder}: best {best:.2f} % (epoch {epoch}), last {last:.2f} %")
        if "test_acc_best" in result:
            print(
                f"on the test images: best epoch {result['test_acc_best']:.2f} %, last {result['test_acc_last']:.2f} %"
            )


# ------------------------------------------------------------------------------------------------- teacher folders


def find_checkpoint(folder, word):
    """The one checkpoint in `folder`/ckpt whose name is `word`, else the one whose name holds it.

    Raises CheckpointError where there is none, or several.
    """
    if not (folder / "ckpt").is_dir():
        raise CheckpointError(
            f"{folder / 'ckpt'}: no such folder; --teacher-path takes a folder that `python teacher.py` made, "
            f"or one with a downloaded teacher at ckpt/best.pth"
        )
    names = sorted(path.stem for path in (folder / "ckpt").glob("*.pth"))
    matches = [name for name in names if name == word] or [name for name in names if word in name]
    if len(matches) != 1:
        there = f"several: {', '.join(matches)}" if matches else f"none; there are: {', '.join(names) or 'none at all'}"
        raise CheckpointError(f"{folder / 'ckpt'}: --teacher-ckpt {word} has to name one checkpoint, it names {there}")
    return folder / "ckpt" / f"{matches[0]}.pth"


def arch_in_name(folder):
    """The network that a folder's name tells, as in teacher_wrn_40_2 or teacher_vgg13_seed1, else None."""
    told = folder.resolve().name.removeprefix("teacher_") + "_"
    return max((arch for arch in model_dict if told.startswith(f"{arch}_")), key=len, default=None)


# ----------------------------------------------------------------------------------------------------------- files


def write_file(path, content):
    """Replace a file's content (bytes) at once: a reader, or a crash, finds the old file or the new one, whole."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
    part.replace(path)


def write_json(path, content):
    write_file(path, (json.dumps(content, indent=1) + "\n").encode())


def write_checkpoint(path, content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_file(path, buffer.getvalue())


def file_sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
