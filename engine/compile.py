"""What makes a step fast beside its arithmetic: CUDA graphs, a frozen teacher, compilation, memory that is kept.

All of it is torch's own work (torch.cuda.CUDAGraph, inductor) and changes results by rounding alone.

The in-place contract. A CUDA graph records kernels with the addresses of their tensors and the values of their Python
numbers. A function that is replayed therefore asks the device for no value, keeps what lives from step to step at its
address (change it in place), and is recorded again (CUDAGraphed.reset) after a number that it reads has changed.
"""

import ctypes
import gc
from contextlib import suppress

import torch
from torch.utils._pytree import tree_leaves

from engine import distributed

COMPILING_PAYS = {"cpu": 10_000, "cuda": 50_000}  # steps; in shorter runs it costs more seconds than it saves
ROUNDING = 0.05  # of logits in bf16 through fifty layers; relative, by norm


class CUDAGraphed:
    """A function of tensors under the in-place contract; on CUDA it is recorded as a graph and replayed.

    Launching a step's kernels takes the host longer than the GPU needs to run them; a graph is one launch. function:
    leaves what it computes in tensors that stay, and returns nothing. Calls whose first argument has not batch_size
    rows run it as it is, as all do unless setup_backend() has enabled graphs.
    """

    WARM_UP = 3  # plain calls, in which libraries choose their kernels and the optimizer makes its buffers

    enabled = False

    def __init__(self, function, batch_size):
        self.function, self.batch_size, self.stream = function, batch_size, None
        self.reset()

    def reset(self):
        """Record anew, as after a number that the function reads has changed."""
        self.graph = self.inputs = None
        self.calls = 0

    def __call__(self, *inputs):
        if not self.enabled or len(inputs[0]) != self.batch_size:
            return self.function(*inputs)
        if self.graph is None:
            self.calls += 1
            if self.calls <= self.WARM_UP:
                return self.warm_up(*inputs)
            try:
                self.capture(inputs)
            except Exception as e:  # nothing has been run: all state is as it was
                CUDAGraphed.enabled = False
                self.reset()
                print(f"CUDA graphs: off, a step could not be captured ({(str(e).strip() or repr(e)).splitlines()[0]})")
        if self.graph is None:  # not within `except`, which keeps the failed capture's memory
            return self.function(*inputs)
        torch._foreach_copy_(self.inputs, list(inputs))
        self.graph.replay()

    def capture(self, inputs):
        """Record the function for inputs like these, without running it."""
        gc.collect()  # an unreachable graph, as of an earlier evaluation, holds memory until then
        current, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        self.inputs = [tensor.clone() for tensor in inputs]
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.function(*self.inputs)
        finally:
            torch.cuda.set_stream(current)  # torch stays on the other one where beginning or ending a capture fails
        self.graph = graph

    def warm_up(self, *inputs):
        """Run the function on the side stream on which it will be recorded."""
        current = torch.cuda.current_stream()
        self.stream = self.stream or torch.cuda.Stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            self.function(*inputs)
        current.wait_stream(self.stream)


def place(network, device, autocast):
    """The network on the device, channels last; channels first where a GPU computes without tensor cores, in fp32."""
    with autocast():
        first = device.type == "cuda" and not (torch.is_autocast_enabled("cuda") or torch.backends.cudnn.allow_tf32)
    if first:
        network.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    return network.to(device, memory_format=torch.contiguous_format if first else torch.channels_last)


def resolve_compile(wanted, device, steps):
    """What to compile: "none", "forward" (what is not trained: the teacher, the student as it scores) or "all".

    wanted: "auto", "on" or "off". steps: of the whole run.
    """
    if wanted == "off" or (wanted == "auto" and steps < COMPILING_PAYS[device.type]):
        return "none"
    # Compiling the training saved next to nothing on a CPU, and few kernels on a GPU; under DDP it stays plain.
    return "all" if wanted == "on" and distributed.world_size() == 1 else "forward"


def compile_network(network, images, autocast, grad=False, **options):
    """The network, compiled for batches like `images` and a pass with gradient or without; others go through it plain.

    It is compiled here, by a pass that leaves gradients and buffers as they were: not in a step, whose seconds count.
    The network itself, with a printed line, if it cannot be compiled.
    """
    compiled = torch.compile(network, dynamic=False)
    buffers = [buffer.clone() for buffer in network.buffers()]
    try:
        with torch.set_grad_enabled(grad), autocast():
            *_, logits = tree_leaves(compiled(images, **options))
        if grad:  # only this compiles the backward pass
            torch.autograd.grad(logits.sum(), list(network.parameters()))
    except Exception as e:  # of inductor's own classes, which change, or the compiler's
        why = (str(e).strip() or type(e).__name__).splitlines()[0]
        print(f"compilation: {type(network).__name__} stays as it is, it does not compile here ({why})")
        return network
    finally:
        for buffer, before in zip(network.buffers(), buffers):
            buffer.copy_(before)

    def forward(x, **options):
        fits = x.shape == images.shape
        return (compiled if fits else network)(x.contiguous(memory_format=torch.channels_last), **options)

    return forward


def freeze(teacher, images, autocast):
    """A teacher that is never trained again, compiled for batches like `images`: see compile_network.

    Weights become constants in the precision of the arithmetic, batch norm is folded, activations are fused. The plain
    teacher, with a printed line, if its logits differ by more than rounding.
    """
    import torch._inductor.config  # takes a second

    with torch._inductor.config.patch(freezing=True):
        frozen = compile_network(teacher, images, autocast, is_feat=True)
    with torch.no_grad(), autocast():
        logits, plain = (network(images, is_feat=True)[1] for network in (frozen, teacher))
    difference = ((logits - plain).norm() / plain.norm()).item()
    if not difference < ROUNDING:
        print(f"compilation: the teacher stays as it is, frozen it differs by {100 * difference:.1f} %")
        return teacher
    return frozen


def setup_backend(device, tf32=False, graphs=True):
    """Set torch, or on a CPU the C library, up for a device. Several processes exchange within a step: no graphs."""
    if device.type == "cuda":
        CUDAGraphed.enabled = graphs and distributed.world_size() == 1
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = True  # every shape comes thousands of times
        return
    # Have glibc keep freed memory for the next step: given back, the kernel clears every page of it again, which on
    # two cores took 3 to 12 % of a step.
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        if mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_threshold, 1 << 25):  # what its versions allow
            mallopt(trim_threshold, 2**31 - 1)
