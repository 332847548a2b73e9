"""What a GPU computes: graphs, precisions, resuming and evaluation.  bash command/test.sh -m gpu

Without a GPU the same tests run on the CPU, with a stand-in for CUDA's graphs, and have to end in the same bits.
"""

from argparse import Namespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from small_runs import TINY, ctrl_c_after, differences, distil, distiller_of, metrics, outcome, result, train, weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dataset
from engine.compile import CUDAGraphed
from engine.device import Precision, choose_device, setup_backend, to_device
from engine.meters import Evaluator
from models import load_model, model_dict

# How far the weights of two short runs may be apart, relative, by norm. Another order of summation makes 1e-6 of it,
# bf16 makes 2e-4, and a missed milestone 6e-4.
ROUNDING = 3e-5
SLOW = "--lr 0.005"  # the faster a network learns, the faster rounding grows


class Recorder(TorchDispatchMode):
    """What a CUDA graph does, on a CPU: it notes each operation with the tensors that it got and gave, and runs them
    all again on those tensors, numbers as they were. Unlike a graph it also runs what it records, so the first replay
    is spared."""

    def __init__(self):
        super().__init__()
        self.operations = []
        self.fresh = True

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        output = operation(*args, **(kwargs or {}))
        self.operations.append((operation, args, kwargs or {}, output))
        return output

    @torch.no_grad()
    def replay(self):
        operations = [] if self.fresh else self.operations
        self.fresh = False
        for operation, args, kwargs, output in operations:
            for old, new in zip(tree_leaves(output), tree_leaves(operation(*args, **kwargs))):
                if torch.is_tensor(old) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def machine(request, monkeypatch):
    """Where a test runs: `device`, `flags` of the programs, and `replays`, how many graphs were replayed."""
    gpu_id = 0 if request.param == "cuda" else -1
    machine = Namespace(device=choose_device(gpu_id), flags=f"--gpu-id {gpu_id} {SLOW}", replays=0)
    if request.param == "cpu":
        monkeypatch.setattr(torch.Tensor, "is_cuda", True)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorder)
        monkeypatch.setattr(torch.cuda, "graph", lambda recorder, stream: recorder)
        for name in ("Stream", "current_stream", "set_stream", "stream"):
            monkeypatch.setattr(torch.cuda, name, MagicMock())
    replay = torch.cuda.CUDAGraph.replay

    def counted(graph):
        machine.replays += 1
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    return machine


def check_alike(one, other, limit):
    """Two runs end with the same bits, or for a limit above 0 with weights that differ by that much, relative."""
    if not limit:
        assert not differences(outcome(one), outcome(other))
        return
    name = "last" if one.name.startswith("teacher") else "student_last"
    ours, theirs = (torch.cat([w.flatten().float() for w in weights(run, name).values()]) for run in (one, other))
    assert (ours - theirs).norm() < limit * theirs.norm()
    for row, other_row in zip(metrics(one), metrics(other), strict=True):
        for loss in {"train/loss", "train/cls_loss", "val/cls_loss"} & set(row):
            assert float(row[loss]) == pytest.approx(float(other_row[loss]), rel=0.01)
    if (one / "counter.npy").exists():
        assert (np.load(one / "counter.npy") != np.load(other / "counter.npy")).mean() < 0.02


def test_what_cannot_be_captured_is_run_as_it_is(machine, capsys):
    total = torch.zeros(2, device=machine.device)
    calls = []

    def function(x):
        calls.append(x)
        if len(calls) == CUDAGraphed.WARM_UP + 1:
            raise RuntimeError("no graph\nmore")
        total.add_(x)

    graphed = CUDAGraphed(function, 2)
    for i in range(1, 7):
        graphed(torch.full((2,), float(i), device=machine.device))
        assert total.tolist() == [i * (i + 1) / 2] * 2
    assert capsys.readouterr().out == "CUDA graphs are off, because a step could not be captured (no graph)\n"
    assert machine.replays == 0


UNMIXED = "--strategy 0 --k 16 --b 16 --w 1000"


