"""CUDA graphs and torch.compile, which make a step faster. Both change results by rounding alone.

The in-place contract. A CUDA graph records kernels with the addresses of their tensors and the values of their Python
numbers. A function that is replayed therefore asks the device for no value and keeps what lives from step to step at
its address: it changes tensors in place. After a Python number that it reads has changed, it is recorded again.
"""

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from engine.device import DeviceError, Precision


class CUDAGraphed:
    """A function of tensors under the in-place contract. On CUDA it is recorded as a graph and replayed.

    The host takes longer to launch a step's kernels than the GPU takes to run them; a graph is one launch.
    function: leaves what it computes in tensors that stay, and returns nothing. Calls whose first argument does not
    have batch_size rows run it as it is, as do calls on a CPU.
    """

    WARM_UP = 3  # plain calls, in which libraries choose their kernels

    def __init__(self, function: Callable[..., None], batch_size: int):
        self.function = function
        self.batch_size = batch_size
        self.capture_failed = False
        self.stream = None
        self.reset()

    def reset(self) -> None:
        """Record anew, as after a Python number that the function reads has changed."""
        self.graph = None
        self.inputs = None
        self.calls = 0

    def __call__(self, *inputs: torch.Tensor) -> None:
        if self.capture_failed or not inputs[0].is_cuda or len(inputs[0]) != self.batch_size:
            return self.function(*inputs)
        self.calls += 1
        if self.calls <= self.WARM_UP:
            return self.warm_up(*inputs)
        if self.graph is None:
            self.capture(inputs)
        if self.graph is None:
            return self.function(*inputs)
        torch._foreach_copy_(self.inputs, list(inputs))
        self.graph.replay()

    def warm_up(self, *inputs: torch.Tensor) -> None:
        """Run the function on the side stream on which it will be recorded."""
        current = torch.cuda.current_stream()
        self.stream = self.stream or torch.cuda.Stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            self.function(*inputs)
        current.wait_stream(self.stream)

    def capture(self, inputs: tuple[torch.Tensor, ...]) -> None:
        """Record the function for inputs like these, without running it. A failure is told in one line."""
        gc.collect()  # an unreachable graph holds its memory until then
        current = torch.cuda.current_stream()
        graph = torch.cuda.CUDAGraph()
        self.inputs = [tensor.clone() for tensor in inputs]
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.function(*self.inputs)
            self.graph = graph
        except Exception as e:  # nothing has been run, so all state is as it was
            self.capture_failed = True
            print(f"CUDA graphs are off, because a step could not be captured ({first_line(e)})")
        finally:
            torch.cuda.set_stream(current)  # a failed capture leaves torch on the other stream


def compile_network(network: nn.Module, images: torch.Tensor, precision: Precision, frozen: bool = False) -> Callable:
    """The network compiled for passes without gradient, called as `network(x, is_feat=True)`.

    images: a batch of the shape to compile for; batches of other shapes go through the plain network.
    frozen: the weights never change again, so inductor may fold them into constants.
    Raises DeviceError where the network cannot be compiled.
    """
    compiled = torch.compile(network, dynamic=False, options={"freezing": frozen})
    buffers = [buffer.clone() for buffer in network.buffers()]
    try:
        with torch.no_grad(), precision.autocast():
            compiled(images, is_feat=True)  # compiles here, and not in a step, whose seconds count
    except Exception as e:  # the compiler's, or one of inductor's own classes
        raise DeviceError(f"{type(network).__name__} does not compile here ({first_line(e)})") from e
    for buffer, before in zip(network.buffers(), buffers):
        buffer.copy_(before)

    def forward(x: torch.Tensor, **options: Any) -> Any:
        function = compiled if x.shape == images.shape else network
        return function(x.contiguous(memory_format=precision.memory_format), **options)

    return forward


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class where there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
