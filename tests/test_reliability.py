"""A run survives: each kind of fault of benchmarks/faults.py once, and what is not told apart by its ending."""

import json
import subprocess
import sys

import pytest
from conftest import QUICK, ROOT

import teacher
from benchmarks.faults import DAMAGES, INTERRUPTIONS


@pytest.fixture(scope="module")
def rounds():
    """{kind: its round} as `faults.py --each` prints them; a process of its own, for it forks."""
    result = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "faults.py", "--each"], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return {line["kind"]: line for line in map(json.loads, result.stdout.splitlines())}


def check(line, code, words):
    assert line["codes"] == [code, 0], line["said"]
    assert words in line["said"] and "Traceback" not in line["said"], line["said"]
    assert line["differences"] == []


@pytest.mark.parametrize("kind", INTERRUPTIONS)
def test_interrupted(rounds, kind):
    _, code, words = INTERRUPTIONS[kind]
    check(rounds[kind], code, words)


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged(rounds, kind):
    check(rounds[kind], 137, DAMAGES[kind][2])


def test_a_second_process_keeps_out(rounds):
    check(rounds["second process"], 1, "is in use by another process (pid ")


def test_fresh_starts_over_and_keeps_the_earlier_run(tmp_path):
    flags = ["--arch", "resnet8", *QUICK.split(), "--experiments", str(tmp_path)]
    teacher.main(flags)
    (folder,) = tmp_path.iterdir()
    first = (folder / "result.json").read_text()
    teacher.main([*flags, "--fresh"])
    (aside,) = (path for path in tmp_path.iterdir() if path != folder)
    assert (aside / "result.json").read_text() == first
    assert json.loads(first)["best_acc"] == json.loads((folder / "result.json").read_text())["best_acc"]


@pytest.mark.parametrize("debug", [True, False])
def test_debug_shows_the_traceback(tmp_path, debug):
    (tmp_path / "file").touch()
    flags = ["--arch", "resnet8", *QUICK.split(), "--experiments", "file/x", *["--debug"][: int(debug)]]
    result = subprocess.run(
        [sys.executable, ROOT / "teacher.py", *flags], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1 and ("Traceback" in result.stderr) == debug
    assert "file is no folder that may be written to" in result.stderr
