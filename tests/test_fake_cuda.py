"""The training step on fake CUDA tensors, which have a device and a shape but no values: needs no GPU.

Every network, strategy, loss and precision once. What a CUDA graph cannot record fails: an operation that asks for a
value, or one that touches the host.
"""

from collections import defaultdict
from itertools import cycle

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dataset
import student_v0
import teacher
from engine.compile import place
from engine.meters import Evaluator
from engine.trainer import PartialEpoch, TrainStep
from models import model_dict
from models.shufflenet import channel_shuffle
from utils import autocast

CUDA = torch.device("cuda", 0)
METHODS = (
    "",
    "--score-every 2",
    "--strategy 2 --ce-weight 1",
    "--strategy 1 --other-distill SP",
    "--strategy 0 --k 8",
    "--kd-weight 0 --other-distill AT",
)
PRECISIONS = "bf16", "fp16", "fp32"
CASES = [*zip(model_dict, cycle(METHODS), cycle(["fp16"])), ("ShuffleV1", "", "bf16"), ("ShuffleV1", "", "fp32")]


class OnTheDevice(TorchDispatchMode):
    """Every tensor of every operation is on the GPU, and convolutions get the memory format of the precision (but for
    bf16, in which fake ones are computed as by a card that has it not)."""

    def __init__(self, precision):
        super().__init__()
        self.dense = {"fp16": 1, "fp32": 3}.get(precision)  # the dimension whose neighbors are neighbors in memory
        self.convolutions = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            assert not torch.is_tensor(tensor) or tensor.device == CUDA, operation
        if operation is torch.ops.aten.convolution.default:
            self.convolutions += 1
            assert self.dense is None or args[0].stride(self.dense) == 1, (args[0].shape, args[0].stride())
        return result


@torch.no_grad()
def backward(loss):
    """loss.backward(), node by node, for torch's own engine asks the GPU for its streams."""
    uses, grads, seen, ready = defaultdict(int), {}, [loss.grad_fn], [loss.grad_fn]
    for node in seen:
        for child, _ in node.next_functions:
            if not uses[child] and child:
                seen.append(child)
            uses[child] += 1
    grads[loss.grad_fn, 0] = torch.ones_like(loss)
    for node in ready:
        got = [grads.get((node, i)) for i in range(len(node._input_metadata))]
        if hasattr(node, "variable"):
            (node.variable.grad,) = got
            continue
        given = node(*got)
        for (child, i), grad in zip(node.next_functions, given if isinstance(given, tuple) else (given,)):
            if not child:
                continue
            if grad is not None:
                grad = grad.sum_to_size(child._input_metadata[i].shape).to(child._input_metadata[i].dtype)
                grads[child, i] = grad + grads[child, i] if (child, i) in grads else grad
            uses[child] -= 1
            if not uses[child]:
                ready.append(child)


@pytest.fixture
def fake(monkeypatch):
    """A mode of fake tensors in which what torch lacks for them is replaced."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # as setup_backend() leaves it
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    for program in (student_v0, teacher):
        monkeypatch.setattr(program, "forward_macs", lambda model: 0)
    monkeypatch.setattr(torch, "bincount", lambda labels, minlength: labels.new_zeros(minlength))  # before any graph
    updated = []
    monkeypatch.setattr(torch, "_fused_sgd_", lambda weights, grads, *_, **__: updated.extend(zip(weights, grads)))
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # the networks' weights are drawn on the CPU
    mode.updated = updated
    try:
        with mode:
            torch.zeros(2, device=CUDA)[:1]
    except RuntimeError as e:  # as of torch 2.6
        pytest.skip(f"this torch slices no fake CUDA tensor without a driver ({str(e).splitlines()[0]})")
    return mode


def split(n):
    images = torch.zeros(n, dataset.SIZE, dataset.SIZE, 3, dtype=torch.uint8, device=CUDA)
    labels = torch.zeros(n, dtype=torch.int64, device=CUDA)
    return dataset.Split(images, labels, labels)


def check_step(trainer, precision, batch, epoch=1):
    step = TrainStep(trainer)
    trainer.model.train()
    step.begin_epoch(epoch, PartialEpoch())
    with OnTheDevice(precision) as seen:
        step(*batch)
    assert seen.convolutions > 8
    evaluator = Evaluator(trainer.model, trainer.data.val, trainer.autocast)
    with OnTheDevice(precision), torch.no_grad():
        evaluator.add(trainer.data.val.images, trainer.data.val.labels)


def batch_of(n):
    return (torch.zeros(n, dtype=torch.int64, device=CUDA), torch.zeros(n, 2, dtype=torch.int64, device=CUDA),
            torch.zeros(n, dtype=torch.bool, device=CUDA))  # fmt: skip


@pytest.mark.parametrize("arch, method, precision", CASES)
def test_distillation(fake, arch, method, precision):
    student, network = model_dict[arch](), model_dict[arch if "AT" in method else "resnet8"]()  # AT pairs stages
    flags = f"--student-arch {arch} --compile off --batch-size 8 --k 6 --b 4 {method}"
    args = student_v0.make_parser().parse_args(flags.split())
    cast = autocast(CUDA, precision)
    with fake:
        data = dataset.Data(split(8), split(5), None, 8)
        trainer = student_v0.Distiller(student, place(network, CUDA, cast).eval(), args, data, cast)
        lam, partner = torch.zeros((), device=CUDA), torch.zeros(8, dtype=torch.int64, device=CUDA)
        check_step(trainer, precision, (*batch_of(8), lam, partner), epoch=2)
    assert len(fake.updated) == len(list(student.parameters()))
    assert all(weights.device == grad.device == CUDA and weights.shape == grad.shape for weights, grad in fake.updated)


class OnAGPU(torch.Tensor):
    """A tensor of a CPU that says it is elsewhere."""

    device = CUDA


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_a_shuffle_keeps_the_memory_format(memory_format):
    x = torch.randn(2, 12, 4, 4).to(memory_format=memory_format)
    shuffled = channel_shuffle(x.as_subclass(OnAGPU), 3)
    assert shuffled.is_contiguous(memory_format=memory_format)
    assert torch.equal(shuffled.as_subclass(torch.Tensor), torch.nn.functional.channel_shuffle(x, 3))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_teacher(fake, precision):
    args = teacher.make_parser().parse_args("--arch resnet8 --compile off --batch-size 8".split())
    model = model_dict["resnet8"]()
    with fake:
        data = dataset.Data(split(8), split(5), None, 8)
        trainer = teacher.TeacherTrainer(model, args, data, autocast(CUDA, precision))
        check_step(trainer, precision, batch_of(8))
