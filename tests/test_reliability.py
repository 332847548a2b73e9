"""A run survives: each kind of fault of faults.py once, and what is not told apart by its ending."""

import json
import random
import subprocess
import sys

import pytest
from conftest import QUICK, ROOT
from faults import FAULTS, flip_bits

import teacher


@pytest.fixture(scope="module")
def said():
    """What `faults.py --each` says: a line a kind. A process of its own, for it forks."""
    command = [sys.executable, ROOT / "tests" / "faults.py", "--each"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return result.stdout + result.stderr


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault(said, kind):
    assert f"{kind}: sound\n" in said, said[said.find(f"{kind}: ") :]


def test_no_flipped_bit_of_a_checkpoint_goes_unseen(trained_teacher, tmp_path):
    checkpoint = tmp_path / "best.pth"
    checkpoint.write_bytes((trained_teacher / "ckpt" / "best.pth").read_bytes())
    refused, unseen = flip_bits(checkpoint, 200, random.Random(0))
    assert refused > 100 and unseen == []


def test_fresh_starts_over_and_keeps_the_earlier_run(tmp_path):
    flags = ["--arch", "resnet8", *QUICK.split(), "--experiments", str(tmp_path)]
    teacher.main(flags)
    (folder,) = tmp_path.iterdir()
    first = (folder / "result.json").read_text()
    teacher.main([*flags, "--fresh"])
    (backup,) = (path for path in tmp_path.iterdir() if path != folder)
    assert (backup / "result.json").read_text() == first
    assert json.loads(first)["best_acc"] == json.loads((folder / "result.json").read_text())["best_acc"]


def test_debug_shows_the_traceback(tmp_path):
    """Without it an error is one line: see test_programs.py."""
    (tmp_path / "file").touch()
    flags = ["--arch", "resnet8", *QUICK.split(), "--experiments", "file/x", "--debug"]
    result = subprocess.run(
        [sys.executable, ROOT / "teacher.py", *flags], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1 and "Traceback" in result.stderr
    assert "file is no folder that may be written to" in result.stderr
