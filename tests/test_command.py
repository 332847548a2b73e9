"""command/: the published runs, and that the scripts run what they list."""

import os
import subprocess

import pytest
from conftest import ROOT
from test_cost import PUBLISHED

import student_v0
import teacher


def command(*arguments, code=0, **environment):
    line = ["bash", ROOT / "command" / "command.sh", *arguments]
    result = subprocess.run(line, env={**os.environ, **environment}, capture_output=True, text=True)
    assert result.returncode == code, result.stderr
    return result


def listed(**environment):
    """The listed commands, parsed by the programs' own parsers: (what, Namespace)."""
    runs = []
    for line in command("--list", **environment).stdout.splitlines():
        python, program, *flags = line.split()
        assert python == "python"
        module = {"teacher.py": teacher, "student_v0.py": student_v0}[program]
        runs.append((program, module.flags().parse_args(flags)))
    return runs


def test_every_published_run_is_there():
    runs = listed()
    teachers = [args for program, args in runs if program == "teacher.py"]
    students = [args for program, args in runs if program == "student_v0.py"]
    assert len(teachers) == 6 + 8 and len(students) == 24
    pairs = [f"{args.teacher_path.name.removeprefix('teacher_')} {args.student_arch}" for args in students]
    assert set(pairs) == set(PUBLISHED)
    settings = [(pair, args.strategy, args.k, args.b, args.w) for pair, args in zip(pairs, students)]
    assert set(settings) == {(p, *s) for p in PUBLISHED for s in ((0, 64, 64, 1000), (3, 48, 32, 10))}
    assert {args.arch for args in teachers} == {name for pair in PUBLISHED for name in pair.split()}
    for args in teachers + students:
        arch = getattr(args, "student_arch", None) or args.arch
        assert args.lr == (0.01 if arch in ("MobileNetV2", "ShuffleV1", "ShuffleV2") else 0.05)
        assert (args.epoch, args.batch_size, args.milestones) == (240, 64, [150, 180, 210])
    made = [str(args.experiments / f"teacher_{args.arch}") for args in teachers]
    assert all(str(args.teacher_path) in made[:6] for args in students)  # before the students that need them


def test_only_and_seeds():
    runs = listed(ONLY="wrn_40_2", SEEDS="0 1 2")
    assert [args.arch for program, args in runs if program == "teacher.py"].count("wrn_40_2") == 1
    students = [args for program, args in runs if program == "student_v0.py"]
    assert len(students) == 3 * 2 * 3 and {args.seed for args in students} == {0, 1, 2}
    assert {args.teacher_path.name for args in students} == {"teacher_wrn_40_2"}
    assert len(listed(ONLY="vgg13:vgg8")) == 4
    assert len(listed(ONLY="vgg8")) == 3 + 1 + 6


@pytest.mark.parametrize(
    "arguments, environment", [(["--lsit"], {}), (["--list", "x"], {}), (["--list"], {"ONLY": "vgg9"})]
)
def test_bad_use(arguments, environment):
    result = command(*arguments, code=2, **environment)
    assert result.stderr.startswith("error: ") and not result.stdout


def test_it_runs_what_it_lists(tmp_path):
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/ran\n')
    fake.chmod(0o755)
    only = {"ONLY": "vgg13:vgg8", "PYTHON": str(fake)}
    command(**only)
    ran = (tmp_path / "ran").read_text().splitlines()
    assert [f"python {line}" for line in ran] == command("--list", **only).stdout.splitlines()
    fake.write_text("#!/bin/sh\nexit 3\n")
    assert command(code=3, **only).stdout.count("python") == 1  # stops at a failed run
