"""A run's folder: settings, checkpoints, logs and result, and resuming after the last epoch that was saved.

<experiments>/<name>/config.json    every setting, versions, device
                     ckpt/          best, last and numbered checkpoints
                     events/        TensorBoard
                     metrics.csv    a row an epoch
                     result.json    once the run is finished

`last.pth` is written first after an epoch and holds all that resuming needs. The other files are made from it, so a run
may end in any way at any moment.
"""

import csv
import hashlib
import io
import math
import os
import platform
import shlex
import subprocess
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import torch
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from engine.device import device_name
from engine.files import lock, read_json, write_checkpoint, write_file, write_json
from engine.flops import cost_in_words
from engine.trainer import Trainer
from models import CheckpointError, read_checkpoint

# Flags that do not change a run's result (--compile changes its rounding alone). A teacher is known by its weights.
WITHOUT_EFFECT = set("save_interval gpu_id data_root experiments fresh debug compile teacher_path teacher_ckpt".split())
# What every result.json has.
RESULT_KEYS = set("best_acc best_epoch last_acc teacher_queries train_macs train_seconds images_per_second".split())
LONGEST_NAME = 200  # file systems take 255 bytes
ROOT = Path(__file__).resolve().parent.parent


class RunError(OSError):
    """A run that cannot start or go on. The message is one line and says what to do."""


# ---------------------------------------------------------------------------------------------------------- settings


def make_config(
    parser: ArgumentParser, args: Namespace, argv: list[str], device: torch.device, precision: str, **more: Any
) -> dict[str, Any]:
    """The content of config.json: the flags, which of them make two runs the same run, and what the run ran on.

    argv: the flags as they were given. more: `kind` ("teacher" or "student"), `arch`, `identity` (what else changes the
    result, {name: number}), and of a student `teacher_arch`, `teacher_sha256` and others.
    """
    settings = {flag: str(value) if isinstance(value, Path) else value for flag, value in vars(args).items()}
    defaults = {flag: parser.get_default(flag) for flag in settings}
    identity = {name: more[name] for name in ("teacher_arch", "teacher_sha256") if name in more}
    effective = {name: value for name, value in settings.items() if name not in WITHOUT_EFFECT}
    return {
        "command": shlex.join([parser.prog, *argv]),
        **more,
        "settings": settings,
        "defaults": {flag: str(value) if isinstance(value, Path) else value for flag, value in defaults.items()},
        "effective_settings": effective | identity,
        "precision": precision,
        "device": device_name(device),
        "versions": [versions()],
    }


def versions() -> dict[str, str | None]:
    """What the code that runs now is made of. `code` is a hash of the files that compute."""
    files = {*ROOT.glob("*.py"), *ROOT.glob("models/*.py"), *ROOT.glob("engine/*.py")} - {ROOT / "report.py"}
    code = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()[:12]
    return {"python": platform.python_version(), "torch": torch.__version__, "commit": git_commit(), "code": code}


