"""One run's folder: settings, checkpoints, logs and result, and picking a run up where it stopped.

<experiments>/<name>/config.json    every setting, versions, device
                     ckpt/          best, last and numbered checkpoints
                     events/        TensorBoard
                     metrics.csv    a row an epoch
                     result.json    once the run is finished
"""

import csv
import fcntl
import hashlib
import io
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from tensorboardX import SummaryWriter

import processes
from models import CheckpointError, checksum, model_dict, read_checkpoint

WITHOUT_EFFECT = {"save_interval", "gpu_id", "data_root", "experiments", "fresh", "debug", "compile"}
"""Flags that do not change a run's result (--compile: but for rounding)."""

RESULT = {"best_acc", "best_epoch", "last_acc", "teacher_queries", "train_macs", "train_seconds", "images_per_second"}
"""What every result.json has."""

LONGEST_NAME = 200  # file systems take 255 bytes


def differences(parser, args, named):
    """`_flagvalue` for each flag that changes the result and differs from its default.

    named: the flags that the run's name carries anyway.
    """
    parts = []
    for flag, value in vars(args).items():
        if flag not in WITHOUT_EFFECT and flag not in named and value != parser.get_default(flag):
            values = value if isinstance(value, list) else [value]
            text = "" if value is True else "-".join(map(written, values)) or "none"
            parts.append(f"_{flag.replace('_', '')}{text}")
    return "".join(parts)


def written(value):
    """A flag's value as a name has it: 10.0 as 10."""
    return str(value).removesuffix(".0")


def describe(args, device, precision, **more):
    """The content of config.json: the settings as given, what they resolved to, and what they ran on."""
    try:
        git = ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty", "--abbrev=40"]
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    except FileNotFoundError:
        commit = None
    return {
        "command": shlex.join(sys.argv),
        "settings": {flag: str(value) if isinstance(value, Path) else value for flag, value in vars(args).items()},
        "precision": precision,
        "processes": processes.count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "commit": commit},
        **more,
    }


def identity(config):
    """The part of a configuration that decides the result: runs that differ in it must not share a folder."""
    settings = {flag: value for flag, value in config["settings"].items() if flag not in WITHOUT_EFFECT}
    for flag in ("teacher_path", "teacher_ckpt", "teacher_arch"):
        settings.pop(flag, None)  # the teacher is told by its weights, wherever they lie
    return {**settings, "precision": config.get("precision"), "teacher_sha256": config.get("teacher_sha256")}


class RunError(OSError):
    """A run that cannot be begun or continued. The message is one line and says what to do."""


