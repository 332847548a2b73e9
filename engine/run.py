"""A run's folder: settings, checkpoints, logs and result, and resuming where a run stopped.

<experiments>/<name>/config.json    every setting, versions, device
                     ckpt/          best, last and numbered checkpoints
                     events/        TensorBoard
                     metrics.csv    a row an epoch
                     result.json    once the run is finished
"""

import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from tensorboardX import SummaryWriter
from torch.utils._pytree import tree_map_only

from engine import distributed
from engine.flops import cost_in_words
from models import CheckpointError, model_dict, read_checkpoint

# Flags that do not change a run's result (--compile: but for rounding). A teacher is told by its weights.
WITHOUT_EFFECT = set("save_interval gpu_id data_root experiments fresh debug compile teacher_path teacher_ckpt".split())
# What every result.json has.
RESULT_KEYS = set("best_acc best_epoch last_acc teacher_queries train_macs train_seconds images_per_second".split())
OTHER_ORIGIN = "{} is of another origin; --experiments names another place"
LONGEST_NAME = 200  # file systems take 255 bytes
SUFFIX = re.compile(r"\.(pth|pth\.tar|pt|ckpt|th)$")  # of checkpoints, ours and others'


class RunError(OSError):
    """A run that cannot start or go on. The message is one line and says what to do."""


# ---------------------------------------------------------------------------------------------------------- settings


def make_config(parser, args, device, precision, **more):
    """The content of config.json: the flags, which of them make two runs the same run, and what the run ran on.

    precision: what --precision resolved to. more: `kind` ("teacher" or "student"), `arch`, the network trained, and of
    a student `teacher_arch`, `teacher_sha256` and others.
    """
    settings = tree_map_only(Path, str, vars(args))
    effective = settings | {name: more[name] for name in ("teacher_arch", "teacher_sha256") if name in more}
    return {
        "command": shlex.join(sys.argv),
        **more,
        "settings": settings,
        "defaults": tree_map_only(Path, str, {flag: parser.get_default(flag) for flag in settings}),
        "effective_settings": {name: value for name, value in effective.items() if name not in WITHOUT_EFFECT},
        "precision": precision,
        "world_size": distributed.world_size(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "commit": git_commit()},
    }


def cpu_name():
    """The processor and how many of its cores torch uses."""
    named = None
    with suppress(OSError):  # not Linux
        named = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)  # not of Arm's
    name = named[1] if named else platform.machine()
    return f"{name}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def git_commit():
    """The commit of this code, with "-dirty" where files differ from it; in parentheses why it is unknown."""
    command = ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        git = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return "(git is not installed)"
    return git.stdout.strip() or f"({(git.stderr.strip() or 'git failed').splitlines()[0]})"


def name_suffix(config, named):
    """`_flagvalue` for each effective setting that is not its default, but for those in `named`."""
    suffix = ""
    for flag, value in config["effective_settings"].items():
        if flag not in named and value != config["defaults"].get(flag):
            values = value if isinstance(value, list) else [value]
            text = "" if value is True else "-".join(map(format_value, values)) or "none"
            suffix += f"_{flag.replace('_', '')}{text}"
    return suffix


def format_value(value):
    """10.0 as 10."""
    return str(value).removesuffix(".0")


# --------------------------------------------------------------------------------------------------------------- run


