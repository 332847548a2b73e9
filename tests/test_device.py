"""engine/device.py: the device and the precision that are chosen, and what they bring about."""

import platform
from pathlib import Path

import pytest
import torch
from torch import nn

import engine.device
from engine.device import DeviceError, Precision, choose_device, choose_precision, device_name, to_device
from models import model_dict

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    "visible, gpu_id, expected",
    [
        (0, None, "cpu"),
        (0, -1, "cpu"),
        (2, -1, "cpu"),
        (2, None, "cuda:0"),
        (2, 1, "cuda:1"),
        (0, 0, None),
        (2, 2, None),
    ],
)
def test_choose_device(monkeypatch, visible, gpu_id, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch, "ones", lambda *_, device: torch.zeros(1))
    if expected:
        assert str(choose_device(gpu_id)) == expected
    else:
        with pytest.raises(DeviceError, match=f"there is no GPU {gpu_id}; -1 takes the CPU"):
            choose_device(gpu_id)


@pytest.mark.parametrize("kind", [RuntimeError, torch.cuda.DeferredCudaCallError])
def test_a_gpu_that_cannot_be_used_is_told_in_one_line(monkeypatch, kind):
    def fail(device):
        raise kind("The driver is too old\nmore")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", fail)
    with pytest.raises(DeviceError) as told:
        choose_device(None)
    assert str(told.value) == "GPU 0 cannot be used (The driver is too old); -1 takes the CPU"


@pytest.mark.parametrize("seconds, expected", [(1.0, "bf16"), (3.0, "fp32")])
def test_auto_takes_bf16_where_a_cpu_is_faster_in_it(monkeypatch, seconds, expected):
    """On a clock on which a product in fp32 takes 2 s, and the first one 9 s."""

    def repeat(product, number, repeat):
        return [9.0] + [seconds if product().dtype == torch.bfloat16 else 2.0] * (repeat - 1)

    monkeypatch.setattr(engine.device.timeit, "repeat", repeat)
    assert choose_precision("auto", CPU) == expected


def test_auto_takes_what_a_gpu_is_fast_in(monkeypatch):
    for capability, expected in (((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 0), "fp16"), ((6, 1), "fp32")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        assert choose_precision("auto", CUDA) == expected
    assert choose_precision("tf32", CUDA) == "tf32" and choose_precision("bf16", CPU) == "bf16"
    for of_gpus in ("tf32", "fp16"):
        with pytest.raises(DeviceError, match=f"{of_gpus} needs a GPU"):
            choose_precision(of_gpus, CPU)


def test_a_network_computes_in_the_precision():
    model, images = model_dict["resnet8"](), torch.zeros(2, 3, 32, 32)
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "tf32": torch.float32}
    for name, dtype in dtypes.items():
        with Precision(name, "cpu").autocast():
            assert model(images).dtype == dtype
    assert model(images).dtype == torch.float32


@pytest.mark.parametrize(
    "precision, last",
    [(Precision("fp32", "cpu"), True), (Precision("fp32", "cuda"), False), (Precision("fp16", "cuda"), True)],
)
def test_weights_and_images_have_the_memory_format_of_the_precision(precision, last):
    seen = []
    network = nn.Sequential(nn.Conv2d(3, 8, 3))
    network[0].register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    images = torch.zeros(2, 3, 8, 8).to(memory_format=torch.channels_last)
    to_device(network, CPU, precision)(images)
    for tensor in (network[0].weight, seen[0]):
        assert tensor.is_contiguous(memory_format=torch.channels_last) == last


def test_the_processor_is_told(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda path: "processor\t: 0\nmodel name\t: A Processor @ 2 GHz\n" * 2)
    assert device_name(CPU).startswith("A Processor @ 2 GHz, ")
    monkeypatch.setattr(Path, "read_text", lambda path: "processor\t: 0\nBogoMIPS\t: 200.0\n")
    assert device_name(CPU).startswith(f"{platform.machine()}, ")
