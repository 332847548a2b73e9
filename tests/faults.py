"""End a small run at random moments, give its command again until it is done, and compare it with one left alone.

    python tests/faults.py --rounds 30 --seed 0

In a round the distillation of a resnet8 ends up to four times by SIGKILL, SIGTERM or Ctrl-C, after a random time or
before a random write to the disk; then it runs to its end. All that outcome() of small_runs.py lists has to be that of
the undisturbed run, and a run that is able to say how it ended has to say so in its last line.
"""

import argparse
import functools
import itertools
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from small_runs import differences, outcome

import dataset
import student_v0
import teacher
from utils import run_main

FLAGS = (  # with this seed the best epoch is the second
    "--dataset synthetic --train-limit 36 --val-limit 100 --epoch 3 --milestones 2 --batch-size 8 --seed 2 "
    "--gpu-id -1 --precision fp32"
)
STUDENT = "--student-arch resnet8 --k 6 --b 4 --score-every 2"
WRITES = ((os, "fsync", 33), (Path, "replace", 15))  # and how often the undisturbed run calls them
STOPPED = re.compile(r"stopped(|; the same command goes on (from the start|after epoch \d))")


@contextmanager
def after(seconds: float, number: int) -> Iterator[None]:
    """Within it this process gets a signal after some seconds."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()
    yield
    timer.cancel()


@contextmanager
def at_call(n: int, owner: object, name: str, number: int) -> Iterator[None]:
    """From here on this process gets a signal before the n-th call of owner.name, counted from 1."""
    function = getattr(owner, name)
    calls = itertools.count(1)

    def counted(*args: object) -> object:
        if next(calls) == n:
            os.kill(os.getpid(), number)
        return function(*args)

    setattr(owner, name, counted)
    yield


def run_forked(main: Callable, flags: str, log: Path, fault: AbstractContextManager) -> int:
    """Run a program in a forked process, which spares the seconds that importing torch takes.

    log: its output is appended there. fault: entered before its main(). Returns the exit code as a shell gives it.
    """

    def within_fault() -> None:
        with fault:
            main(flags.split())

    def program() -> None:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        run_main(within_fault)

    process = multiprocessing.get_context("fork").Process(target=program)
    process.start()
    process.join()
    return process.exitcode if process.exitcode >= 0 else 128 - process.exitcode


class Bench:
    """A teacher, and the undisturbed run that every round is compared with."""

    def __init__(self, folder: Path):
        torch.set_num_threads(1)  # more threads do not survive a fork
        dataset.synthetic = functools.cache(dataset.synthetic)  # generated here, once for all runs
        dataset.load("synthetic", None, "cpu", 36, 100)
        self.folder = folder
        flags = f"--arch resnet8 {FLAGS} --experiments {folder}"
        assert run_forked(teacher.main, flags, folder / "teacher.log", nullcontext()) == 0
        (self.teacher,) = folder.glob("teacher_*/")
        begin = time.monotonic()
        assert self.run("undisturbed", nullcontext()) == 0, self.said("undisturbed")
        self.seconds = time.monotonic() - begin
        self.expected = self.outcome("undisturbed")

    def run(self, name: str, fault: AbstractContextManager) -> int:
        """Give the command of a round, and return its exit code."""
        flags = f"--teacher-path {self.teacher} {STUDENT} {FLAGS} --experiments {self.folder / name}"
        return run_forked(student_v0.main, flags, self.folder / f"{name}.log", fault)

    def said(self, name: str) -> str:
        """All that the runs of a round have printed."""
        return (self.folder / f"{name}.log").read_text()

    def outcome(self, name: str) -> dict[str, object]:
        (folder,) = (self.folder / name).glob("v0_*")
        return outcome(folder)

    def random_round(self, name: str, rng: random.Random) -> tuple[str, str]:
        """Returns what befell the run, and what is wrong with it, "" for nothing."""
        history = ""
        for _ in range(rng.randint(1, 4)):
            number = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            if rng.random() < 0.5:
                owner, function, times = rng.choice(WRITES)
                n = rng.randint(1, times)
                moment, fault = f"{function} {n}", at_call(n, owner, function, number)
            else:
                seconds = rng.uniform(0, self.seconds)
                moment, fault = f"{seconds:.2f} s", after(seconds, number)
            code = self.run(name, fault)
            if code == 0:  # it was done before
                break
            history += f"{number.name} at {moment}, "
            last_line = self.said(name).splitlines()[-1:]
            if code != 128 + number or (number != signal.SIGKILL and not STOPPED.fullmatch(*last_line)):
                return history, f"exit code {code}, last line {last_line}"
        if self.run(name, nullcontext()) != 0 or "Traceback" in self.said(name):
            return history, self.said(name)
        return history, ", ".join(differences(self.expected, self.outcome(name)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    bench = Bench(folder)
    failed = 0
    for i in range(args.rounds):
        history, wrong = bench.random_round(f"round{i}", rng)
        print(f"{history}then to the end: {wrong or 'as the run left alone'}", flush=True)
        failed += bool(wrong)
    if failed:
        sys.exit(f"{failed} of {args.rounds} rounds failed, see {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