def git_commit() -> str | None:
    """The commit of this code, with "-dirty" where files differ from it; None without a repository or git."""
    command = ["git", f"--git-dir={ROOT / '.git'}", f"--work-tree={ROOT}", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def name_suffix(config: dict[str, Any], named: set[str]) -> str:
    """`_flagvalue` for each effective setting that is not its default, but for those in `named`."""
    suffix = ""
    for flag, value in config["effective_settings"].items():
        if flag not in named and value != config["defaults"].get(flag):
            values = value if isinstance(value, list) else [value]
            text = "-".join(map(format_value, values)) if values else "none"
            suffix += f"_{flag.replace('_', '')}{text}"
    return suffix


def format_value(value: Any) -> str:
    """10.0 as 10, and a switch as nothing, because its flag says it."""
    return "" if value is True else str(value).removesuffix(".0")


# --------------------------------------------------------------------------------------------------------------- run


class Run:
    """A run's folder, and a context within which no other process may use it.

    An earlier run of the same settings is resumed, in its own precision, or with --fresh moved aside. Nothing is
    written before the context is entered. Raises RunError if the folder cannot be made or holds something else.

    config: of make_config; an earlier run keeps its own, to which the new device and versions are added. result: the
    content of result.json, None while the run is unfinished. rows: {column of metrics.csv: number} of each epoch saved.
    """

    def __init__(self, args: Namespace, name: str, config: dict[str, Any]):
        if len(name) > LONGEST_NAME:
            name = f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        self.folder = args.experiments / name
        self.fresh = args.fresh
        self.rows = []
        parent = next(path for path in (self.folder, *self.folder.absolute().parents) if os.path.lexists(path))
        if not (parent.is_dir() and os.access(parent, os.W_OK)):
            raise RunError(f"{self.folder} cannot be made: {parent} is not a folder that may be written to")
        self.on_disk = (None, None) if self.fresh else self.read()
        saved, self.result = self.on_disk
        self.config = self.join(saved, config) if saved else config

    def read(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """The contents of config.json and result.json, None where there is none."""
        path = self.folder / "config.json"
        config, result = read_json(path), read_json(self.folder / "result.json")
        if isinstance(config, dict) and "effective_settings" in config:
            return config, result if isinstance(result, dict) and set(result) >= RESULT_KEYS else None
        if path.exists() or any(self.folder.glob("ckpt/*.pth")):
            what = f"{path} is damaged" if path.exists() else f"{self.folder} holds checkpoints without a config.json"
            raise RunError(f"{what}; --fresh moves the folder aside, --experiments names another place")
        return None, None

    def join(self, saved: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
        """The configuration of an earlier run that goes on here and now. Raises RunError if it is another run."""
        before = saved["effective_settings"] | saved.get("identity", {})
        for name, value in (config["effective_settings"] | config["identity"]).items():
            was = before.get(name, config["defaults"].get(name, value))  # a flag may be younger than the run
            if was != value:
                remedy = "--fresh moves it aside, --experiments names another place"
                raise RunError(f"{self.folder} holds a run with {name} {was}, not {value}; {remedy}")
        devices = saved["device"]
        if config["device"] not in devices.split(", then "):
            devices = f"{devices}, then {config['device']}"
        versions = saved["versions"]
        if isinstance(versions, dict):  # an earlier version kept only the first ones
            versions = [versions]
        if versions[-1] != config["versions"][-1]:
            versions = versions + config["versions"]
        return saved | {"device": devices, "versions": versions}

    def __enter__(self) -> "Run":
        if self.fresh and self.folder.exists():
            with lock(self.folder):
                backup = self.folder.with_name(f"{self.folder.name}.{time.strftime('%Y%m%d-%H%M%S')}")
                self.folder.rename(backup)
            print(f"the earlier run is now {backup}")
        (self.folder / "ckpt").mkdir(parents=True, exist_ok=True)
        self.lock = lock(self.folder)
        if self.read() != self.on_disk:
            self.lock.close()
            raise RunError(f"another process has worked in {self.folder} meanwhile; give the command again")
        write_json(self.folder / "config.json", self.config)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        self.lock.close()
        if isinstance(error, KeyboardInterrupt):
            without = "without --fresh " if self.fresh else ""
            error.args = (without + (f"after epoch {self.epoch}" if self.rows else "from the start"),)

    @property
    def epoch(self) -> int:
        """The last epoch that was saved, 0 before the first."""
        return len(self.rows)

    @property
    def best(self) -> dict[str, float]:
        """The row of the best epoch by validation accuracy, the first of equals."""
        return max(self.rows, key=lambda row: row["val/cls_acc"])

    def checkpoint(self, name: str) -> Path:
        """The path of the checkpoint "best", "last" or a number."""
        prefix = "student_" if self.config["kind"] == "student" else ""
        return self.folder / "ckpt" / f"{prefix}{name}.pth"

    def restore(self, trainer: Trainer) -> None:
        """Load the state of an earlier run, if there is one, and bring its other files to that epoch.

        Raises RunError where the state is damaged; nothing is overwritten then.
        """
        state, path = None, self.checkpoint("last")
        if path.exists():
            try:
                state = read_checkpoint(path)
            except CheckpointError as e:
                raise RunError(f"{e}; --fresh moves this run aside and starts over") from e
            if "momentum" not in state.get("trainer", {}):  # weights alone, or the state of an earlier version
                raise RunError(f"{path} holds no state to resume from; --fresh moves this run aside and starts over")
            trainer.model.load_state_dict(state["state_dict"])
            trainer.load_state(state["trainer"])
            self.rows = state["rows"]
            print(f"resuming {self.folder} after epoch {self.epoch} in {self.config['precision']}")
        elif any(self.folder.glob("ckpt/*.pth")):
            raise RunError(f"{path} is missing, but not its other checkpoints; --fresh moves this run aside")
        self.events = EventLog(self.folder / "events", self.epoch)
        if state:
            self.write_outputs(trainer, state)
            self.tell_changes()

    def end_epoch(self, trainer: Trainer, row: dict[str, float]) -> None:
        """Save and log an epoch. row: {column of metrics.csv: number}; names with a slash go to TensorBoard too.

        Raises RunError, and saves nothing, if the loss or a weight is not finite.
        """
        weights = trainer.model.state_dict()
        finite = [tensor.isfinite().all() for tensor in weights.values() if tensor.is_floating_point()]
        loss = row.get(f"{trainer.tag}loss", math.nan)
        if not (math.isfinite(loss) and torch.stack(finite).all()):
            keeps = f"{self.folder} keeps the state before" if self.rows else "nothing was saved"
            raise RunError(
                f"the loss or a weight is not finite in epoch {self.epoch + 1}: stopped, {keeps}; "
                "try a smaller --lr, or --precision fp32"
            )
        rows = [*self.rows, {"epoch": self.epoch + 1, **row}]
        state = {
            "state_dict": {name: tensor.cpu().contiguous() for name, tensor in weights.items()},
            "arch": self.config["arch"],
            "kind": self.config["kind"],
            "epoch": len(rows),
            "acc": row["val/cls_acc"],
            "settings": self.config["settings"],
            "rows": rows,
            "trainer": trainer.state(),
        }
        write_checkpoint(self.checkpoint("last"), state)
        self.rows = rows
        self.write_outputs(trainer, state)

    def write_outputs(self, trainer: Trainer, state: dict[str, Any]) -> None:
        """Write the files that follow from the last state."""
        weights = {name: value for name, value in state.items() if name not in ("rows", "trainer", "sha256")}
        args = trainer.args
        if self.best["epoch"] == self.epoch:
            write_checkpoint(self.checkpoint("best"), weights)
        if self.epoch % args.save_interval == 0 or self.epoch in [*args.milestones, args.epoch]:
            write_checkpoint(self.checkpoint(f"{self.epoch:03d}"), weights)
        table = io.StringIO()
        writer = csv.DictWriter(table, dict.fromkeys(name for row in self.rows for name in row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_file(self.folder / "metrics.csv", table.getvalue().encode())
        for name, content in trainer.files().items():
            write_file(self.folder / name, content)
        self.events.add(self.rows[-1])

    def finish(self, images_per_epoch: int, **more: Any) -> None:
        """Write result.json. more: further entries."""
        last = self.rows[-1]
        seconds = {name: sum(row[name] for row in self.rows) for name in ("train_seconds", "val_seconds")}
        self.result = {
            "best_acc": self.best["val/cls_acc"],
            "best_epoch": self.best["epoch"],
            "last_acc": last["val/cls_acc"],
            "epochs": self.epoch,
            **seconds,
            "images_per_second": images_per_epoch * self.epoch / seconds["train_seconds"],
            **{name.removeprefix("cost/"): value for name, value in last.items() if name.startswith("cost/")},
            **more,
        }
        write_json(self.folder / "result.json", self.result)

    def summarize(self) -> None:
        """Print a finished run's result."""
        result = self.result
        best = f"best {result['best_acc']:.2f} % (epoch {result['best_epoch']})"
        print(f"{self.folder}: {best}, last {result['last_acc']:.2f} %")
        if "computation" in result:
            print(f"the teacher saw {result['teacher_queries']:,} images; {cost_in_words(result)}")
        speed = f"{result['train_seconds']:.1f} s of training at {result['images_per_second']:.0f} images/s"
        print(f"{result['train_macs'] / 1e12:.2f} TMAC; {speed}")
        if result.get("test_acc_best") is not None:
            print(f"test images: best epoch {result['test_acc_best']:.2f} %, last {result['test_acc_last']:.2f} %")
        self.tell_changes()

    def tell_changes(self) -> None:
        """Say if the code or torch is no longer what this run began with, and if the best epoch's weights are gone."""
        before = self.config["versions"][0]
        now = self.config["versions"][-1]
        changes = [
            f"{name} {before[name]} is now {now[name]}"
            for name in now
            if name != "commit" and before.get(name, now[name]) != now[name]  # "code" is a hash of what computes
        ]
        if changes:
            print(f"note: since this run began, {', '.join(changes)}; --fresh trains anew")
        if not self.checkpoint("best").exists():
            print(f"warning: {self.checkpoint('best')} is missing; --fresh trains anew")


class EventLog:
    """TensorBoard's scalars. Written without a thread, so that a failure ends the log and not the training.

    folder: of the event files. epoch: the first one that is written; TensorBoard hides what an interrupted run wrote
    from there on.
    """

    def __init__(self, folder: Path, epoch: int):
        self.folder = folder
        self.start = Event(step=epoch, session_log=SessionLog(status=SessionLog.START))
        self.writer = None
        self.failed = False

    def add(self, row: dict[str, float]) -> None:
        """Write an epoch's row, those columns that have a slash in their name."""
        if self.failed:
            return
        try:
            if self.writer is None:
                self.folder.mkdir(exist_ok=True)
                self.writer = EventsWriter(str(self.folder / "events"), f".epoch{row['epoch']}")
                self.writer.write_event(self.start)
            for name, value in row.items():
                if "/" in name:
                    event = Event(wall_time=time.time(), step=row["epoch"], summary=scalar(name, value))
                    self.writer.write_event(event)
            self.writer.flush()
        except OSError as e:
            self.failed = True
            print(f"warning: TensorBoard's log in {self.folder} ends here ({e.strerror or e})")
