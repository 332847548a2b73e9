"""command/: the published runs, and that command.sh runs what it lists, side by side, teachers first."""

import os
import shutil
import signal
import subprocess
import time

import pytest
from conftest import ROOT
from test_cost import PUBLISHED

import student_v0
import teacher


def command(*arguments, code=0, root=ROOT, **environment):
    line = ["bash", root / "command" / "command.sh", *arguments]
    result = subprocess.run(line, env={**os.environ, **environment}, capture_output=True, text=True)
    assert result.returncode == code, result.stdout + result.stderr
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
    "arguments, environment",
    [
        (["--lsit"], {}),
        (["--list", "x"], {}),
        (["--list"], {"ONLY": "vgg9"}),
        ([], {"SEEDS": "0 x"}),
        ([], {"GPUS": "0,1"}),
        ([], {"GPUS": "first"}),
        ([], {"PER_GPU": "0"}),
        ([], {"PER_GPU": "1.5"}),
        ([], {"GPUS": "0 7", "MISSING": "1"}),
    ],
)
def test_bad_use(machine, arguments, environment):
    result = command(*arguments, code=2, root=machine, PYTHON=str(machine / "python"), **environment)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and not result.stdout
    assert not (machine / "experiments").exists()


# --------------------------------------------------------------------------------------------------------- running

FAKE = """#!/bin/sh
# A python that notes when it was started and ended, and trains nothing.
if [ "$1" = -c ]; then exit "${MISSING:-0}"; fi
trap 'echo "TERM $CUDA_VISIBLE_DEVICES: $*" >>ran; echo saved; exit 143' TERM
trap 'echo "INT $CUDA_VISIBLE_DEVICES: $*" >>ran' INT
echo "start $CUDA_VISIBLE_DEVICES: $*" >>ran
echo "this is $*"
case "$*" in *"${FAILS:-nothing}"*) echo "error: broken"; exit 3 ;; esac
for i in 1 2 3; do sleep "${SECONDS_EACH:-0.02}" & wait $!; done
echo "folder: best 70.00 % (epoch 2), last 69.00 %"
echo "end $CUDA_VISIBLE_DEVICES: $*" >>ran
"""


@pytest.fixture
def machine(tmp_path):
    """The root of a copy of the scripts, with a python that trains nothing."""
    shutil.copytree(ROOT / "command", tmp_path / "command")
    (tmp_path / "python").write_text(FAKE)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def ran(machine):
    """[(what, GPU, command)] in the order of time."""
    lines = [line.partition(": ") for line in (machine / "ran").read_text().splitlines()]
    return [(*head.partition(" ")[::2], "python " + tail) for head, _, tail in lines]


def logs(machine):
    return {path.stem: path.read_text() for path in (machine / "experiments" / "logs").iterdir()}


def test_it_runs_what_it_lists(machine):
    only = {"root": machine, "ONLY": "vgg13:vgg8", "PYTHON": str(machine / "python"), "CUDA_VISIBLE_DEVICES": "5"}
    result = command(**only)
    steps = ran(machine)
    assert [what for what, _, _ in steps] == ["start", "end"] * 4 and {gpu for _, gpu, _ in steps} == {"5"}
    assert [line for what, _, line in steps if what == "end"] == command("--list", **only).stdout.splitlines()
    assert set(logs(machine)) == {
        "teacher_vgg13_lr0.05",
        "teacher_vgg8_lr0.05_seed0",
        "student_v0_teacher_vgg13_vgg8_lr0.05_seed0_strategy0_k64_b64_w1000",
        "student_v0_teacher_vgg13_vgg8_lr0.05_seed0_strategy3_k48_b32_w10",
    }
    for text in logs(machine).values():
        head, first, last = text.splitlines()
        assert head.endswith(f": python {first.removeprefix('this is ')}") and "best 70" in last
    assert "[1/4] finished teacher_vgg13_lr0.05: best 70.00 % (epoch 2), last 69.00 %" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("4 of 4 runs are finished")
    command(**only)  # a log is appended to
    assert all(text.count("== ") == 2 for text in logs(machine).values())


def test_side_by_side(machine):
    gpus = {"GPUS": "0 GPU-1a2b", "PER_GPU": "4", "SECONDS_EACH": "0.1", "PYTHON": str(machine / "python")}
    chosen = {"ONLY": "wrn_40_2:wrn_16_2 vgg13:vgg8", "SEEDS": "0 1"}  # 2 teachers, 4 alone, 8 students
    command(root=machine, **chosen, **gpus)
    busy, most, finished = [], 0, []
    for what, gpu, line in ran(machine):
        if what == "end":
            busy.remove(gpu)
            finished.append(line)
            continue
        busy.append(gpu)
        most = max(most, len(busy))
        assert gpu in ("0", "GPU-1a2b") and busy.count(gpu) <= 4
        if "--teacher-path" in line:
            teacher_arch = line.split()[3].split("teacher_")[1].rstrip("/")
            assert f"python teacher.py --arch {teacher_arch} --lr 0.05" in finished
    assert most == 8 and sorted(finished) == sorted(command("--list", **chosen).stdout.splitlines())


def test_a_failed_teacher_stops_its_students_alone(machine):
    runs = {"root": machine, "ONLY": "vgg13:vgg8 vgg16:vgg8", "PYTHON": str(machine / "python"), "PER_GPU": "3"}
    result = command(code=1, FAILS="--arch vgg13", **runs)
    done = [line for what, _, line in ran(machine) if what == "end"]
    assert len(done) == 4 and not any("vgg13" in line for line in done)
    failed, *skipped, tally = result.stderr.splitlines()
    assert failed == "failed: experiments/logs/teacher_vgg13_lr0.05.log: error: broken"
    assert len(skipped) == 2 and all("student_v0_teacher_vgg13" in line for line in skipped)
    assert tally.startswith("error: 4 of 7 runs are finished")
    assert "[7/7]" in result.stdout
    command(**runs)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_the_runs_once(machine, number, code):
    environment = {**os.environ, "PYTHON": str(machine / "python"), "PER_GPU": "3", "SECONDS_EACH": "0.5"}
    pool = subprocess.Popen(
        ["bash", "command/command.sh"],
        cwd=machine, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while not (machine / "ran").exists() or len(ran(machine)) < 3:
        time.sleep(0.02)
    os.killpg(pool.pid, number)  # as a terminal's Ctrl-C does it
    output, _ = pool.communicate(timeout=20)
    assert pool.returncode == code
    assert sorted(what for what, _, _ in ran(machine)) == ["TERM"] * 3 + ["start"] * 3
    assert all(text.endswith("saved\n") for text in logs(machine).values())
    assert output.splitlines()[-1] == "stopped: 0 of 38 runs are finished; the same command goes on from there"