class Run:
    """A folder that a run writes to, epoch by epoch, as a context: within it no other process may use the folder. Of
    several processes of the same run the first one writes; all call the methods alike.

    experiments, name: the folder, made on entering the context; a name too long for a file system ends in a hash.
    config: see describe(). kind: "teacher" or "student". arch: the network trained. An earlier run of the same settings
    is resumed, or with fresh=True moved aside.
    Raises RunError where the folder cannot be made, holds a run of other settings, or is in use by another process.

    What resuming needs is all in the last state; every other file but the numbered checkpoints is made from it again.
    """

    def __init__(self, experiments, name, config, kind, arch, fresh=False):
        if len(name) > LONGEST_NAME:
            name = f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        self.folder, self.config, self.kind, self.arch, self.fresh = experiments / name, config, kind, arch, fresh
        self.prefix = "student_" if kind == "student" else ""
        self.rows, self.best_weights, self.events, self.lock, self.startup_seconds = [], None, None, None, None
        there = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            raise RunError(f"{self.folder} cannot be made: {there} is no folder that may be written to")
        if not fresh:
            processes.from_first(self.check_same_settings)

    def __enter__(self):
        processes.from_first(self.enter)
        return self

    def enter(self):
        if self.fresh and self.folder.exists():
            with lock(self.folder):
                aside = self.folder.with_name(f"{self.folder.name}.{time.strftime('%Y%m%d-%H%M%S')}")
                self.folder.rename(aside)
            print(f"the earlier run is now {aside}")
        (self.folder / "ckpt").mkdir(parents=True, exist_ok=True)
        self.lock = lock(self.folder)
        self.check_same_settings()  # once more: another process may have been here since
        if self.result is not None:
            raise RunError(f"{self.folder} has been finished by another process meanwhile")
        if read_json(self.folder / "config.json") is None:
            write_json(self.folder / "config.json", self.config)

    def __exit__(self, *_):
        if self.events:
            self.events.close()
        if self.lock:
            self.lock.close()

    def check_same_settings(self):
        path = self.folder / "config.json"
        theirs = read_json(path)
        if theirs is None:
            if path.exists():
                print(f"warning: {path} is damaged, written anew", file=sys.stderr)
            elif any(self.folder.glob("ckpt/*.pth")) and not self.state_files():
                raise RunError(f"{self.folder} holds checkpoints of another origin; --experiments names another place")
            return
        if not isinstance(theirs, dict) or not isinstance(theirs.get("settings"), dict):
            raise RunError(f"{path} is of another origin; --experiments names another place")
        ours, theirs = identity(self.config), identity(theirs)
        for name in ours:
            if ours[name] != theirs.get(name):
                raise RunError(
                    f"{self.folder} holds a run with {name} {theirs.get(name)}, not {ours[name]}; "
                    f"--fresh moves it aside, --experiments names another place"
                )

    @property
    def finished(self):
        return processes.from_first(lambda: self.result is not None) and not self.fresh

    @property
    def result(self):
        """The result of a finished run, else None."""
        result = read_json(self.folder / "result.json")
        sound = isinstance(result, dict) and set(result) >= RESULT
        return result if sound else None

    @property
    def best(self):
        """The row of the best epoch by validation accuracy, the first of equals."""
        return max(self.rows, key=lambda row: row["val/cls_acc"])

    def checkpoint(self, name):
        return self.folder / "ckpt" / f"{self.prefix}{name}.pth"

    def restore(self, model, optimizer):
        """Load the last sound state, if there is one, and bring the other files to where it stands.

        Returns the "learner" and "begun" that save() got, in a dict, or None for a new run.
        """
        saved = processes.from_first(self.read_state)
        if saved:
            model.load_state_dict(saved["state_dict"])
            optimizer.load_state_dict(saved["optimizer"])
            self.rows, self.best_weights = saved["rows"], saved["best"]
            step = f", step {saved['begun']['step']} of the next" if saved["begun"] else ""
            print(f"resuming {self.folder} after epoch {len(self.rows)}{step}")
        if processes.rank() > 0:
            return saved
        if self.best_weights:
            write_checkpoint(self.checkpoint("best"), self.best_weights)
        shutil.rmtree(self.folder / "events", ignore_errors=True)
        self.events = SummaryWriter(str(self.folder / "events"))
        for row in self.rows:
            self.log(row)
        self.write_metrics()
        return saved

    def state_files(self):
        return [path for path in (self.checkpoint("last"), self.checkpoint("previous")) if path.exists()]

    def read_state(self):
        """The newest sound state, None where there is none."""
        paths = self.state_files()
        for path in paths:
            try:
                saved = read_checkpoint(path)
            except CheckpointError as e:
                print(f"warning: {e}; going back to the state before", file=sys.stderr)
                path.replace(path.with_suffix(".damaged"))  # never to take a sound one's place as `previous`
                continue
            if not {"optimizer", "rows", "best", "learner", "begun"} <= set(saved):
                raise RunError(f"{path} is of another origin; --experiments names another place")
            return saved
        if paths:
            print("warning: no sound state is left, starting over", file=sys.stderr)
        return None

    def save(self, model, optimizer, learner, begun=None):
        """Save the state, keeping the one before as `previous`.

        learner: see Learner.state. begun: where the epoch stands that is not finished, None between epochs.
        """
        if processes.rank() > 0:
            return
        state = {
            **self.weights(model),
            "optimizer": optimizer.state_dict(),
            "rows": self.rows,
            "best": self.best_weights,
            "learner": learner,
            "begun": begun,
        }
        write_checkpoint(self.checkpoint("last"), state, keep=self.checkpoint("previous"))

    def weights(self, model):
        """The content of every checkpoint."""
        return {
            "state_dict": {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
            "arch": self.arch,
            "kind": self.kind,
            "epoch": len(self.rows),
            "acc": self.rows[-1]["val/cls_acc"] if self.rows else None,
            "settings": self.config["settings"],
        }

    def end_epoch(self, model, optimizer, row, learner):
        """Save and log one epoch.

        row: {"train/..." and "val/...": scalar, "val/cls_acc" among them; "train_seconds": ...; others}. The tags with
        a slash go to TensorBoard, everything to metrics.csv. learner: see save.
        """
        epoch, settings = len(self.rows) + 1, self.config["settings"]
        self.rows.append({"epoch": epoch, **row})
        if processes.rank() > 0:
            return
        weights = self.weights(model)
        if self.best["epoch"] == epoch:
            clones = {name: tensor.cpu().clone() for name, tensor in weights["state_dict"].items()}
            self.best_weights = {**weights, "state_dict": clones}
            write_checkpoint(self.checkpoint("best"), weights)
        if epoch % settings["save_interval"] == 0 or epoch in [*settings["milestones"], settings["epoch"]]:
            write_checkpoint(self.checkpoint(f"{epoch:03d}"), weights)
        self.save(model, optimizer, learner)
        self.write_metrics()
        self.log(self.rows[-1])

    def log(self, row):
        """Write a row to TensorBoard."""
        for tag, value in row.items():
            if "/" in tag:
                self.events.add_scalar(tag, value, row["epoch"])
        self.events.flush()

    def write_metrics(self):
        """metrics.csv, whole."""
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_file(self.folder / "metrics.csv", text.getvalue().encode())

    def finish(self, images_per_epoch, **more):
        """Write result.json. images_per_epoch: training images drawn in one. more: further entries."""
        if processes.rank() > 0:
            return
        train_seconds = sum(row["train_seconds"] for row in self.rows)
        result = {
            "best_acc": self.best["val/cls_acc"],
            "best_epoch": self.best["epoch"],
            "last_acc": self.rows[-1]["val/cls_acc"],
            "epochs": len(self.rows),
            "train_seconds": train_seconds,
            "val_seconds": sum(row["val_seconds"] for row in self.rows),
            "startup_seconds": self.startup_seconds,
            "images_per_second": images_per_epoch * len(self.rows) / train_seconds,
            **{name.removeprefix("cost/"): value for name, value in self.rows[-1].items() if name.startswith("cost/")},
            **more,
        }
        write_json(self.folder / "result.json", result)
        self.checkpoint("previous").unlink(missing_ok=True)

    def summarize(self):
        """Print a finished run's result."""
        if processes.rank() > 0:
            return
        result = self.result
        best, epoch, last = (result[name] for name in ("best_acc", "best_epoch", "last_acc"))
        print(f"{self.folder}: best {best:.2f} % (epoch {epoch}), last {last:.2f} %")
        cost = f"{result['train_macs'] / 1e12:.2f} TMAC"
        if result["teacher_queries"]:
            one, two = (100 * result[name] for name in ("computation", "computation_usual"))
            cost = f"the teacher saw {result['teacher_queries']:,} images; {cost}, {one:.1f} % of KD's"
            cost += f" ({two:.1f} % if backward counts as two forwards)"
        print(f"{cost}; {result['train_seconds']:.1f} s of training at {result['images_per_second']:.0f} images/s")
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
    word = word.removesuffix(".pth")
    names = sorted(path.stem for path in (folder / "ckpt").glob("*.pth"))
    matches = [name for name in names if name == word] or [name for name in names if word in name]
    if len(matches) != 1:
        there = f"several: {', '.join(matches)}" if matches else f"none; there are: {', '.join(names) or 'none at all'}"
        raise CheckpointError(f"{folder / 'ckpt'}: --teacher-ckpt {word} has to name one checkpoint, it names {there}")
    return folder / "ckpt" / f"{matches[0]}.pth"


def arch_in_name(folder):
    """The network that a folder's name tells, as in teacher_wrn_40_2 or teacher_vgg13_seed1, else None."""
    told = own_name(folder).removeprefix("teacher_") + "_"
    return max((arch for arch in model_dict if told.startswith(f"{arch}_")), key=len, default=None)


def own_name(folder):
    """A folder's name, also of `.` and `..`; of a link it is the link's."""
    return Path(os.path.abspath(folder)).name  # noqa: PTH100  resolve() would follow links


# ----------------------------------------------------------------------------------------------------------- files


def lock(folder):
    """An open file whose lock says that this process uses the folder; closing it, or dying, gives the folder free."""
    file = (folder / ".lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(file.fileno()), (folder / ".lock").stat()):
            raise BlockingIOError  # the folder was moved aside meanwhile, and there is a new one
    except (BlockingIOError, FileNotFoundError):
        file.seek(0)
        raise RunError(f"{folder} is in use by another process ({file.read().strip()})") from None
    file.truncate(0)
    file.write(f"pid {os.getpid()} on {platform.node()}")
    file.flush()
    return file


def write_file(path, content, keep=None):
    """Replace a file's content (bytes) at once: a reader, or a crash, finds the old file or the new one, whole.

    keep: a path for the old file. Raises OSError, the old file untouched, where the disk is full.
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
    if keep and path.exists():
        path.replace(keep)
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def write_json(path, content):
    write_file(path, (json.dumps(content, indent=1) + "\n").encode())


def read_json(path):
    """The content of a JSON file, None where it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def write_checkpoint(path, content, keep=None):
    buffer = io.BytesIO()
    torch.save({**content, "checksum": checksum(content)}, buffer)
    write_file(path, buffer.getvalue(), keep)


def file_sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
