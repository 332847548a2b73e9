"""command/: the list of the published runs, how command.sh runs it, and which interpreter the scripts take."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT
from stand_in import make_machine, started_and_ended, write_program

import student_v0
import teacher
from reporting import published

SMALL_LR = ("MobileNetV2", "ShuffleV1", "ShuffleV2")
OURS = ("ONLY", "SEEDS", "JOBS", "PYTHON", "CUDA_VISIBLE_DEVICES")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in OURS}


def command(*arguments, code=0, root=ROOT, **environment):
    line = ["bash", root / "command" / "command.sh", *arguments]
    result = subprocess.run(line, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == code, result.stdout + result.stderr
    return result


def listed(*part, **environment):
    """The listed commands."""
    return command("--list", *part, **environment).stdout.splitlines()


def parsed(line):
    """A command's flags, read by its program's own parser."""
    python, program, *flags = line.split()
    module = {"teacher.py": teacher, "student_v0.py": student_v0}[program]
    assert python == "python"
    return module.make_parser().parse_args(flags)


@pytest.fixture
def machine(tmp_path):
    return make_machine(tmp_path / "with a space")


# ------------------------------------------------------------------------------------------------------- the list


def test_every_published_run_is_listed():
    pairs = list(published.pairs())
    teachers = [parsed(line) for line in listed("teachers")]
    students = [parsed(line) for line in listed("students")]
    assert listed() == listed("teachers") + listed("students")
    archs = [args.arch for args in teachers]
    assert set(archs[:6]) == {pair[0] for pair in pairs} and set(archs[6:]) == {pair[1] for pair in pairs}
    assert len(archs) == 6 + 8

    settings = []
    for args in students:
        pair = (args.teacher_path.name.removeprefix("teacher_"), args.student_arch)
        settings.append((pair, args.strategy, args.k, args.b, args.w))
    kd = [(pair, 0, 64, 64, 1000) for pair in pairs]
    unix = [(pair, 3, 48, 32, 10) for pair in pairs]
    assert sorted(settings) == sorted(kd + unix)

    for args in teachers + students:
        arch = args.student_arch if hasattr(args, "student_arch") else args.arch
        assert args.lr == (0.01 if arch in SMALL_LR else 0.05)
        assert (args.epoch, args.batch_size, args.milestones, args.seed) == (240, 64, [150, 180, 210], 0)


def test_the_list_stands_at_the_head_as_it_is_printed():
    script = (ROOT / "command" / "command.sh").read_text().splitlines()
    assert [line for line in script if line.startswith("python ")] == listed()


def test_seeds():
    lines = listed(ONLY="wrn_40_2", SEEDS=" 0 12 3 ")
    assert len(lines) == 1 + 3 * 3 + 3 * 6
    assert [line for line in lines if "--seed" not in line] == ["python teacher.py --arch wrn_40_2 --lr 0.05"]
    assert {parsed(line).seed for line in listed("students", SEEDS="12 3")} == {12, 3}


def test_only():
    pair = [
        "python teacher.py --arch vgg13 --lr 0.05",
        "python teacher.py --arch vgg8 --lr 0.05 --seed 0",
        "python student_v0.py --teacher-path ./experiments/teacher_vgg13/ --student-arch vgg8 --lr 0.05 --seed 0 "
        "--strategy 0 --k 64 --b 64 --w 1000",
        "python student_v0.py --teacher-path ./experiments/teacher_vgg13/ --student-arch vgg8 --lr 0.05 --seed 0 "
        "--strategy 3 --k 48 --b 32 --w 10",
    ]
    assert listed(ONLY="vgg13:vgg8") == pair
    assert listed(ONLY="vgg8") == listed(ONLY="vgg8 vgg13:vgg8") and len(listed(ONLY="vgg8")) == 3 + 1 + 6
    assert len(listed(ONLY="vgg13")) == 1 + 2 + 4


def test_a_downloaded_teacher_is_not_trained(machine):
    (machine / "experiments/teacher_vgg13/ckpt").mkdir(parents=True)
    (machine / "experiments/teacher_vgg13/ckpt/best.pth").touch()
    all_but_one = listed("teachers", root=machine)
    assert len(all_but_one) == 13 and not any("vgg13" in line for line in all_but_one)
    command(root=machine, ONLY="vgg13:vgg8", PYTHON=str(machine / "python"))
    assert [what for what, _, _ in started_and_ended(machine)].count("end") == 3
    (machine / "experiments/teacher_vgg13/config.json").touch()  # now the folder is a run's
    assert len(listed("teachers", root=machine)) == 14


@pytest.mark.parametrize(
    "arguments, environment",
    [
        (["--lsit"], {}),
        (["--list", "x"], {}),
        ([], {"ONLY": "vgg9"}),
        ([], {"ONLY": "vgg13:wrn_16_2"}),
        ([], {"ONLY": " "}),
        ([], {"ONLY": "*"}),
        ([], {"SEEDS": "0 x"}),
        ([], {"SEEDS": "0,1"}),
        ([], {"SEEDS": " "}),
        ([], {"SEEDS": "0 00"}),
        ([], {"SEEDS": "1 0 1"}),
        ([], {"JOBS": "0"}),
        ([], {"JOBS": "1.5"}),
    ],
)
def test_bad_use_gives_one_line(machine, arguments, environment):
    result = command(*arguments, code=2, root=machine, PYTHON=str(machine / "python"), **environment)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and not result.stdout
    assert not (machine / "ran").exists()


# --------------------------------------------------------------------------------------------------- running the list


def test_it_runs_what_it_lists(machine):
    only = {"root": machine, "ONLY": "vgg13:vgg8", "PYTHON": str(machine / "python")}
    result = command(**only, CUDA_VISIBLE_DEVICES="5")
    notes = started_and_ended(machine)
    assert [what for what, _, _ in notes] == ["start", "end"] * 4
    assert [line for what, _, line in notes if what == "end"] == listed(**only)
    assert {gpu for what, gpu, _ in notes if what == "start"} == {"5"}
    logs = sorted(path.name for path in (machine / "experiments/logs").iterdir())
    assert logs == [
        "teacher_vgg13.log",
        "teacher_vgg13_student_vgg8_seed0_strategy0.log",
        "teacher_vgg13_student_vgg8_seed0_strategy3.log",
        "teacher_vgg8_seed0.log",
    ]
    assert "python report.py experiments" in result.stdout


def most_at_once(notes):
    """How many runs went on at the same time."""
    running = 0
    most = 0
    for what, _, _ in notes:
        running += 1 if what == "start" else -1
        most = max(most, running)
    return most


@pytest.mark.parametrize(
    "installed, visible, used",
    [
        (0, {}, ["none"]),
        (1, {}, ["0"]),
        (3, {}, ["0", "1"]),
        (1, {"CUDA_VISIBLE_DEVICES": "4,GPU-1a"}, ["4", "GPU-1a"]),
        (1, {"CUDA_VISIBLE_DEVICES": ""}, [""]),
    ],
)
def test_two_jobs_run_at_a_time_teachers_first(machine, installed, visible, used):
    os.mkfifo(machine / "meeting")
    write_program(machine / "bin" / "nvidia-smi", f"#!/bin/sh\nseq 0 {installed - 1}\n")
    chosen = {"root": machine, "ONLY": "vgg13:vgg8 vgg16:vgg8", "SEEDS": "0 1"}
    path = f"{machine / 'bin'}:{os.environ['PATH']}"
    command(JOBS="2", PYTHON=str(machine / "python"), PATH=path, **chosen, **visible)
    notes = started_and_ended(machine)
    assert most_at_once(notes) == 2
    assert sorted({gpu for what, gpu, _ in notes if what == "start"}) == used
    order = [line for what, _, line in notes if what == "end"]
    teachers = listed("teachers", **chosen)
    assert sorted(order) == sorted(listed(**chosen)) and sorted(order[: len(teachers)]) == sorted(teachers)


def test_a_failed_run_is_named_and_the_others_go_on(machine):
    os.mkfifo(machine / "meeting")
    runs = {"root": machine, "ONLY": "vgg13:vgg8 vgg16:vgg8", "SEEDS": "0 1", "PYTHON": str(machine / "python")}
    result = command(code=1, FAILS="--arch vgg13", JOBS="2", **runs)
    started = [line for what, _, line in started_and_ended(machine) if what == "start"]
    assert sorted(started) == sorted([line for line in listed(**runs) if "teacher_vgg13" not in line])
    reason = "not started, because its teacher is not finished: teacher_vgg13_student_vgg8_"
    failed, *others = result.stderr.splitlines()[-5:]
    assert failed == "failed: experiments/logs/teacher_vgg13.log: error: broken"
    assert sorted(others) == [f"{reason}seed{seed}_strategy{strategy}" for seed in (0, 1) for strategy in (0, 3)]

    (machine / "ran").unlink()
    command(JOBS="2", **runs)  # the same command tries again
    assert len(started_and_ended(machine)) == 2 * (2 + 2 + 8)


# ---------------------------------------------------------------------------------------------------- the interpreter


def chosen_python(machine, code=0, **environment):
    source = "set -euo pipefail; source command/env.sh requirements.txt; sh -c 'echo $PYTHON'"
    path = {"PATH": f"{machine / 'bin'}:{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash", "-c", source], cwd=machine, env=ENVIRONMENT | path | environment, capture_output=True, text=True
    )
    assert result.returncode == code, result.stderr
    return (result.stdout + result.stderr).strip()


@pytest.fixture
def environments(machine):
    """A machine whose active `python` and own/python are the interpreter that runs this test."""
    for name in ("bin", "own"):
        write_program(machine / name / "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    return machine


def test_the_active_environment_is_taken_unless_another_is_named(environments):
    assert chosen_python(environments) == "python"
    assert chosen_python(environments, PYTHON="own/python") == str(environments / "own/python")


@pytest.mark.parametrize("named", ["python", "no-such-python"])
def test_without_the_packages_a_line_says_how_to_install_them(environments, named):
    (environments / "requirements.txt").write_text("numpy>=1.26\nno-such-package>=1\n")
    line = chosen_python(environments, code=1, PYTHON=named)
    assert line.count("\n") == 0 and named in line and line.endswith("pip install -r requirements.txt")
