"""engine/distributed.py and the programs over several processes, by gloo on the CPU; torchrun runs this file."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICK, ROOT

import dataset
import student_v0
import teacher
from engine import distributed
from engine.meters import Evaluator
from engine.trainer import PartialEpoch, StopRequest, TrainStep
from models import model_dict
from selector import Selector, draw_mixing
from utils import run_main

IMAGES = 64 + 16
FLAGS = {
    "UNIX": "",
    "KD": "--strategy 0 --k 64 --b 64 --w 1000",
    "AT": "--other-distill AT --ce-weight 1",
    "stale": "--score-every 2",
}


# ---------------------------------------------------------------------------------------- what worker and test compute


def selected(scores):
    """This process's rows of a selection of marked images, by rank."""
    images = torch.arange(64.0)[:, None].repeat(1, 3)
    _, partner = draw_mixing(64, 64, np.random.default_rng(5))
    selection = Selector()(images, scores, torch.tensor(0.7), partner)
    return list(distributed.shard(selection)[:4])


def learned(flags):
    """Weights and means after two epochs of two steps, batch norm in eval mode so that no sample sees the others."""
    torch.manual_seed(3)
    data = dataset.load("synthetic", None, "cpu", IMAGES, 301)
    networks = [model_dict["resnet8"]().eval() for _ in range(2)]
    if flags is None:
        args = teacher.make_parser().parse_args(["--arch", "resnet8"])
        trainer = teacher.TeacherTrainer(networks[0], args, data, nullcontext)
    else:
        args = student_v0.make_parser().parse_args(["--student-arch", "resnet8", "--lr", "0.001", *flags.split()])
        trainer = student_v0.Distiller(*networks, args, data, nullcontext)
        trainer.centers.copy_(torch.randn(100, 64))
    step = TrainStep(trainer)
    for epoch in (1, 2):
        step.begin_epoch(epoch, PartialEpoch())
        for batch in trainer.batches(epoch):
            step(*batch)
    step.meters.reduce()
    evaluated = Evaluator(trainer.model, data.val, nullcontext)()
    weights = {name: tensor for name, tensor in trainer.model.state_dict().items() if tensor.is_floating_point()}
    return {
        "weights": weights,
        "means": step.meters.means(),
        "counts": {name: count for name, (_, count) in step.meters.state().items() if count},
        "evaluated": evaluated,
        "counter": getattr(trainer, "most_uncertain", None),
    }


def everything():
    torch.manual_seed(0)
    scores = torch.randn(64)
    return {
        "selected": selected(scores),
        "learned": {name: learned(flags) for name, flags in {"teacher": None, **FLAGS}.items()},
        "statistics": evaluated_statistics(),
        "errors": [error_of(fail) for fail in (lambda: 1 / 0, lambda: sys.exit(2))],
    }


def evaluated_statistics():
    """What a network's statistics have made of it: each process has other ones, the first one's count."""
    torch.manual_seed(4)
    model, split = model_dict["resnet8"](), dataset.load("synthetic", None, "cpu", 2, 100).val
    torch.manual_seed(distributed.rank())
    model.train()(torch.randn(8, 3, 32, 32))
    loss, acc, _ = Evaluator(model, split, nullcontext)()
    return loss, acc, dict(model.named_buffers())


def error_of(fail):
    """What from_first() raises in this process where only the first one fails."""
    try:
        distributed.run_on_rank0(fail if distributed.rank() == 0 else lambda: None)
    except (ZeroDivisionError, SystemExit) as e:
        return type(e).__name__


# --------------------------------------------------------------------------------------------------------------- tests


