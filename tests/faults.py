"""Kill and damage a small run, resume it until it is done, and compare it bit by bit with one left alone.

    python tests/faults.py --rounds 30 --seed 0    random faults
    python tests/faults.py --each                  each kind of fault once, at its worst moment
    python tests/faults.py --bits 3000             flip bits of a checkpoint: each is refused, or changes no value

A round: the distillation of a resnet8 on synthetic data starts, dies after a random time by SIGKILL, SIGTERM or SIGINT,
and with even odds a random file of its folder is truncated, altered or deleted; this up to four times, then it runs to
its end. Weights, optimizer, best checkpoint, counter, metrics, TensorBoard and result have to be those of the
undisturbed run (times excepted).
"""

import argparse
import csv
import functools
import itertools
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import dataset
import student_v0
import teacher
from engine.meters import Evaluator
from models import CheckpointError, read_checkpoint
from utils import run_main

FLAGS = (  # with this seed the best epoch is the second
    "--dataset synthetic --train-limit 36 --val-limit 100 --epoch 3 --milestones 2 --batch-size 8 --seed 2 "
    "--gpu-id -1 --precision fp32 --experiments"
).split()
STEPS = 5  # in an epoch
LAST = "ckpt/student_last.pth"
TERM, INT, HUP, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL


def start(main, flags, log, before=lambda: None):
    """A process that runs main(flags) as the program would, its output appended to `log`.

    It is forked, to spare the seconds that importing torch takes. before: called in it first.
    """

    def program():
        signal.signal(HUP, signal.SIG_DFL)  # under nohup it is ignored
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["student_v0.py", *flags]
        before()
        run_main(lambda: main(flags))

    process = multiprocessing.get_context("fork").Process(target=program)
    process.start()
    return process


def wait(process):
    """The exit code as a shell gives it: 128 + signal where one killed it."""
    process.join()
    return process.exitcode if process.exitcode >= 0 else 128 - process.exitcode


# ------------------------------------------------------------------------------------------------------- comparing


def flatten(content, name=""):
    """{path in the structure: what tells its value to the bit} of nested dicts, lists and tensors."""
    if isinstance(content, (dict, list, tuple)) and content:
        entries = content.items() if isinstance(content, dict) else enumerate(content)
        return {k: v for key, entry in entries for k, v in flatten(entry, f"{name}/{key}").items()}
    if torch.is_tensor(content):
        return {name: (content.dtype, content.shape, content.numpy().tobytes())}
    return {name: repr(content)}


def differences(one, other):
    """Names under which two flat contents differ."""
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]


