"""command/slurm.sh on a real Slurm of one node, this machine (tests/slurm.sh)."""

import os
import subprocess
import tempfile
import time

import pytest
from conftest import ROOT
from stand_in import make_machine, started_and_ended

TEACHER = "python teacher.py --arch vgg13 --lr 0.05"


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


class Cluster:
    """Slurm's commands, given in a copy of the scripts with a stand-in for python."""

    def __init__(self, root, environment):
        self.root = make_machine(root)
        self.environment = environment | {"PYTHON": "./python", "ONLY": "vgg13:vgg8", "SEEDS": "0"}

    def run(self, *command, code=0, **more):
        result = subprocess.run(
            command, cwd=self.root, env=self.environment | more, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == code, result.stdout + result.stderr
        return result.stdout if code == 0 else result.stderr

    def wait_for(self, condition, seconds=90):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.run("squeue", "--array")
            time.sleep(0.1)

    def wait_until_empty(self):
        self.wait_for(lambda: not self.run("squeue", "--noheader"))

    def commands(self, kind):
        """The commands of which the stand-in noted this (start, end), in order of time."""
        return [line for what, _, line in started_and_ended(self.root) if what == kind]

    def listed(self, *part):
        return self.run("bash", "command/command.sh", "--list", *part).splitlines()


@pytest.fixture
def cluster(tmp_path, slurm):
    cluster = Cluster(tmp_path / "repository", slurm)
    yield cluster
    cluster.run("scancel", "--name", "unixkd")
    cluster.wait_until_empty()


def test_students_follow_their_teachers_and_a_preempted_run_starts_again(cluster):
    cluster.run("bash", "command/slurm.sh", WAITS="--arch vgg13")
    cluster.wait_for((cluster.root / "waited").exists)
    cluster.run("sbatch", "--partition", "high", "--cpus-per-task", "2", "--output", "/dev/null", "--wrap", "true")
    cluster.wait_until_empty()
    assert cluster.commands("start").count(TEACHER) == 2
    ended = cluster.commands("end")
    assert sorted(ended) == sorted(cluster.listed()) and sorted(ended[:2]) == sorted(cluster.listed("teachers"))
    log = cluster.root / "experiments/logs/teacher_vgg13.log"
    assert log.read_text().count(TEACHER) == 2


def test_students_of_a_failed_teacher_do_not_run_and_the_same_command_tries_again(cluster):
    cluster.run("bash", "command/slurm.sh", FAILS="--arch vgg13")
    cluster.wait_until_empty()
    assert sorted(cluster.commands("start")) == sorted(cluster.listed("teachers"))
    problems = (cluster.root / "experiments/logs/slurm.log").read_text()
    assert "failed: experiments/logs/teacher_vgg13.log: error: broken" in problems
    assert problems.count("not started, because its teacher is not finished: ") == 2
    cluster.run("bash", "command/slurm.sh")
    cluster.wait_until_empty()
    assert set(cluster.commands("end")) == set(cluster.listed())


def test_bad_use(cluster):
    for flags, more, message in (([], {"ONLY": "vgg9"}, "vgg9"), (["--partition", "lwo"], {}, "invalid partition")):
        result = subprocess.run(
            ["bash", "command/slurm.sh", *flags], cwd=cluster.root, env=cluster.environment | more, capture_output=True
        )
        assert result.returncode != 0 and message in result.stderr.decode()
    assert not cluster.run("squeue", "--noheader")