class Run:
    """A run's folder, a context within which no other process may use it. Rank 0 writes; all ranks call alike.

    args: --experiments and --fresh are read. config: see make_config. An earlier run of the same settings is resumed,
    in its own precision, or with --fresh moved aside. Nothing is made before the context is entered.
    Raises RunError if the folder cannot be made, holds another run, or is in use.
    """

    def __init__(self, args, name, config):
        if len(name) > LONGEST_NAME:
            name = f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        self.folder, self.config, self.fresh = args.experiments / name, config, args.fresh
        self.rows, self.best_weights, self.startup_seconds, self.events, self.lock = [], None, None, None, None
        parent = next(path for path in (self.folder, *self.folder.absolute().parents) if os.path.lexists(path))
        if not (parent.is_dir() and os.access(parent, os.W_OK)):
            what = "no folder that may be written to" if parent.exists() else "a link to nothing"
            raise RunError(f"{self.folder} cannot be made: {parent} is {what}")
        saved = None if self.fresh else distributed.run_on_rank0(self.saved_config)
        if saved and saved["precision"] != config["precision"]:
            config["precision"] = saved["precision"]
            print(f"precision: {config['precision']}, in which this run began")

    def __enter__(self):
        distributed.run_on_rank0(self.enter)
        return self

    def enter(self):
        if self.fresh and self.folder.exists():
            with lock(self.folder):
                backup = self.folder.with_name(f"{self.folder.name}.{time.strftime('%Y%m%d-%H%M%S')}")
                self.folder.rename(backup)
            print(f"the earlier run is now {backup}")
        (self.folder / "ckpt").mkdir(parents=True, exist_ok=True)
        self.lock = lock(self.folder)
        saved = self.saved_config()  # again: another process may have been here since
        if self.result is not None:
            raise RunError(f"{self.folder} has been finished by another process meanwhile")
        if saved is None:
            write_json(self.folder / "config.json", self.config)
        elif self.config["device"] not in saved["device"].split(", then "):  # its seconds are of several
            device = f"{saved['device']}, then {self.config['device']}"
            write_json(self.folder / "config.json", saved | {"device": device})

    def __exit__(self, *_):
        for resource in filter(None, (self.events, self.lock)):
            resource.close()

    def saved_config(self):
        """The config.json of an earlier run of these settings, None without one. Raises RunError for another run's."""
        path = self.folder / "config.json"
        saved = read_json(path)
        if saved is None:
            if path.exists():
                warn(f"{path} is damaged, written anew")
            elif any(self.folder.glob("ckpt/*.pth")) and not self.state_files():
                raise RunError(OTHER_ORIGIN.format(self.folder / "ckpt"))
            return None
        if not isinstance(saved, dict) or "effective_settings" not in saved:
            raise RunError(OTHER_ORIGIN.format(path))
        for name, value in self.config["effective_settings"].items():
            before = saved["effective_settings"].get(name, self.config["defaults"].get(name))
            if before != value:
                remedy = "--fresh moves it aside, --experiments names another place"
                raise RunError(f"{self.folder} holds a run with {name} {before}, not {value}; {remedy}")
        return saved

    @property
    def result(self):
        """The content of a sound result.json, else None."""
        result = read_json(self.folder / "result.json")
        return result if isinstance(result, dict) and set(result) >= RESULT_KEYS else None

    def finished(self):
        """Whether there is nothing left to do. All ranks call it."""
        return not self.fresh and distributed.run_on_rank0(lambda: self.result is not None)

    @property
    def best(self):
        """The row of the best epoch by validation accuracy, the first of equals."""
        return max(self.rows, key=lambda row: row["val/cls_acc"])

    # ---------------------------------------------------------------------------------------------- saving, resuming
    # The last state holds all that resuming needs; every other file but the numbered checkpoints is made from it again.

    def checkpoint(self, name):
        prefix = "student_" if self.config["kind"] == "student" else ""
        return self.folder / "ckpt" / f"{prefix}{name}.pth"

    def restore(self, trainer):
        """Load the last sound state and bring the other files to it. Returns its partial epoch, None without one."""
        saved = distributed.run_on_rank0(self.read_state)
        if saved:
            trainer.model.load_state_dict(saved["state_dict"])
            trainer.optimizer.load_state_dict(saved["optimizer"])
            for weights, state in trainer.optimizer.state.items():  # fused SGD wants both in one memory format
                if state.get("momentum_buffer") is not None:
                    state["momentum_buffer"] = torch.empty_like(weights).copy_(state["momentum_buffer"])
            trainer.load_state(saved["trainer"])
            self.rows, self.best_weights = saved["rows"], saved["best"]
            step = f", step {saved['partial_epoch']['step']} of the next" if saved["partial_epoch"] else ""
            print(f"resuming {self.folder} after epoch {len(self.rows)}{step}")
        if distributed.rank() == 0:
            if self.best_weights:
                write_checkpoint(self.checkpoint("best"), self.best_weights)
            shutil.rmtree(self.folder / "events", ignore_errors=True)
            self.events = SummaryWriter(str(self.folder / "events"))
            self.log(trainer, *self.rows)
        return saved and saved["partial_epoch"]

    def state_files(self):
        return [path for path in (self.checkpoint("last"), self.checkpoint("previous")) if path.exists()]

    def read_state(self):
        """The newest sound state, None if there is none."""
        paths = self.state_files()
        for path in paths:
            try:
                saved = read_checkpoint(path)
            except CheckpointError as e:
                last = path == paths[-1]
                warn(f"{e}; {'no sound state is left, starting over' if last else 'going back to the state before'}")
                path.replace(path.with_suffix(".damaged"))  # it must never replace a sound `previous`
                continue
            if not {"optimizer", "rows", "best", "trainer", "partial_epoch"} <= set(saved):
                raise RunError(OTHER_ORIGIN.format(path))
            return saved

    def save(self, trainer, partial_epoch=None):
        """Save the state, keep the one before as `previous`. partial_epoch: a dict with `step`, None between epochs."""
        if distributed.rank() > 0:
            return
        state = self.weights(trainer.model) | {
            "optimizer": trainer.optimizer.state_dict(),
            "rows": self.rows,
            "best": self.best_weights,
            "trainer": trainer.state(),
            "partial_epoch": partial_epoch,
        }
        write_checkpoint(self.checkpoint("last"), state, backup=self.checkpoint("previous"))

    def weights(self, model):
        """What every checkpoint holds, copied: training goes on in the same tensors."""
        return {
            "state_dict": {name: tensor.cpu().contiguous().clone() for name, tensor in model.state_dict().items()},
            "arch": self.config["arch"],
            "kind": self.config["kind"],
            "epoch": len(self.rows),
            "acc": self.rows[-1]["val/cls_acc"] if self.rows else None,
            "settings": self.config["settings"],
        }

    def end_epoch(self, trainer, row):
        """Save and log an epoch. row: {column of metrics.csv: number}; names with a slash go to TensorBoard too."""
        epoch, settings = len(self.rows) + 1, self.config["settings"]
        self.rows.append({"epoch": epoch, **row})
        if distributed.rank() > 0:
            return
        weights = self.weights(trainer.model)
        if self.best["epoch"] == epoch:
            self.best_weights = weights
            write_checkpoint(self.checkpoint("best"), weights)
        if epoch % settings["save_interval"] == 0 or epoch in [*settings["milestones"], settings["epoch"]]:
            write_checkpoint(self.checkpoint(f"{epoch:03d}"), weights)
        self.save(trainer)
        self.log(trainer, self.rows[-1])

    def log(self, trainer, *new_rows):
        """Write metrics.csv and the trainer's own files, and the new rows to TensorBoard."""
        text = io.StringIO()
        writer = csv.DictWriter(text, dict.fromkeys(name for row in self.rows for name in row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        for name, content in {"metrics.csv": text.getvalue().encode(), **trainer.files()}.items():
            write_file(self.folder / name, content)
        for row in new_rows:
            for tag in filter(lambda name: "/" in name, row):
                self.events.add_scalar(tag, row[tag], row["epoch"])
        self.events.flush()

    def finish(self, images_per_epoch, **more):
        """Write result.json. more: further entries."""
        if distributed.rank() > 0:
            return
        last, epochs = self.rows[-1], len(self.rows)
        seconds = {name: sum(row[name] for row in self.rows) for name in ("train_seconds", "val_seconds")}
        result = {
            "best_acc": self.best["val/cls_acc"],
            "best_epoch": self.best["epoch"],
            "last_acc": last["val/cls_acc"],
            "epochs": epochs,
            **seconds,
            "startup_seconds": self.startup_seconds,
            "images_per_second": images_per_epoch * epochs / seconds["train_seconds"],
        }
        result |= {name.removeprefix("cost/"): value for name, value in last.items() if name.startswith("cost/")}
        write_json(self.folder / "result.json", result | more)
        self.checkpoint("previous").unlink(missing_ok=True)

    def summarize(self):
        """Print a finished run's result."""
        if distributed.rank() > 0:
            return
        r = self.result
        print(f"{self.folder}: best {r['best_acc']:.2f} % (epoch {r['best_epoch']}), last {r['last_acc']:.2f} %")
        if r["teacher_queries"]:
            print(f"the teacher saw {r['teacher_queries']:,} images; {cost_in_words(r)}")
        speed = f"{r['train_seconds']:.1f} s of training at {r['images_per_second']:.0f} images/s"
        print(f"{r['train_macs'] / 1e12:.2f} TMAC; {speed}")
        if r.get("test_acc_best") is not None:
            print(f"on the test images: best epoch {r['test_acc_best']:.2f} %, last {r['test_acc_last']:.2f} %")


# --------------------------------------------------------------------------------------------------- teacher folders


def find_checkpoint(path, word):
    """The checkpoint in <path>/ckpt named `word`, else the one whose name holds it; `path` itself if it is a file.

    Raises CheckpointError where there is none, or several.
    """
    if path.is_file():
        return path
    folder = path / "ckpt"
    if not folder.is_dir():
        takes = "a folder that teacher.py made, one with a downloaded teacher at ckpt/best.pth, or the file itself"
        raise CheckpointError(f"{folder}: no such folder; --teacher-path takes {takes}")
    names = sorted(file.name for file in folder.iterdir() if SUFFIX.search(file.name))
    exact = [name for name in names if word in (name, SUFFIX.sub("", name))]
    matches = exact or [name for name in names if word in name]
    if len(matches) != 1:
        found = f"several: {', '.join(matches)}" if matches else f"none; there are: {', '.join(names) or 'none at all'}"
        raise CheckpointError(f"{folder}: --teacher-ckpt {word} has to name one checkpoint, it names {found}")
    return folder / matches[0]


def teacher_name(path):
    """(name of the folder that a checkpoint belongs to, ckpt/ apart, its own name without suffix)."""
    folder = path.parent.parent if path.parent.name == "ckpt" else path.parent
    folder = os.path.abspath(folder)  # noqa: PTH100  resolve() would follow links
    return Path(folder).name, SUFFIX.sub("", path.name)


def arch_from_name(name):
    """The network that a folder's name tells, as teacher_wrn_40_2 or teacher_vgg13_seed1 do, else None."""
    rest = name.removeprefix("teacher_") + "_"
    return max((arch for arch in model_dict if rest.startswith(f"{arch}_")), key=len, default=None)


# ------------------------------------------------------------------------------------------------------------- files


@cache
def warn(text):
    """A line on stderr, not said twice."""
    print(f"warning: {text}", file=sys.stderr)


def lock(folder):
    """An open file whose lock says that this process uses the folder; closing it, or dying, releases it."""
    path = folder / ".lock"
    file = path.open("a+")
    try:  # not the package filelock, whose versions differ on file systems that have no locks
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise BlockingIOError  # the folder was moved aside meanwhile, and there is a new one
    except (BlockingIOError, PermissionError, FileNotFoundError):
        file.seek(0)
        raise RunError(f"{folder} is in use by another process ({file.read().strip()})") from None
    except OSError as e:  # some Lustre, NFS and other mounts
        warn(f"{path}: {e.strerror}; two processes in this folder will not notice each other")
    with suppress(OSError):  # a full disk: what is saved next says so
        path.write_text(f"pid {os.getpid()} on {platform.node()}")
    return file


def write_file(path, content, backup=None):
    """Replace a file's content (bytes) at once: a reader, or a crash, finds the old file or the new one, whole.

    backup: a path for the old file. Raises OSError, the old file untouched, where the disk is full.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        part.unlink(missing_ok=True)
        resume = "what was saved before stays, and the same command (without --fresh) resumes it"
        raise OSError(f"{path} could not be written ({e.strerror}); {resume}") from e
    if backup and path.exists():
        path.replace(backup)
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.ENOTSUP):  # CIFS and others cannot sync a folder
            raise OSError(f"{path.parent} could not be synced to disk ({e.strerror})") from e
    finally:
        os.close(folder)


def write_json(path, content):
    write_file(path, (json.dumps(content, indent=1) + "\n").encode())


def read_json(path):
    """The content of a JSON file, None where it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def write_checkpoint(path, content, backup=None):
    buffer = io.BytesIO()
    torch.save(tree_map_only(torch.Tensor, torch.Tensor.cpu, content), buffer)  # so that any machine can load it
    write_file(path, buffer.getvalue(), backup)