def scalars(folder):
    """{tag: [(step, value), ...]} of a run's TensorBoard files, read by their own format: protobuf records."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted((folder / "events").iterdir()):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
            content = content[16 + length :]
    return found


def outcome(folder):
    """Everything that a finished run of a student leaves and that has to repeat, flat."""
    content = {
        name: torch.load(folder / "ckpt" / f"student_{name}.pth", weights_only=True) for name in ("last", "best")
    }
    with (folder / "metrics.csv").open() as f:
        content["metrics"] = list(csv.DictReader(f))
    if (folder / "counter.npy").exists():
        content["counter"] = torch.from_numpy(np.load(folder / "counter.npy"))
    content["result"] = json.loads((folder / "result.json").read_text())
    content["events"] = scalars(folder)
    may_differ = ("seconds", "images_per_second", "peak_memory", "experiments")
    return {name: value for name, value in flatten(content).items() if not any(word in name for word in may_differ)}


# ---------------------------------------------------------------------------------------------------------- damage


def truncate(path, rng):
    os.truncate(path, rng.randrange(max(path.stat().st_size, 1)))


def alter(path, rng):
    """Eight bytes, anywhere."""
    content = bytearray(path.read_bytes())
    for _ in range(8 if content else 0):
        content[rng.randrange(len(content))] ^= rng.randrange(1, 256)
    path.write_bytes(content)


def delete(path, rng):
    path.unlink()


def flip_bits(checkpoint, flips, rng):
    """Flip one bit of a checkpoint file, so many times, each in a fresh copy. Returns (flips refused, flips unseen).

    Every second one hits what the zip container has around the content. Unseen: the (byte, bit) of each that was read
    and changed a value. Raises what read_checkpoint raises besides CheckpointError.
    """
    content, expected = checkpoint.read_bytes(), flatten(read_checkpoint(checkpoint))
    headers = [match.start() for match in re.finditer(rb"PK[\1\3\5\6]", content)]
    copy, refused, unseen = checkpoint.with_suffix(".flipped"), 0, []
    for i in range(flips):
        byte = min(rng.choice(headers) + rng.randrange(96), len(content) - 1) if i % 2 else rng.randrange(len(content))
        bit = rng.randrange(8)
        flipped = bytearray(content)
        flipped[byte] ^= 1 << bit
        copy.write_bytes(flipped)
        try:
            if differences(expected, flatten(read_checkpoint(copy))):
                unseen.append((byte, bit))
        except CheckpointError:
            refused += 1
    copy.unlink(missing_ok=True)
    return refused, unseen


# ---------------------------------------------------------------------------------------------------------- rounds


class Bench:
    """A teacher, and the undisturbed run that every round is compared with, in a folder of their own."""

    def __init__(self, folder):
        torch.set_num_threads(1)  # more threads do not survive a fork
        dataset.synthetic = functools.cache(dataset.synthetic)  # made here, once for all runs
        dataset.load("synthetic", None, "cpu", 36, 100)
        self.folder = folder
        process = start(teacher.main, ["--arch", "resnet8", *FLAGS, str(folder)], folder / "teacher.log")
        assert wait(process) == 0, (folder / "teacher.log").read_text()
        (self.teacher,) = folder.glob("teacher_*")
        begin = time.monotonic()
        code, said = self.run("undisturbed")
        assert code == 0, said
        self.seconds = time.monotonic() - begin
        self.expected = outcome(self.run_folder("undisturbed"))

    def run_folder(self, name):
        (folder,) = (self.folder / name).glob("v0_*")
        return folder

    def start(self, name, *before):
        flags = f"--teacher-path {self.teacher} --student-arch resnet8 --k 6 --b 4 --score-every 2".split()
        experiments = self.folder / name
        return start(student_v0.main, [*flags, *FLAGS, str(experiments)], experiments.with_suffix(".log"), *before)

    def run(self, name, *before):
        """Run to the end, or to whatever `before` brings about. Returns (exit code, all that was said in the round)."""
        code = wait(self.start(name, *before))
        return code, (self.folder / f"{name}.log").read_text()

    def finish(self, name, words=""):
        """Resume until the end. Returns what is wrong then, "" for nothing. words: that have to be said."""
        code, said = self.run(name)
        names = None if code else differences(self.expected, outcome(self.run_folder(name)))
        sound = names == [] and words in said and "Traceback" not in said
        return "" if sound else f"exit code {code}, differences {names}, {words!r} is to be said:\n{said}"

    def each(self):
        """Yields (kind of fault, what is wrong)."""
        for i, (kind, fault) in enumerate(FAULTS.items()):
            code, said = self.run(f"fault{i}", fault.before)
            for file in fault.files.split():
                fault.damage(self.run_folder(f"fault{i}") / file, random.Random(i))
            yield kind, f"exit code {code}:\n{said}" if code != fault.code else self.finish(f"fault{i}", fault.words)

    def random_round(self, name, rng):
        """Returns (what befell it, what is wrong)."""
        faults = []
        for _ in range(rng.randint(1, 4)):
            process, number = self.start(name), rng.choice([KILL, TERM, INT])
            time.sleep(rng.uniform(0, self.seconds / 2))
            os.kill(process.pid, number)
            code = wait(process)
            if code == 0:  # it was done before
                continue
            faults.append(number.name)
            if code != 128 + number:
                return faults, f"exit code {code}:\n{(self.folder / f'{name}.log').read_text()}"
            files = [path for path in (self.folder / name).rglob("*") if path.is_file() and path.name != ".lock"]
            if files and rng.random() < 0.5:
                damage = rng.choice([truncate, alter, delete])
                damage(rng.choice(sorted(files)), rng)
                faults.append(damage.__name__)
        return faults, self.finish(name)


# ------------------------------------------------------------------------------------------------ each kind, once


def at(owner, name, n, fault):
    """A `before` that has the n-th call of owner.name, counted from 1, go through fault(function, *args)."""

    def before():
        function, calls = getattr(owner, name), itertools.count(1)
        setattr(owner, name, lambda *args: fault(function, *args) if next(calls) == n else function(*args))

    return before


at_step = functools.partial(at, student_v0.Distiller, "step")
at_write = functools.partial(at, Path, "replace")
at_validation = functools.partial(at, Evaluator, "__call__")  # the first is the teacher's, before training


def send(*numbers, pause=0):
    def fault(function, *args):
        for i, number in enumerate(numbers):
            time.sleep(pause if i else 0)
            os.kill(os.getpid(), number)
        return function(*args)

    return fault


def fill_disk(step, *args):
    """From here on the kernel refuses files of more than 100 kB; a state has ten times that."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    return step(*args)


