"""One run over several processes, as torchrun starts them: who this one is, and what they exchange.

All processes hold the same data and draw the same randomness, so each makes the whole batch and trains on its shard.
(They rank alike where their hardware rounds alike; otherwise near-ties may fall to two of them, or to none.)
A program started by itself is a world of one: nothing is exchanged. Functions that communicate must be called by all.
"""

import os
import time
import warnings

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def variable(name, default):
    """A number that a launcher sets in the environment; `default` where there is none that can be read."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default


def world_size():
    return variable("WORLD_SIZE", 1)


def rank():
    """This process; 0 is the one that prints and writes. A RANK without a world, left from elsewhere, says nothing."""
    return variable("RANK", 0) if world_size() > 1 else 0


def launcher_error():
    """What a launcher has left out or garbled, in words; None if nothing."""
    size = variable("WORLD_SIZE", 0) if os.environ.get("WORLD_SIZE") else 1
    sound = {"WORLD_SIZE": size > 0}
    if size > 1:
        sound["RANK"] = variable("RANK", size) < size
        sound["MASTER_ADDR"] = bool(os.environ.get("MASTER_ADDR"))
        sound["MASTER_PORT"] = 0 < variable("MASTER_PORT", 0) < 65536
    wrong = ", ".join(f"{name}={os.environ.get(name, '')}" for name in sound if not sound[name])
    return (
        f"environment: {wrong} is missing or wrong; torchrun sets it, one process needs no WORLD_SIZE"
        if wrong
        else None
    )


def shard(tensors):
    """This process's rows of each tensor of a tuple: every world_size-th, so a ranking is spread evenly."""
    if world_size() == 1:
        return tensors
    rows = [tensor[rank() :: world_size()] for tensor in tensors]
    return type(tensors)(*rows) if hasattr(tensors, "_fields") else tuple(rows)


def init(device):
    """Connect the processes: tensors of GPUs by NCCL, all else by gloo, so that asking waits for no kernel."""
    if world_size() > 1 and device.type == "cuda":
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    elif world_size() > 1:
        dist.init_process_group("gloo")


def shutdown():
    """Wait for the other processes, then disconnect. For runs that went well."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def silence_other_ranks():
    """Send the standard output of all processes but the first nowhere."""
    if rank() > 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def wait_for_rank0_error():
    """Call on failing: if rank 0 fails the same way, its line is enough, and torchrun ends this process meanwhile."""
    if rank() > 0:
        time.sleep(5)


def wrap_ddp(model):
    """The model as it is called for training: its gradients become the mean over the processes."""
    if world_size() == 1:
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 has another name for broadcast_buffers
        # buffers (batch norm statistics) are taken from rank 0 before validation, not at every forward pass
        return DistributedDataParallel(model, gradient_as_bucket_view=True, broadcast_buffers=False)


def run_on_rank0(function):
    """Call function() on rank 0 and give every process its result; what it raises is raised in all."""
    if world_size() == 1:
        return function()
    outcome = [None]
    if rank() == 0:
        try:
            outcome = [(function(), None)]
        except (Exception, SystemExit) as e:
            outcome = [(None, e)]
    dist.broadcast_object_list(outcome)
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def all_gather_object(value):
    """[the value of each process], any object that can be pickled."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def all_reduce_(tensor):
    """In place, the sum over the processes."""
    if world_size() > 1:
        dist.all_reduce(tensor)


def broadcast_buffers(model):
    """Give every process rank 0's buffers, which are the ones that are saved."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
