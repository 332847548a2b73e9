"""What befalls a run from outside: random ends, damaged files, a full disk, a second process."""

import resource
import subprocess
import sys
from contextlib import contextmanager

import pytest
from conftest import QUICK, ROOT
from small_runs import TINY, ctrl_c_after, differences, outcome, result, train

from engine.files import lock
from engine.run import RunError


def test_runs_that_end_at_random_moments():
    """A few rounds of faults.py, in a process of its own, for it forks."""
    command = [sys.executable, ROOT / "tests" / "faults.py", "--rounds", "4", "--seed", "0"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.count(": as the run left alone") == 4 and process.stdout.count("SIG") > 4


def contents(folder):
    """{path: content} of every file."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("file", ["ckpt/last.pth", "config.json"])
def test_a_damaged_file_is_named_and_nothing_is_overwritten(tmp_path, file):
    with ctrl_c_after(1):
        train(tmp_path, TINY)
    (folder,) = tmp_path.iterdir()
    damaged = folder / file
    damaged.write_bytes(damaged.read_bytes()[:-100])
    before = contents(folder)
    with pytest.raises(RunError, match=rf"{file}\b.* damaged.*; --fresh moves") as error:
        train(tmp_path, TINY)
    assert "\n" not in str(error.value) and contents(folder) == before


@contextmanager
def full_disk():
    """Within it the kernel refuses files of more than 100 kB, of which a checkpoint is one."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_spoils_nothing(tmp_path):
    whole = train(tmp_path / "whole", TINY)
    with ctrl_c_after(1):
        train(tmp_path / "other", TINY)
    with full_disk(), pytest.raises(OSError, match=r"\.pth could not be written \(File too large\); what was saved"):
        train(tmp_path / "other", TINY)
    assert not list(tmp_path.rglob("*.part"))
    assert not differences(outcome(train(tmp_path / "other", TINY)), outcome(whole))


def test_a_second_process_is_refused(tmp_path):
    with ctrl_c_after(1):
        train(tmp_path, TINY)
    (folder,) = tmp_path.iterdir()
    with lock(folder), pytest.raises(BlockingIOError, match=r"in use by another process \(pid "):
        train(tmp_path, TINY)
    assert result(train(tmp_path, TINY))["epochs"] == 2


def test_an_error_of_the_world_is_one_line(tmp_path):
    """By the program itself, from another folder."""
    (tmp_path / "file").touch()
    command = [sys.executable, ROOT / "teacher.py", "--arch", "resnet8", *QUICK.split(), "--experiments", "file/x"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert process.returncode == 1 and process.stderr.count("\n") == 1
    assert process.stderr.startswith("teacher.py: error: file/x/teacher_resnet8")