def torchrun(count, *command, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", *command]
    return subprocess.Popen(
        list(map(str, line)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def finished(process, code=0):
    """(stdout, stderr) of a process that ends with this code."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    return out, err


@pytest.fixture(scope="module", params=[2, 4])
def several(request, tmp_path_factory):
    """[everything() of each process]."""
    folder = tmp_path_factory.mktemp("processes")
    finished(torchrun(request.param, __file__, folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(request.param)]


@pytest.fixture(scope="module")
def alone():
    return everything()


def test_the_union_of_the_selections_is_the_single_process_one(several, alone):
    for parts, whole in zip(zip(*(process["selected"] for process in several)), alone["selected"]):
        assert len({len(part) for part in parts}) == 1
        together = torch.stack(parts, 1).flatten(0, 1)  # rank r is with process r modulo their number
        assert torch.equal(together, whole)


@pytest.mark.parametrize("method", ["teacher", *FLAGS])
def test_steps_are_the_single_process_ones(several, alone, method):
    expected = alone["learned"][method]
    for process in several:
        ours = process["learned"][method]
        assert ours["counts"] == expected["counts"] and set(ours["means"]) == set(expected["means"])
        for name, mean in expected["means"].items():
            assert ours["means"][name] == pytest.approx(mean, rel=1e-4, abs=1e-4), name
        for name, tensor in expected["weights"].items():
            torch.testing.assert_close(ours["weights"][name], tensor, rtol=1e-4, atol=1e-5, msg=name)
            assert torch.equal(ours["weights"][name], several[0]["learned"][method]["weights"][name])
        if method != "teacher":
            assert torch.equal(ours["counter"], expected["counter"])


@pytest.mark.parametrize("method", ["teacher", "UNIX"])
def test_validation_is_the_single_process_one(several, alone, method):
    """301 images, of which no process has the same number; each counts once."""
    loss, acc, centers = alone["learned"][method]["evaluated"]
    for process in several:
        ours = process["learned"][method]["evaluated"]
        assert ours[0] == pytest.approx(loss, rel=1e-4) and ours[1] == pytest.approx(acc, abs=1e-9)
        torch.testing.assert_close(ours[2], centers, rtol=1e-3, atol=1e-4)


def test_the_first_process_s_statistics_are_those_of_all(several, alone):
    loss, acc, buffers = alone["statistics"]
    for process in several:
        ours = process["statistics"]
        assert (ours[0], ours[1]) == (pytest.approx(loss, rel=1e-5), pytest.approx(acc, abs=1e-9))
        for name, buffer in buffers.items():
            torch.testing.assert_close(ours[2][name], buffer, rtol=1e-5, atol=1e-6)
            assert torch.equal(ours[2][name], several[0]["statistics"][2][name])


def test_what_the_first_process_raises_is_raised_in_all(several):
    assert [process["errors"] for process in several] == [["ZeroDivisionError", "SystemExit"]] * len(several)


def test_a_run_is_stopped_resumed_by_another_number_and_written_once(trained_teacher, tmp_path):
    flags = f"--teacher-path {trained_teacher} --student-arch resnet8 {QUICK} --train-limit 6400 --experiments"
    command = [ROOT / "student_v0.py", *flags.split(), tmp_path]
    process = torchrun(2, *command)
    time.sleep(1)
    children = wait_for(lambda: list(tmp_path.glob("v0_*/events/*")) and workers(process))
    assert len(children) == 2
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert "stopped by SIGTERM in epoch 1 after step" in err and err.count("stopped by") == 1
    out, _ = finished(torchrun(4, *command))
    assert "resuming" in out and out.count("epoch   2/2") == 1
    (folder,) = tmp_path.glob("v0_*")
    result = json.loads((folder / "result.json").read_text())
    assert result["epochs"] == 2 and result["teacher_queries"] == 2 * 4800
    with (folder / "metrics.csv").open() as file:  # the cost of an epoch is counted by its meters, of all processes
        assert [float(row["cost/teacher_queries"]) for row in csv.DictReader(file)] == [4800, 9600]
    assert len(list((folder / "events").iterdir())) == 1


def test_one_process_that_dies_ends_all_and_what_was_saved_stays(trained_teacher, tmp_path):
    flags = f"--arch resnet8 {QUICK} --train-limit 6400 --epoch 50 --experiments"
    process = torchrun(2, ROOT / "teacher.py", *flags.split(), tmp_path)
    state = wait_for(lambda: list(tmp_path.glob("*/ckpt/previous.pth")))[0].with_name("last.pth")
    os.kill(max(workers(process)), signal.SIGKILL)
    _, err = finished(process, code=1)
    assert "SIGKILL" in err and torch.load(state, weights_only=True)["epoch"] >= 1


def wait_for(condition):
    """What condition() gives once it is true, within a minute."""
    end = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def workers(process):
    """The pids of torchrun's children."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


TWO = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--batch-size 63", "--batch-size: it is not divisible by 2 processes"),
        ("--k 47", "--k: 47 is not divisible by 2 processes"),
        ("--train-limit 67", "--batch-size: the last batch, of 3, is not divisible by 2 processes"),
        ("--other-distill SP", "--other-distill: SP compares over the batch"),
        ("--sync-bn", "--sync-bn: torch has it on GPUs only"),
    ],
)
def test_what_cannot_be_shared(flags, words, monkeypatch, capsys, trained_teacher):
    for name, value in TWO.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as exit:
        student_v0.main(f"--teacher-path {trained_teacher} {QUICK} {flags}".split())
    assert exit.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"RANK": None, "MASTER_ADDR": None, "MASTER_PORT": None}, "RANK=, MASTER_ADDR=, MASTER_PORT="),
        ({"RANK": ""}, "RANK="),
        ({"RANK": "2"}, "RANK=2"),
        ({"RANK": "-1"}, "RANK=-1"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT=http"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
    ],
)
def test_a_launcher_that_is_not_there(changes, words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # of a rank that waits for rank 0's line
    for name, value in (TWO | changes).items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as exit:
        teacher.main(f"--arch resnet8 {QUICK}".split())
    err = capsys.readouterr().err
    assert exit.value.code == 2 and f"environment: {words} is missing or wrong" in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("variables", [{"RANK": "1"}, {"WORLD_SIZE": "", "RANK": ""}, {"RANK": "1", "WORLD_SIZE": "1"}])
def test_a_rank_without_a_world_says_nothing(variables, monkeypatch, tmp_path):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    teacher.main(f"--arch resnet8 {QUICK} --epoch 1 --milestones --train-limit 64 --experiments {tmp_path}".split())
    assert list(tmp_path.glob("*/result.json"))


def test_bad_input_is_told_once(tmp_path):
    process = torchrun(2, ROOT / "student_v0.py", "--teacher-path", tmp_path, *QUICK.split())
    _, err = finished(process, code=1)
    assert err.count("student_v0.py: error:") == 1 and not list(tmp_path.iterdir())


def test_where_a_world_is_left_over_a_program_that_joined_none_ends_well(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    distributed.shutdown()


def test_a_stop_that_is_asked_for_while_the_processes_agree_is_not_lost(monkeypatch):
    def asked_meanwhile(value):
        signal.raise_signal(signal.SIGTERM)
        return [value]

    with StopRequest() as stop:
        with monkeypatch.context() as patched:
            patched.setattr(distributed, "all_gather_object", asked_meanwhile)
            assert not stop.should_stop()
        assert stop.should_stop()


def test_a_teacher_over_several_processes_says_that_nothing_is_compiled(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "wrap_ddp", torch.nn.Sequential)
    args = teacher.make_parser().parse_args("--arch resnet8 --compile on".split())
    data = dataset.load("synthetic", None, "cpu", IMAGES, 1)
    assert teacher.TeacherTrainer(model_dict["resnet8"](), args, data, nullcontext).compile == "none"


def save_everything():
    distributed.init(torch.device("cpu"))
    torch.save(everything(), Path(sys.argv[1]) / f"{distributed.rank()}.pt")


if __name__ == "__main__":
    run_main(save_everything)


def test_gpus_exchange_objects_without_waiting_for_kernels(monkeypatch):
    """Tensors of GPUs go by NCCL; what is asked on the host, such as whether to stop, goes by gloo."""
    asked = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(
        distributed.dist, "init_process_group", lambda *names, **options: asked.append((names, options))
    )
    distributed.init(torch.device("cuda", 1))
    assert asked == [(("cpu:gloo,cuda:nccl",), {"device_id": torch.device("cuda", 1)})]
