"""One run over several processes, as torchrun starts them: who this one is, and what they exchange.

    torchrun --nproc-per-node=4 student_v0.py ...

The processes draw the same randomness and hold the same data, so what they exchange is little: what only one of them
computed. A program started by itself is the one process that there is, and exchanges nothing. The functions that
exchange have to be called by all processes alike.
"""

import os
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def rank():
    """Which process this is; 0 is the one that speaks and writes."""
    return int(os.environ.get("RANK", 0))


def count():
    return int(os.environ.get("WORLD_SIZE", 1))


def share():
    """This process's part of anything in order: every count()-th, so that a ranking is spread evenly."""
    return slice(rank(), None, count())


def weight(mine, whole):
    """What a mean over `mine` of `whole` samples is to be multiplied by, so that the processes' mean is that of all."""
    return count() * mine / whole


def be_quiet():
    """In all processes but the first, have standard output go nowhere."""
    if rank() > 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def join(device):
    """Find the others."""
    if count() > 1 and device.type == "cuda":
        dist.init_process_group("nccl", device_id=device)
    elif count() > 1:
        dist.init_process_group("gloo")


def part():
    """Wait for the others, after a run that went well, and leave them."""
    if count() > 1:
        dist.barrier()
        dist.destroy_process_group()


def let_first_speak():
    """Called on failing: where the first process fails alike, its line is enough, and torchrun ends this one."""
    if rank() > 0:
        time.sleep(5)


def with_shared_gradients(model):
    """The model as it is called for learning: its gradients become the mean over the processes."""
    return DistributedDataParallel(model) if count() > 1 else model


def from_first(function):
    """What function() gives in the first process, for all of them; what it raises there is raised in all."""
    if count() == 1:
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


def gather(rows, n):
    """All n rows of a tensor of which each process has its share(), in order."""
    if count() == 1:
        return rows
    mine = rows.new_zeros(-(-n // count()), *rows.shape[1:])
    mine[: len(rows)] = rows
    shares = [torch.empty_like(mine) for _ in range(count())]
    dist.all_gather(shares, mine)
    return torch.stack(shares, 1).flatten(0, 1)[:n]


def everyone(thing):
    """[what each process has], any object that can be pickled."""
    if count() == 1:
        return [thing]
    things = [None] * count()
    dist.all_gather_object(things, thing)
    return things


def add_up(tensor):
    """In place, the sum over the processes."""
    if count() > 1:
        dist.all_reduce(tensor)


def take_statistics(model):
    """Give all processes the first one's buffers, batch norm's statistics: those that are saved."""
    if count() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
