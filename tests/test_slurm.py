"""command/slurm.sh on a real Slurm, one node on this machine (tests/slurm.sh): real runs, preempted in the middle."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

import pytest
from conftest import ROOT
from test_command import FAKE

QUICK = "--dataset synthetic --train-limit 192 --val-limit 100 --epoch 5 --milestones 4 --gpu-id -1 --precision fp32"
PYTHON = f"""#!/bin/sh
# python, with which the published runs are small ones.
[ "$1" != student_v0.py ] || set -- "$@" --teacher-path "$(echo "${{3%/}}"_epoch*)"
OMP_NUM_THREADS=1 exec {sys.executable} "$@" {QUICK}
"""
TEACHER, ALONE = "teacher_resnet56", "alone_resnet20_seed0"


@pytest.fixture(scope="module")
def slurm():
    """The environment in which Slurm's commands find the cluster."""
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:  # a socket's path is short
        script = ["bash", str(ROOT / "tests" / "slurm.sh")]
        started = subprocess.run([*script, "start", folder], stderr=subprocess.PIPE, text=True, timeout=300)
        try:
            if started.returncode == 3:
                pytest.skip(started.stderr.strip().splitlines()[-1])
            assert started.returncode == 0, started.stderr
            yield {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf"}
        finally:
            subprocess.run([*script, "stop", folder], timeout=60)


@pytest.fixture
def repository(tmp_path):
    """A copy of the programs with a python beside them; runs and logs are written there."""
    root = tmp_path / "repository"
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(".*", "__pycache__", "experiments", "data", "tests"))
    (root / "experiments").mkdir()
    (root / "python").write_text(PYTHON)
    (root / "python").chmod(0o755)
    yield root
    shutil.rmtree(root)  # checkpoints