def not_a_number(step, *args):
    stats = step(*args)
    return {**stats, "train/loss": stats["train/loss"] * float("nan")}


def ruin_weights(step, distiller, *args):
    """What an overflowing update does behind a loss that was finite."""
    stats = step(distiller, *args)
    next(distiller.model.parameters()).data.fill_(float("nan"))
    return stats


def close_stderr(step, *args):
    """Whoever read the program's messages is gone, as `tee` is after Ctrl-C."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 2)
    return send(TERM)(step, *args)


def second_process(step, *args):
    """The same command once more, meanwhile."""
    assert wait(start(student_v0.main, sys.argv[1:], "/dev/stdout")) == 1
    return step(*args)


class Fault(NamedTuple):
    """What befalls a run, and how it ends."""

    before: Callable
    code: int
    words: str  # that it says, then or when it resumes
    damage: Callable | None = None  # done before it resumes
    files: str = ""  # to these


IN_STEP = STEPS + 4
FAULTS = {
    "SIGTERM in a step": Fault(at_step(IN_STEP, send(TERM)), 143, "stopped by SIGTERM in epoch 2 after step 4, saved"),
    "SIGINT in a step": Fault(at_step(IN_STEP, send(INT)), 130, "stopped by SIGINT in epoch 2 after step 4, saved"),
    "SIGHUP in a step": Fault(at_step(IN_STEP, send(HUP)), 129, "stopped by SIGHUP in epoch 2 after step 4, saved"),
    "SIGTERM in the first step": Fault(at_step(1, send(TERM)), 143, "in epoch 1 after step 1, saved"),
    "SIGTERM in an epoch's last step": Fault(at_step(2 * STEPS, send(TERM)), 143, "in epoch 2 after step 5, saved"),
    "SIGTERM in validation": Fault(at_validation(3, send(TERM)), 143, "stopped by SIGTERM after epoch 2, saved"),
    "SIGINT twice": Fault(at_step(IN_STEP, send(INT, INT, pause=1.1)), 130, "once more stops at once"),
    "SIGTERM by two ways": Fault(at_step(IN_STEP, send(TERM, TERM)), 143, "by SIGTERM in epoch 2 after step 4, saved"),
    "SIGKILL in a step": Fault(at_step(2 * STEPS + 4, send(KILL)), 137, "resuming"),
    **{f"SIGKILL at file {n}": Fault(at_write(n, send(KILL)), 137, "") for n in range(1, 13)},
    "disk full": Fault(at_step(IN_STEP, fill_disk), 1, ".pth could not be written (File too large); what was saved"),
    "weights not finite": Fault(at_step(2 * STEPS, ruin_weights), 1, "weights are no longer finite in epoch 2: stop"),
    "loss not finite": Fault(at_step(IN_STEP, not_a_number), 1, "the loss was not finite in epoch 2, step 4: stopped"),
    "stderr gone": Fault(at_step(IN_STEP, close_stderr), 143, "resuming"),
    "second process": Fault(at_step(IN_STEP, second_process), 0, "is in use by another process (pid "),
    **{
        f"{damage.__name__} {files}": Fault(at_step(2 * STEPS + 4, send(KILL)), 137, words, damage, files)
        for damage, files, words in [
            (truncate, LAST, "going back to the state before"),
            (alter, LAST, "going back to the state before"),
            (delete, LAST, "resuming"),
            (truncate, f"{LAST} ckpt/student_previous.pth", "no sound state is left, starting over"),
            (alter, "ckpt/student_best.pth", "resuming"),
            (delete, "ckpt/student_best.pth counter.npy metrics.csv", "resuming"),
            (truncate, "counter.npy metrics.csv", "resuming"),
            (truncate, "config.json", "is damaged, written anew"),
        ]
    },
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--each", action="store_true")
    parser.add_argument("--bits", type=int, metavar="FLIPS")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, folder = random.Random(args.seed), Path(tempfile.mkdtemp(prefix="faults-"))
    bench, failed = Bench(folder), 0
    if args.bits:
        refused, unseen = flip_bits(bench.run_folder("undisturbed") / LAST, args.bits, rng)
        rounds = [(f"{args.bits} flips, {refused} refused", str(unseen or ""))]
    elif args.each:
        rounds = bench.each()
    else:
        rounds = (bench.random_round(f"round{i}", rng) for i in range(args.rounds))
    for what, wrong in rounds:
        print(f"{what}: {wrong or 'sound'}", flush=True)
        failed += bool(wrong)
    if failed:
        sys.exit(f"{failed} failed, see {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
