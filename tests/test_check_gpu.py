"""command/check_gpu.sh: that it notices what is wrong; all of it where there is a GPU."""

import os
import subprocess
import sys

import check_gpu
import pytest
import torch
from conftest import ROOT

import student_v0
import teacher


@pytest.mark.gpu
def test_the_gpu_computes_what_it_should(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "FILE": str(tmp_path / "told")}
    assert subprocess.run(["bash", ROOT / "command" / "check_gpu.sh"], env=environment).returncode == 0
    assert "all passed" in (tmp_path / "told").read_text()


@pytest.mark.parametrize("code", [0, 1])
def test_all_is_in_the_file_too(tmp_path, code):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho $1; echo warned >&2; exit {code}\n")
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "FILE": str(tmp_path / "told")}
    command = ["bash", ROOT / "command" / "check_gpu.sh"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == code
    assert (tmp_path / "told").read_text() == result.stdout == "tests/check_gpu.py\nwarned\n"


def test_a_check_that_fails_is_told(capsys):
    def fail():
        print("before")
        raise SystemExit("no")

    assert check_gpu.check("good", lambda: print("unseen") or "told")
    assert "unseen" not in capsys.readouterr().out
    assert not check_gpu.check("bad", fail)
    out = capsys.readouterr().out
    assert "FAILED (SystemExit: no)" in out and "Traceback" in out and "before" in out


def ends_with(seconds, weight, momentum):
    """A stand-in for a program whose run ends with these numbers."""

    def main(words):
        folder = check_gpu.Path(words[-1], "run", "ckpt")
        folder.mkdir(parents=True)
        more = weight(words) if callable(weight) else weight
        rows = [{"acc": 1.0, "train_seconds": seconds}]
        saved = {"state_dict": {"w": torch.tensor([1.0, more])}, "rows": rows, "trainer": {}}
        torch.save(saved | {"optimizer": {"state": {0: {"momentum_buffer": momentum}}}}, folder / "last.pth")

    return main


def test_runs_that_end_otherwise_are_noticed(monkeypatch):
    def ended(*numbers):
        return lambda folder: ends_with(*numbers)([folder])

    one = ended(1.0, 2.0, 3.0)
    assert check_gpu.alike(one, ended(9.0, 2.0, 3.0)) == "differs by 0.0e+00"
    for other in (ended(1.0, 2.0000002, 3.0), ended(1.0, 2.0, 4.0)):
        with pytest.raises(AssertionError, match="differs by"):
            check_gpu.alike(one, other)
    assert check_gpu.alike(one, ended(1.0, 2.002, 4.0), 0.01) == "differs by 8.9e-04"
    with pytest.raises(AssertionError, match="differs by"):
        check_gpu.alike(one, ended(1.0, 2.1, 3.0), 0.01)

    replaying = ends_with(1.0, lambda words: check_gpu.replays.append(1) or 2.0, 3.0)
    assert check_gpu.graphed(replaying, "") == "differs by 0.0e+00, 2 replays"
    monkeypatch.setattr(check_gpu, "CUDA", True)
    with pytest.raises(AssertionError, match="no graph was replayed"):
        check_gpu.graphed(ends_with(1.0, 2.0, 3.0), "")
    with pytest.raises(AssertionError, match="differs by"):
        check_gpu.graphed(ends_with(1.0, lambda words: 2.0 + ("off" in words), 3.0), "")


def test_the_checks_of_a_gpu_are_runs_that_exist(monkeypatch, tmp_path):
    """Where there are two GPUs, as far as a CPU can tell: the flags of every run, and each check once."""
    monkeypatch.setattr(check_gpu, "CUDA", True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    checks = dict(check_gpu.checks(tmp_path, None, "bf16"))
    assert len(checks) > 25 and len(list(check_gpu.checks(tmp_path, None, "bf16"))) == len(checks)
    runs = [function.args for function in checks.values() if getattr(function, "func", None) is check_gpu.graphed]
    assert len(runs) > 15
    for main, flags, *_ in runs:
        program = {student_v0.main: student_v0, teacher.main: teacher}[main]
        args = program.make_parser().parse_args(flags.split())
        if program is student_v0:
            student_v0.check_flags(student_v0.make_parser(), args)
            student_v0.load_teacher(args)


def test_the_exchange_works_between_cpus():
    assert "gradients" in check_gpu.exchange(torch.device("cpu"))
