"""What befalls a run from outside: random ends, and damaged or missing files."""

import subprocess
import sys

import pytest
from conftest import ROOT
from small_runs import TINY, ctrl_c_after, train

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


def test_a_missing_last_checkpoint_does_not_start_the_run_over(tmp_path):
    with ctrl_c_after(1):
        train(tmp_path, TINY)
    (folder,) = tmp_path.iterdir()
    (folder / "ckpt" / "last.pth").unlink()
    before = contents(folder)
    with pytest.raises(RunError, match=r"last\.pth is missing, but not its other checkpoints; --fresh moves"):
        train(tmp_path, TINY)
    assert contents(folder) == before
