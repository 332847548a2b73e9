"""command/: the published runs, and that command.sh runs what it lists, side by side, teachers first."""

import csv
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import ROOT

import student_v0
import teacher

TABLE = ROOT / "reporting" / "published.csv"
PAIRS = [(row["teacher"], row["student"]) for row in csv.DictReader(TABLE.open())]
ENVIRONMENT = {**os.environ, "CUDA_MPS_PIPE_DIRECTORY": "none"}  # no test starts a real daemon


def command(*arguments, code=0, root=ROOT, **environment):
    line = ["bash", root / "command" / "command.sh", *arguments]
    result = subprocess.run(line, env={**ENVIRONMENT, **environment}, capture_output=True, text=True)
    assert result.returncode == code, result.stdout + result.stderr
    return result


def listed(**environment):
    """The listed commands, parsed by the programs' own parsers: (what, Namespace)."""
    runs = []
    for line in command("--list", **environment).stdout.splitlines():
        python, program, *flags = line.split()
        assert python == "python"
        module = {"teacher.py": teacher, "student_v0.py": student_v0}[program]
        runs.append((program, module.make_parser().parse_args(flags)))
    return runs


def test_every_published_run_is_there():
    runs = listed()
    teachers = [args for program, args in runs if program == "teacher.py"]
    students = [args for program, args in runs if program == "student_v0.py"]
    assert len(teachers) == 6 + 8 and len(students) == 24
    pairs = [(args.teacher_path.name.removeprefix("teacher_"), args.student_arch) for args in students]
    settings = [(pair, args.strategy, args.k, args.b, args.w) for pair, args in zip(pairs, students)]
    assert set(settings) == {(pair, *s) for pair in PAIRS for s in ((0, 64, 64, 1000), (3, 48, 32, 10))}
    assert {args.arch for args in teachers} == {arch for pair in PAIRS for arch in pair}
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
    assert len(listed(ONLY="vgg8")) == len(listed(ONLY="vgg8 vgg13:vgg8", SEEDS=" 0  0")) == 3 + 1 + 6


def test_a_pair_is_added_in_the_table_alone(machine):
    with (machine / "reporting" / "published.csv").open("a") as table:
        table.write("resnet110,ShuffleV3,0.02,,,,,\n")
    lines = command("--list", root=machine, ONLY="resnet110").stdout.splitlines()
    assert lines[:2] == [
        "python teacher.py --arch resnet110 --lr 0.05",
        "python teacher.py --arch ShuffleV3 --lr 0.02 --seed 0",
    ]
    assert len(lines) == 4 and all("ShuffleV3 --lr 0.02 --seed 0 --strategy" in line for line in lines[2:])


def test_a_downloaded_teacher_is_not_trained(machine):
    folder = machine / "experiments" / "teacher_vgg13"
    (folder / "ckpt").mkdir(parents=True)
    (folder / "ckpt" / "best.pth").touch()
    assert "--arch vgg13 " not in command("--list", root=machine).stdout
    (folder / "config.json").touch()
    assert "--arch vgg13 " in command("--list", root=machine).stdout