class Cluster:
    """Slurm's commands, given in a repository."""

    def __init__(self, root, environment):
        self.root, self.logs = root, root / "experiments" / "logs"
        self.environment = {**environment, "PYTHON": "./python"}

    def run(self, *command, code=0, **environment):
        result = subprocess.run(
            command, cwd=self.root, env={**self.environment, **environment}, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == code, result.stdout + result.stderr
        return result.stdout if code == 0 else result.stderr

    def submit(self, *flags, **more):
        return self.run("bash", "command/slurm.sh", *flags, **{"ONLY": "resnet56:resnet20", **more})

    def queue(self):
        """{(array, index): state}"""
        lines = self.run("squeue", "--noheader", "--array", "--name", "unixkd", "--format", "%F %K %T").splitlines()
        return {tuple(line.split()[:2]): line.split()[2] for line in lines}

    def log(self, name):
        path = self.logs / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def wait(self, what, condition, seconds=90):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"{what} never came; {self.said()}"
            time.sleep(0.2)

    def ran(self, what):
        """The commands of which FAKE noted this (start, end, TERM), sorted."""
        lines = (self.root / "ran").read_text().splitlines()
        return sorted(line.partition(": ")[2] for line in lines if line.startswith(what))

    def wait_until_empty(self):
        self.wait("an empty queue", lambda: not self.queue())

    def said(self):
        logs = "\n".join(f"--- {path}\n{path.read_text()}" for path in sorted(self.logs.glob("*")))
        return f"{self.run('squeue', '--array')}\n{self.run('sinfo', '--list-reasons')}\n{logs}"


@pytest.fixture
def cluster(repository, slurm):
    cluster = Cluster(repository, slurm)
    yield cluster
    cluster.run("scancel", "--name", "unixkd")
    cluster.wait_until_empty()


def test_the_table_comes_out_whole(cluster):
    """Two runs preempted in the middle, a teacher among them, which resume; then its students."""
    assert cluster.submit().startswith("submitted 4 of 4 runs as jobs ")
    before = cluster.queue()
    assert len(before) == 4
    assert cluster.submit() == "submitted 0 of 4 runs, 4 were queued already\n" and len(cluster.queue()) == 4
    assert len(list(cluster.logs.glob("*.list"))) == 1
    (cluster.root / "command" / "command.sh").write_text("exit 1\n")  # what was submitted is frozen

    cluster.wait("the first epoch", lambda: "epoch   1/5" in cluster.log(TEACHER))
    cluster.run("sbatch", "--partition", "high", "--cpus-per-task", "2", "--output", "/dev/null", "--wrap", "true")
    cluster.wait("saving", lambda: "stopped by SIGTERM" in cluster.log(TEACHER))
    cluster.wait("resuming", lambda: "resuming" in cluster.log(TEACHER))
    cluster.wait_until_empty()

    log = cluster.log(TEACHER)
    assert log.count("stopped by SIGTERM") == log.count("resuming") == 1
    results = sorted(path.parent for path in cluster.root.glob("experiments/*/result.json"))
    assert [folder.name.split("_epoch")[0] for folder in results] == [
        "teacher_resnet20",
        "teacher_resnet56",
        "v0_student_resnet20_teacher_resnet56",
        "v0_student_resnet20_teacher_resnet56",
    ]
    assert all(json.loads((folder / "result.json").read_text())["epochs"] == 5 for folder in results)
    table = cluster.run(sys.executable, "report.py", "experiments").splitlines()
    assert len(table) == 2 + 4


def test_a_run_near_its_time_limit_is_queued_again(cluster):
    """It alone: the last task of an array has the array's number for its own."""
    (cluster.root / "python").write_text(FAKE)
    cluster.submit(SECONDS_EACH="30")
    cluster.wait("two runs", lambda: "this is" in cluster.log(TEACHER) and "this is" in cluster.log(ALONE))
    job = cluster.log(ALONE).split("job ")[1].split(":")[0]
    assert tuple(job.split("_")) in cluster.queue()
    cluster.run("scancel", "--batch", "--signal", "USR1", job)  # as Slurm does it then
    cluster.wait("saving", lambda: "saved" in cluster.log(ALONE))
    cluster.wait("a second start", lambda: cluster.log(ALONE).count("this is") == 2)
    assert cluster.log(ALONE).count(f"job {job}: ") == 2 and cluster.ran("TERM") == [
        "teacher.py --arch resnet20 --lr 0.05 --seed 0"
    ]


def test_cancelled_and_failed_runs_are_submitted_again_by_the_same_command(cluster):
    (cluster.root / "python").write_text(FAKE)
    cluster.submit(SECONDS_EACH="30")
    cluster.wait("a run", lambda: "this is" in cluster.log(TEACHER))
    cluster.run("scancel", "--name", "unixkd")
    cluster.wait_until_empty()  # nothing is queued again
    assert cluster.ran("TERM") == cluster.ran("start") and cluster.log(TEACHER).endswith("saved\n")

    assert cluster.submit(FAILS="--arch resnet56").startswith("submitted 4 of 4")
    cluster.wait_until_empty()  # the students of a failed teacher are cancelled
    assert cluster.ran("end") == ["teacher.py --arch resnet20 --lr 0.05 --seed 0"]
    assert cluster.log(TEACHER).endswith("error: broken\n") and not list(cluster.logs.glob("*_resnet56_resnet20*"))

    assert cluster.submit().startswith("submitted 4 of 4")
    cluster.wait_until_empty()
    assert len(cluster.ran("end")) == 1 + 4


def test_bad_use(cluster):
    (cluster.root / "python").write_text(FAKE)
    for flags, more in ((["--array=1-3"], {}), (["-d", "singleton"], {}), ([], {"ONLY": "vgg9"})):
        message = cluster.run("bash", "command/slurm.sh", *flags, code=2, **more)
        assert message.startswith("error: ") and message.count("\n") == 1
    message = cluster.run("bash", "command/slurm.sh", "--partition", "lwo", code=1)
    assert "invalid partition" in message
    assert not cluster.queue() and not list((cluster.root / "experiments").iterdir())
