"""The device a run computes on, and the precision its networks compute in."""

import ctypes
import os
import platform
import re
import resource
import timeit
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("fp32", "tf32", *AUTOCAST_DTYPES)


class DeviceError(OSError):
    """The device or the precision asked for is not available here. The message is one line."""


@dataclass(frozen=True)
class Precision:
    """The arithmetic of the networks. Weights and losses are float32 in all of them."""

    name: str  # one of PRECISIONS
    device_type: str  # "cpu" or "cuda"

    def autocast(self) -> torch.autocast:
        """A context for a network's forward pass."""
        dtype = AUTOCAST_DTYPES.get(self.name)
        return torch.autocast(self.device_type, dtype or torch.bfloat16, enabled=dtype is not None)

    @property
    def memory_format(self) -> torch.memory_format:
        """Channels last, but for fp32 on a GPU, which computes without tensor cores."""
        no_tensor_cores = self.device_type == "cuda" and self.name == "fp32"
        return torch.contiguous_format if no_tensor_cores else torch.channels_last


def choose_device(gpu_id: int | None) -> torch.device:
    """The device to run on.

    gpu_id: index among the visible GPUs; -1 takes the CPU; None takes the first visible GPU, else the CPU.
    Raises DeviceError for a GPU that is missing or cannot be used.
    """
    visible = torch.cuda.device_count()
    if gpu_id == -1 or (gpu_id is None and not visible):
        return torch.device("cpu")
    index = gpu_id or 0
    if index >= visible:
        raise DeviceError(f"there is no GPU {index}; -1 takes the CPU")
    device = torch.device("cuda", index)
    try:
        torch.cuda.set_device(device)
        torch.ones(1, device=device).item()  # runs a kernel
    except (RuntimeError, torch.cuda.DeferredCudaCallError) as e:  # the driver, the card or torch's build does not fit
        raise DeviceError(f"GPU {index} cannot be used ({str(e).splitlines()[0]}); -1 takes the CPU") from e
    return device


def choose_precision(wanted: str, device: torch.device) -> str:
    """One of PRECISIONS: the wanted one, or for "auto" bf16 or fp16 where the hardware is faster in it, else fp32.

    Raises DeviceError for one that a CPU does not have.
    """
    if wanted in ("tf32", "fp16") and device.type == "cpu":
        raise DeviceError(f"{wanted} needs a GPU")
    if wanted != "auto":
        return wanted
    if device.type == "cpu":
        return "bf16" if bf16_is_faster_on_cpu() else "fp32"
    capability = torch.cuda.get_device_capability(device)
    if capability >= (8, 0):
        return "bf16"
    return "fp16" if capability >= (7, 0) else "fp32"


def bf16_is_faster_on_cpu() -> bool:
    """Whether this CPU multiplies matrices faster in bf16 than in fp32.

    This is measured, because the same instructions differ in speed: avx512_bf16 without AMX runs at two to four times
    the rate of fp32 on AMD's processors, and at half of it on Intel's.
    """

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(256, 256, dtype=dtype)
        return min(timeit.repeat(lambda: matrix @ matrix, number=1, repeat=8))

    return seconds(torch.bfloat16) < seconds(torch.float32)


def setup_backend(device: torch.device, precision: Precision) -> None:
    """Set torch, or on a CPU the C library, up for a device."""
    if device.type == "cuda":
        tf32 = precision.name == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = True  # every shape comes thousands of times
        return
    # Have glibc keep freed memory for the next step. If it is given back, the kernel clears every page of it again,
    # which took 3 to 12 % of a step on two cores.
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        if mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_threshold, 1 << 25):  # older versions allow less
            mallopt(trim_threshold, 2**31 - 1)


def to_device(network: nn.Module, device: torch.device, precision: Precision) -> nn.Module:
    """The network on the device, in the memory format of the precision."""
    if precision.memory_format == torch.contiguous_format:  # images come channels last
        network.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    return network.to(device, memory_format=precision.memory_format)


def peak_memory(device: torch.device) -> int:
    """The most bytes that were in use: on a GPU by torch, on a CPU by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_name(device: torch.device) -> str:
    """The GPU, or the processor and how many of its cores torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = None
    with suppress(OSError):  # not Linux
        model = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    name = model[1] if model else platform.machine()
    return f"{name}, {torch.get_num_threads()} of {os.cpu_count()} cores"