@pytest.mark.parametrize(
    "method, replays",
    [("teacher", 21), (UNMIXED, 21), (f"{UNMIXED} --teacher-cache", 21), ("--k 12 --b 8 --score-every 2", 15)],
)
def test_replayed_graphs_end_as_plain_steps(machine, trained_teacher, tmp_path, monkeypatch, method, replays):
    """Over three epochs of 8 batches and an odd one, with a milestone, and with scoring that is switched twice, for
    which the step is recorded anew. Validation has two whole batches an epoch."""
    monkeypatch.setattr(Evaluator, "BATCH", 100)
    flags = f"--batch-size 16 --train-limit 132 --val-limit 220 --epoch 3 --milestones 2 {machine.flags}"

    def run(experiments):
        if method == "teacher":
            return train(experiments, flags)
        for cache in trained_teacher.glob("ckpt/logits*"):
            cache.unlink()
        return distil(trained_teacher, experiments, flags, method)

    replayed = run(tmp_path / "replayed")
    assert machine.replays == replays + 3
    monkeypatch.setattr(CUDAGraphed, "__call__", lambda self, *inputs: self.function(*inputs))
    check_alike(replayed, run(tmp_path / "plain"), ROUNDING if machine.device.type == "cuda" else 0)
    if machine.device.type == "cuda":
        assert 1e6 < result(replayed)["peak_memory_bytes"] < torch.cuda.mem_get_info()[1]


@pytest.mark.gpu
def test_a_resumed_run_ends_as_one_left_alone(trained_teacher, tmp_path):
    flags = f"{TINY} {SLOW} --gpu-id 0"
    whole = distil(trained_teacher, tmp_path / "whole", flags)
    with ctrl_c_after(1):
        distil(trained_teacher, tmp_path / "resumed", flags)
    check_alike(distil(trained_teacher, tmp_path / "resumed", flags), whole, ROUNDING)


GPU_FLAGS = [
    f"--gpu-id 0 {flags}" for flags in ("--precision bf16", "--precision fp16", "--precision tf32", "--compile")
]


@pytest.mark.parametrize(
    "flags", ["--gpu-id -1 --precision bf16", *(pytest.param(flags, marks=pytest.mark.gpu) for flags in GPU_FLAGS)]
)
def test_other_arithmetic_stays_near(trained_teacher, tmp_path, flags):
    """As near to fp32 as bf16 is, which is mostly the running statistics of batch norm."""
    plain = distil(trained_teacher, tmp_path / "plain", TINY, SLOW, " ".join(flags.split()[:2]))
    other = distil(trained_teacher, tmp_path / "other", TINY, SLOW, flags)
    check_alike(other, plain, 20 * ROUNDING)
    ours, theirs = (weights(run, "student_last")["conv1.weight"] for run in (other, plain))
    assert "16" not in flags or not torch.equal(ours, theirs)


def test_validation_is_that_of_a_cpu(machine, trained_teacher):
    network, _ = load_model(trained_teacher / "ckpt" / "best.pth")
    images = dataset.load("synthetic", None, torch.device("cpu"), 1, 1000).val
    loss, acc, centers = Evaluator(network, images, Precision("fp32", "cpu"))()
    precision = Precision("fp32", machine.device.type)
    setup_backend(machine.device, precision)
    network = to_device(network, machine.device, precision)
    evaluate = Evaluator(network, dataset.load("synthetic", None, machine.device, 1, 1000).val, precision)
    for _ in range(3):  # from the second on by a graph
        its_loss, its_acc, its_centers = evaluate()
        assert its_loss == pytest.approx(loss, rel=1e-4) and its_acc == pytest.approx(acc, abs=0.3)
        torch.testing.assert_close(its_centers.cpu(), centers, rtol=1e-3, atol=1e-4)
    assert machine.replays == 3


@pytest.mark.gpu
@pytest.mark.parametrize("arch", model_dict)
def test_every_network_s_step_is_captured(trained_teacher, arch):
    """In fp16; in fp32 its logits are those of a CPU."""
    device = choose_device(0)
    precision = Precision("fp32", "cuda")
    setup_backend(device, precision)
    images = torch.randn(16, 3, 32, 32)
    network = model_dict[arch]()
    with torch.no_grad():
        expected = network(images)
        logits = to_device(network, device, precision)(images.to(device)).cpu()
    assert (logits - expected).norm() < 1e-3 * expected.norm()
    teacher_model, _ = load_model(trained_teacher / "ckpt" / "best.pth")
    teacher_model = to_device(teacher_model, device, Precision("fp16", "cuda"))
    trainer = distiller_of(model_dict[arch](), teacher_model, "--batch-size 16 --k 12 --b 8", 16 * 5, "fp16")
    for batch in trainer.draw_epoch(1):
        trainer.graphed_step(*batch)
    assert trainer.graphed_step.graph and trainer.meters.means()["train/t_entropy"] > 0
