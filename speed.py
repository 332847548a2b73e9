"""What makes a step fast beside its arithmetic: a frozen teacher, compilation, CUDA graphs, kept memory.

All of it is torch's own work (inductor, torch.cuda.CUDAGraph) and changes results by rounding alone.
"""

import ctypes
import gc
from contextlib import suppress

import torch

import processes

COMPILING_PAYS = 10_000  # steps; in fewer, compiling costs more seconds than it saves

ROUNDING = 0.05  # of logits, in bf16 and through fifty layers; relative, by norm


class Replay:
    """A function of tensors that asks the device for no value: on CUDA recorded as a graph and replayed.

    Launching the kernels of a step one by one takes the host longer than the GPU needs to run them; a graph is one
    launch. function: takes and returns (in any structure) tensors; its first argument has `size` rows, and calls with
    another number run it as it is, as every call does where prepare() has not allowed graphs.

    A recording holds numbers by value and tensors by their place in memory. So whatever else the function reads or
    writes may only be changed in place, and after a number that it reads has changed, forget() has it recorded anew.
    What it returns is overwritten by the next call.
    """

    WARM_UP = 3  # calls as they are, in which libraries choose their kernels and optimizers make their buffers

    allowed = False

    def __init__(self, function, size):
        self.function, self.size = function, size
        self.forget()

    def forget(self):
        self.graph = self.inputs = self.outputs = self.stream = None
        self.calls = 0

    def __call__(self, *inputs):
        if not self.allowed or len(inputs[0]) != self.size:
            return self.function(*inputs)
        if self.graph is None:
            self.calls += 1
            if self.calls <= self.WARM_UP:
                return self.warm_up(*inputs)
            gc.collect()  # a graph that is no longer used, as of an earlier evaluation, holds memory until then
            self.inputs = [tensor.clone() for tensor in inputs]
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.outputs = self.function(*self.inputs)
        torch._foreach_copy_(self.inputs, list(inputs))
        self.graph.replay()
        return self.outputs

    def warm_up(self, *inputs):
        """Run the function on the side stream on which it will be recorded."""
        here = torch.cuda.current_stream()
        self.stream = self.stream or torch.cuda.Stream()
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            outputs = self.function(*inputs)
        here.wait_stream(self.stream)
        return outputs


def choose_compilation(wanted, device, steps):
    """What to compile: "nothing", "teacher" or "all"; says so where `wanted` leaves it open or it cannot be done.

    wanted: "auto", "on" or "off". steps: of the whole run. On a CPU only the frozen teacher gains: compiling the
    training of a small network there saved next to nothing. Over several processes the trained network stays plain.
    """
    if wanted == "off":
        return "nothing"
    if wanted == "auto" and steps < COMPILING_PAYS:
        print(f"compilation: nothing ({steps} steps are too few for it to pay; --compile on overrides)")
        return "nothing"
    try:
        torch.compile(lambda x: x + 1, dynamic=False)(torch.zeros(8, device=device))
    except Exception as e:  # inductor reports a missing compiler by classes of its own, which have changed
        print(f"compilation: nothing, it does not work here ({(str(e).strip() or type(e).__name__).splitlines()[0]})")
        return "nothing"
    what = "all" if processes.count() == 1 and (wanted == "on" or device.type == "cuda") else "teacher"
    if wanted == "auto":
        print(f"compilation: {what} (--compile overrides)")
    return what


def compiled(network, sizes):
    """The network, compiled for batches of `sizes`; others go through it as it is."""
    fast = torch.compile(network, dynamic=False)
    return lambda images, **options: (fast if len(images) in sizes else network)(images, **options)


def frozen(teacher, images, cast):
    """A teacher that will never be trained again, compiled for batches like `images`: weights constant and in the
    precision of the arithmetic, batch norm folded, activations fused. Others go through it as it is, and so do all,
    with a line on stdout, where its logits are not the plain teacher's up to rounding.
    """
    import torch._inductor.config  # takes a second

    fast = torch.compile(teacher, dynamic=False)
    with torch.no_grad(), cast(), torch._inductor.config.patch(freezing=True):
        logits = fast(images, is_feat=True)[1]
    with torch.no_grad(), cast():
        plain = teacher(images, is_feat=True)[1]
    difference = ((logits - plain).norm() / plain.norm()).item()
    if not difference < ROUNDING:
        print(f"the frozen teacher differs from the plain one by {100 * difference:.1f} %: not used")
        return teacher

    def run(x, **options):
        fits = x.shape == images.shape
        return (fast if fits else teacher)(x.contiguous(memory_format=torch.channels_last), **options)

    return run


def prepare(device, tf32=False, graphs=True):
    """Set this process up for a device.

    On CUDA fp32 is exact unless tf32 says otherwise, and graphs are used unless `graphs` says otherwise or there are
    several processes, which have to exchange within a step.
    """
    if device.type == "cuda":
        Replay.allowed = graphs and processes.count() == 1
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = True  # every shape comes thousands of times
        return
    # Have glibc keep freed memory for the next step. Given back to the kernel, each page of it would be cleared again:
    # on two cores 3 to 12 % of a step.
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    with suppress(OSError, AttributeError):  # another C library has its own ways
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        if mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_threshold, 1 << 25):  # what its versions allow
            mallopt(trim_threshold, 2**31 - 1)