@pytest.mark.parametrize(
    "arguments, environment",
    [
        (["--lsit"], {}),
        (["--list", "x"], {}),
        (["--list"], {"ONLY": "vgg9"}),
        ([], {"SEEDS": "0 x"}),
        ([], {"SEEDS": "0,1"}),
        ([], {"GPUS": "0,1"}),
        ([], {"GPUS": "0 -1"}),
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
[ "$1" != -c ] || [ "${CUDA_MPS_PIPE_DIRECTORY:-none}" = none ] || exit "${MPS_CODE:-0}"
[ "$1" != -c ] || exit "${MISSING:-0}"
trap 'echo "TERM $CUDA_VISIBLE_DEVICES: $*" >>ran; kill $! 2>/dev/null; echo saved; exit 143' TERM
trap 'echo "INT $CUDA_VISIBLE_DEVICES: $*" >>ran' INT
echo "start $CUDA_VISIBLE_DEVICES: $*" >>ran
echo "this is $*"
[ ! -e mps ] || echo "run $CUDA_MPS_PIPE_DIRECTORY ${CUDA_VISIBLE_DEVICES-all}" >>mps
case "$*" in *"${FAILS:-nothing}"*) echo "error: broken"; exit 3 ;; esac
case "$*" in *"${INTERRUPTS:-nothing}"*) kill -s INT -- -$PPID ;; esac # as a Ctrl-C does, in the middle of a start
for i in 1 2 3; do sleep "${SECONDS_EACH:-0.02}" & wait $!; done
echo "folder: best 70.00 % (epoch 2), last 69.00 %"
echo "end $CUDA_VISIBLE_DEVICES: $*" >>ran
"""


@pytest.fixture
def machine(tmp_path):
    """The root of a copy of the scripts, with a python that trains nothing."""
    root = tmp_path / "with a space"
    shutil.copytree(ROOT / "command", root / "command")
    (root / "reporting").mkdir()
    shutil.copy(TABLE, root / "reporting")
    write_program(root / "python", FAKE)
    return root


def write_program(path, text):
    path.write_text(text)
    path.chmod(0o755)


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
        "teacher_vgg13",
        "alone_vgg8_seed0",
        "kd_vgg13_vgg8_seed0",
        "unix_vgg13_vgg8_seed0",
    }
    for text in logs(machine).values():
        head, first, last = text.splitlines()
        assert head.endswith(f": python {first.removeprefix('this is ')}") and "best 70" in last
    assert "[1/4] finished teacher_vgg13: best 70.00 % (epoch 2), last 69.00 %" in result.stdout
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
    assert failed == "failed: experiments/logs/teacher_vgg13.log: error: broken"
    assert skipped == [
        "not started, as its teacher failed: kd_vgg13_vgg8_seed0",
        "not started, as its teacher failed: unix_vgg13_vgg8_seed0",
    ]
    assert tally.startswith("error: 4 of 7 runs are finished")
    assert "[7/7]" in result.stdout
    command(**runs)


@pytest.fixture
def pool(machine):
    """command.sh with three slots and runs that take a minute, the leader of a process group."""
    started = []

    def start(**more):
        environment = {"PYTHON": str(machine / "python"), "PER_GPU": "3", "SECONDS_EACH": "20", **more}
        started.append(subprocess.Popen(
            ["bash", "command/command.sh"],
            cwd=machine, env={**ENVIRONMENT, **environment}, stdout=subprocess.PIPE, text=True, start_new_session=True,
            # a shell cannot trap a signal that it was started to ignore, as tests in the background of a script are
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ))  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for_runs(machine, number):
    end = time.monotonic() + 60
    while not (machine / "ran").exists() or len(ran(machine)) < number:
        assert time.monotonic() < end
        time.sleep(0.02)


def assert_stopped(machine, process, code):
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert output.splitlines()[-1] == "stopped: 0 of 38 runs are finished; the same command goes on from there"
    begun = [text for text in logs(machine).values() if text.count("\n") > 1]
    assert begun and all(text.endswith("saved\n") for text in begun)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_the_runs_once(machine, pool, number, code):
    process = pool()
    wait_for_runs(machine, 3)
    os.killpg(process.pid, number)  # as a terminal's Ctrl-C does it
    assert_stopped(machine, process, code)
    assert sorted(what for what, _, _ in ran(machine)) == ["TERM"] * 3 + ["start"] * 3


def test_a_signal_in_the_middle_of_a_start(machine, pool):
    assert_stopped(machine, pool(INTERRUPTS="--arch ResNet50"), 130)
    started, *signals = [
        sorted(line for what, _, line in ran(machine) if what == kind) for kind in ("start", "TERM", "INT")
    ]
    assert signals == [started, []] and 1 <= len(started) <= 3


def test_signals_while_runs_end(machine, pool):
    process = pool(PER_GPU="8")
    wait_for_runs(machine, 8)
    for _ in range(60):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.003)
    assert_stopped(machine, process, 130)


# ------------------------------------------------------------------------------------------------------------- MPS

DAEMON = """#!/bin/sh
[ "$1" = -d ] && what=daemon || read -r what
echo "$what $CUDA_MPS_PIPE_DIRECTORY ${CUDA_VISIBLE_DEVICES-all}" >>mps
exit "${DAEMON_CODE:-0}"
"""


@pytest.fixture
def shared(machine):
    """The variables of a machine with two GPUs, two runs on each, and NVIDIA's MPS."""
    write_program(machine / "nvidia-cuda-mps-control", DAEMON)
    return {
        "PATH": f"{machine}:{os.environ['PATH']}", "PYTHON": str(machine / "python"), "ONLY": "vgg13:vgg8",
        "GPUS": "0 1", "PER_GPU": "2", "CUDA_VISIBLE_DEVICES": "5", "CUDA_MPS_PIPE_DIRECTORY": "",
    }  # fmt: skip


def mps(machine):
    """[(what, pipe directory, visible GPUs)]: of the daemon's start, each run, its end."""
    path = machine / "mps"
    return [tuple(line.split(" ")) for line in path.read_text().splitlines()] if path.exists() else []


def test_runs_share_a_gpu_by_mps(machine, shared):
    assert "MPS" not in command(root=machine, **shared).stdout
    daemon, *runs, end = mps(machine)
    folder = daemon[1]
    assert daemon == ("daemon", folder, "all") and end[:2] == ("quit", folder) and not Path(folder).exists()
    assert {run[:2] for run in runs} == {("run", folder)} and {run[2] for run in runs} == {"0", "1"} and len(runs) == 4


@pytest.mark.parametrize("broken", [{"DAEMON_CODE": "1"}, {"MPS_CODE": "1"}])
def test_without_mps_where_it_does_not_start(machine, shared, broken):
    result = command(root=machine, **shared, **broken)
    assert result.stdout.startswith("MPS does not start here: ") and not result.stderr
    assert [run[:2] for run in mps(machine)[1:-1]] == [("run", "")] * 4 and mps(machine)[-1][0] == "quit"


@pytest.mark.parametrize(
    "more",
    [{"PER_GPU": "1"}, {"GPUS": "", "CUDA_VISIBLE_DEVICES": ""}, {"CUDA_MPS_PIPE_DIRECTORY": "/tmp/mine"}],
)
def test_no_daemon_where_none_is_needed(machine, shared, more):
    command(root=machine, **{**shared, **more})
    assert not mps(machine) and len(ran(machine)) == 8


def test_a_stopped_command_ends_its_daemon(machine, shared, pool):
    process = pool(**{**shared, "ONLY": "", "GPUS": "0"})
    wait_for_runs(machine, 2)
    os.killpg(process.pid, signal.SIGINT)
    assert_stopped(machine, process, 130)
    assert [what for what, _, _ in mps(machine)] == ["daemon", "run", "run", "quit"]
