"""utils.py: the flags' types, and how a program ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

import student_v0
import teacher
import utils
from utils import run_main


@pytest.mark.parametrize("flags", ["--epoch 60", "--epoch 150", "--epoch 151", "--epoch 60 --milestones", ""])
def test_milestones_that_never_come_are_told(capsys, flags):
    parser = teacher.make_parser()
    utils.check_shared_flags(parser, parser.parse_args(f"--arch vgg8 {flags}".split()))
    warned = "ends before the milestones" in capsys.readouterr().out
    assert warned == (flags in ("--epoch 60", "--epoch 150", "--epoch 151"))


def test_paths_know_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    args = teacher.make_parser().parse_args("--arch resnet8 --experiments=~/exp --data-root=~/data".split())
    assert (args.experiments, args.data_root) == (tmp_path / "exp", tmp_path / "data")
    args = student_v0.make_parser().parse_args(["--teacher-path=~/t", "--experiments=~no-such-user/x"])
    assert (args.teacher_path, args.experiments) == (tmp_path / "t", Path("~no-such-user/x"))


@pytest.fixture
def ended(monkeypatch, capsys):
    """ended(main, *flags): run_main(main) has to end the program; returns its exit code and what it says there."""
    monkeypatch.setattr(sys, "argv", ["teacher.py"])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(main, *flags):
        sys.argv.extend(flags)
        with pytest.raises(SystemExit) as error:
            run_main(main)
        if isinstance(error.value.code, str):  # Python prints it and exits with 1
            return 1, error.value.code + "\n"
        return error.value.code, capsys.readouterr().err

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_program_with_one_line(ended, number, code):
    """faults.py does so to runs."""

    def main():
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt as e:
            e.args = ("after epoch 17",)  # as a run does
            raise

    assert ended(main) == (code, "stopped; the same command goes on after epoch 17\n")
    assert ended(lambda: os.kill(os.getpid(), number)) == (code, "stopped\n")


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize("main, words", [
    (lambda: torch.empty(1 << 60, dtype=torch.uint8), "can't allocate memory"),
    (lambda: np.empty(1 << 60, dtype=np.uint8), "Unable to allocate"),
    (lambda: Path("nowhere").read_bytes(), "No such file or directory: 'nowhere'"),
    (raising(torch.OutOfMemoryError("CUDA out of memory. Tried\n2 GiB.")), "CUDA out of memory. Tried 2 GiB."),
    (raising(MemoryError()), "out of memory"),
])  # fmt: skip
def test_an_error_of_the_world_is_one_line(ended, main, words):
    code, line = ended(main)
    assert code == 1 and line.startswith("teacher.py: error: ") and words in line and line.count("\n") == 1
    with pytest.raises((OSError, MemoryError, RuntimeError)):
        ended(main, "--debug")


def test_an_error_of_ours_is_a_traceback(ended):
    with pytest.raises(RuntimeError, match="ours"):
        ended(raising(RuntimeError("ours")))


def test_lines_are_seen_at_once_through_a_pipe():
    """Also one that the terminal cannot show. What the program has not passed on when it is killed is lost."""
    code = "import os, utils; utils.run_main(lambda: (print('± first'), print('second'), os.kill(os.getpid(), 9)))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert process.returncode == -signal.SIGKILL and process.stdout == "? first\nsecond\n", process.stderr
