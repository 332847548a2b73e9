"""Small runs of the two programs on generated images, and what they leave: for the tests and for faults.py."""

import csv
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from conftest import QUICK
from tensorboardX.proto.event_pb2 import Event, SessionLog

import dataset
import student_v0
import teacher
from engine.device import Precision
from engine.run import Run

KD = "--strategy 0 --k 64 --b 64 --w 1000"
TINY = "--train-limit 128 --val-limit 100"  # after QUICK: epochs of two steps


def train(experiments: Path, *flags: str) -> Path:
    """Run teacher.py with a resnet8 in this process. Returns the folder of the only teacher in `experiments`."""
    words = " ".join(["--arch resnet8", QUICK, *flags]).split()
    teacher.main([*words, "--experiments", str(experiments)])
    (folder,) = experiments.glob("teacher_*")
    return folder


def distil(teacher_path: Path, experiments: Path, *flags: str) -> Path:
    """Run student_v0.py with a resnet8 in this process. Returns the folder of the only student in `experiments`."""
    words = " ".join(["--student-arch resnet8", QUICK, *flags]).split()
    student_v0.main([*words, "--teacher-path", str(teacher_path), "--experiments", str(experiments)])
    (folder,) = experiments.glob("v0_*")
    return folder


def distiller_of(
    student: torch.nn.Module, teacher_model: torch.nn.Module, flags: str = "", images: int = 64, precision: str = "fp32"
) -> student_v0.Distiller:
    """A Distiller of so many generated images, on the teacher's device."""
    args = student_v0.make_parser().parse_args(flags.split())
    device = next(teacher_model.parameters()).device
    data = dataset.load("synthetic", None, device, images, 1)
    return student_v0.Distiller(student.train(), teacher_model, args, data, Precision(precision, device.type))


@contextmanager
def ctrl_c_after(epoch: int) -> Iterator[None]:
    """Within it a run ends by Ctrl-C after an epoch."""
    end_epoch = Run.end_epoch

    def interrupted(run: Run, *args: Any) -> None:
        end_epoch(run, *args)
        if run.epoch == epoch:
            raise KeyboardInterrupt

    try:
        with patch.object(Run, "end_epoch", interrupted):
            yield
    except KeyboardInterrupt:
        return
    raise AssertionError("the run was not interrupted")


# ------------------------------------------------------------------------------------------------ what a run has left


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return torch.load(folder / "ckpt" / f"{name}.pth", weights_only=True)["state_dict"]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """{tag: [(step, value), ...]} of a run's TensorBoard files, as TensorBoard shows them.

    The start of a session hides what was logged before it for its own step and later ones.
    """
    shown = {}
    for path in sorted((folder / "events").iterdir()):
        content = path.read_bytes()
        while len(content) > 16:
            (length,) = struct.unpack("<Q", content[:8])
            if len(content) < 16 + length:  # cut off by a SIGKILL
                break
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.session_log.status == SessionLog.START:
                for tag, values in shown.items():
                    shown[tag] = [(step, value) for step, value in values if step < event.step]
            for value in event.summary.value:
                shown.setdefault(value.tag, []).append((event.step, value.simple_value))
    return shown


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves and that has to repeat to the bit, each value under its path: checkpoints, metrics.csv,
    result.json, counter.npy and what TensorBoard shows, but for seconds and memory."""
    content = {path.stem: torch.load(path, weights_only=True) for path in folder.glob("ckpt/*.pth")}
    content |= {"metrics": metrics(folder), "result": result(folder), "events": scalars(folder)}
    if (folder / "counter.npy").exists():
        content["counter"] = torch.from_numpy(np.load(folder / "counter.npy"))
    may_differ = ("seconds", "images_per_second", "peak_memory", "experiments")
    return {name: value for name, value in flatten(content).items() if not any(word in name for word in may_differ)}


def flatten(content: Any, name: str = "") -> dict[str, Any]:
    """{path in the structure: what tells its value to the bit} of nested dicts, lists and tensors."""
    if torch.is_tensor(content):
        return {name: (content.dtype, content.shape, content.numpy().tobytes())}
    if not isinstance(content, (dict, list, tuple)) or not content:
        return {name: repr(content)}
    flat = {}
    for key, entry in content.items() if isinstance(content, dict) else enumerate(content):
        flat |= flatten(entry, f"{name}/{key}")
    return flat


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The paths under which two outcomes differ."""
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]
