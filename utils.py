"""What both programs share: flags, device and precision, the schedule, errors in one line."""

import argparse
import io
import math
import os
import signal
import sys
import threading
import time
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import torch

from engine import distributed
from engine.compile import setup_backend

# ----------------------------------------------------------------------------------------------------------- flags

TRAIN_SIZE, TEST_SIZE = 50_000, 10_000
MANY = 1_000_000  # a bound for what has no natural one
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def as_path(text):
    """An argparse type: a Path, ~ expanded, which shells do not do in --flag=~/x."""
    return Path(os.path.expanduser(text))  # noqa: PTH111  Path's own raises where there is no such user


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line."""

    def __init__(self, description):
        as_it_is = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=as_it_is, allow_abbrev=False)

    def error(self, message):
        distributed.wait_for_rank0_error()
        self.exit(2, f"{self.prog}: error: {message} (--help explains every flag)\n")


def number(kind, low=-math.inf, high=math.inf, above=-math.inf, below=math.inf):
    """An argparse type: an int or float with low <= value <= high and above < value < below, never nan or infinite."""
    bounds = {"at least": low, "at most": high, "above": above, "below": below}
    wanted = " and ".join(f"{text} {limit}" for text, limit in bounds.items() if math.isfinite(limit))
    wanted = f"{'a whole number' if kind is int else 'a number'} {wanted}"

    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if low <= value <= high and above < value < below:
            return value
        raise argparse.ArgumentTypeError(f"must be {wanted}, not {text!r}")

    return convert


def add_shared_flags(parser):
    """The flags of both programs: recipe (section 2), data, and where and how to run."""
    # fmt: off
    add = parser.add_argument_group("recipe (the defaults are the published one)").add_argument
    add("--epoch", type=number(int, 1, MANY), default=240,
        help="epochs to train (240, 30 after the last milestone); fewer want other --milestones")
    add("--batch-size", type=number(int, 2, TRAIN_SIZE), default=64,
        help="images a step (64; another one wants another --lr, --k and --b)")
    add("--lr", type=number(float, above=0), default=0.05,
        help="learning rate at the start (0.05; published runs take 0.01 for MobileNetV2, ShuffleV1, ShuffleV2)")
    add("--momentum", type=number(float, 0, below=1), default=0.9, help="of SGD, without Nesterov (0.9)")
    add("--weight-decay", type=number(float, 0), default=5e-4, help="of SGD, on all parameters (5e-4)")
    add("--gamma", type=number(float, above=0), default=0.1, help="factor of the learning rate at a milestone (0.1)")
    add("--milestones", type=number(int, 1, MANY), nargs="*", default=[150, 180, 210], metavar="EPOCH",
        help="epochs after which the learning rate drops (150 180 210); none given: it never does")
    add("--seed", type=number(int, 0, 2**63 - 1), default=0,
        help="of initial weights, order, augmentation, mixing and --holdout (0); published figures are means over four")

    add = parser.add_argument_group("data").add_argument
    add("--dataset", choices=("cifar100", "synthetic"), default="cifar100",
        help="synthetic: 100 classes of generated images, needs no files (cifar100)")
    add("--data-root", type=as_path, default=Path("data"), metavar="DIR",
        help="where cifar-100-python/ lies or is downloaded to (./data)")
    add("--train-limit", type=number(int, 2, TRAIN_SIZE), metavar="N", help="only the first N training images (all)")
    add("--val-limit", type=number(int, 1, TEST_SIZE), metavar="N", help="only the first N test images (all)")
    add("--holdout", type=number(int, 0, TRAIN_SIZE), default=0, metavar="N",
        help="choose the best epoch on N training images kept apart, and look at the test images once, at the end "
        "(0: choose on the test images, as the paper does)")

    add = parser.add_argument_group("machine and files").add_argument
    add("--gpu-id", type=number(int, -1, MANY), metavar="ID",
        help="index among the visible GPUs; -1: the CPU (the first visible GPU, else the CPU)")
    add("--precision", choices=("auto", "fp32", "tf32", *HALVES), default="auto",
        help="of the networks' arithmetic; weights stay fp32 (auto: bf16 where the hardware is faster in it, fp16 "
        "on older GPUs with tensor cores, else fp32)")
    add("--compile", choices=("auto", "on", "off"), default="auto",
        help="compile the frozen teacher, the scoring and the training (auto: the first two, in runs long enough to "
        "gain by it); off: use no CUDA graphs either")
    add("--sync-bn", action="store_true", help="over several GPUs: batch norm over the whole batch (off: over a part)")
    add("--experiments", type=as_path, default=Path("experiments"), metavar="DIR", help="of all runs (./experiments)")
    add("--save-interval", type=number(int, 1, MANY), default=40, metavar="N",
        help="a numbered checkpoint every N epochs, at milestones and at the end (40, to spare the disk)")
    add("--fresh", action="store_true", help="move an earlier run of these settings aside and start over (off: resume)")
    add("--debug", action="store_true", help="show the traceback of an error (off: one line)")
    # fmt: on


def check_shared_flags(parser, args):
    """What single flags cannot tell: conflicts between them, or with the launcher. Exits with code 2, or warns."""
    if error := distributed.launcher_error():
        parser.error(error)
    if not all(a < b for a, b in zip(args.milestones, args.milestones[1:])):
        parser.error(f"argument --milestones: must rise, not {' '.join(map(str, args.milestones))}")
    if args.milestones != parser.get_default("milestones") and any(m >= args.epoch for m in args.milestones):
        parser.error(f"argument --milestones: {args.milestones[-1]} never comes within --epoch {args.epoch}")
    train_size = args.train_limit or TRAIN_SIZE
    if args.holdout > train_size - 2:
        parser.error(f"argument --holdout: {args.holdout} of {train_size} training images leaves too few to train on")
    world_size, last_batch = distributed.world_size(), (train_size - args.holdout) % args.batch_size
    for size, what in ((args.batch_size, "it"), (last_batch, f"the last batch, of {last_batch},")):
        if size % world_size:
            parser.error(f"argument --batch-size: {what} is not divisible by {world_size} processes")
    if args.sync_bn and world_size == 1:
        parser.error("argument --sync-bn: there is one process; torchrun starts several")
    if args.milestones and args.milestones[0] >= args.epoch:
        print0(f"warning: the learning rate never drops: --epoch {args.epoch} ends before the first of --milestones")


def print0(line):
    """A line of rank 0 on stderr."""
    if distributed.rank() == 0:
        print(line, file=sys.stderr, flush=True)


class LenientStream(io.TextIOWrapper):
    """A text stream for which a reader that is gone, a full disk and what its encoding lacks are no reason to fail."""

    def __init__(self, stream):
        super().__init__(stream.buffer, stream.encoding, "replace", line_buffering=stream.line_buffering)
        self.stream = stream  # forgotten, it would close the buffer

    def write(self, text):
        with suppress(OSError):
            return super().write(text)

    def flush(self):
        with suppress(OSError):
            super().flush()


def stop_signals():
    """The signals that end a program; none in a notebook's thread, as Python takes them in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        return []
    hangup = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []  # as under nohup
    return [signal.SIGTERM, signal.SIGINT, *hangup]


def run_main(main):
    """Run a program's main(), whoever listens; an error of the world (files, data, weights) is a line and exit code 1.

    SIGTERM, SIGINT and SIGHUP end it with one line and 128 + signal; during training see engine.trainer.StopRequest.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: PTH123, SIM115  None: it was closed before
        setattr(sys, name, LenientStream(stream))

    def stop(number, _):
        print0("stopped; what was saved stays")
        sys.exit(128 + number)

    for number in stop_signals():
        signal.signal(number, stop)
    try:
        main()
        distributed.shutdown()
        if distributed.world_size() > 1:  # torch's threads have been seen to abort the interpreter's own way out
            sys.stdout.flush()
            os._exit(0)
    except (OSError, torch.OutOfMemoryError) as e:
        if "--debug" in sys.argv:
            raise
        distributed.wait_for_rank0_error()
        sys.exit(f"{Path(sys.argv[0]).name}: error: {' '.join(str(e).split())}")


# ---------------------------------------------------------------------------------- device, precision and schedule


def set_up(parser, args):
    """Prepare this process for the device that it runs on, and connect it to the others. Returns (device, precision).

    Exits with code 2 for flags that do not fit the machine.
    """
    distributed.silence_other_ranks()
    device = choose_device(parser, args.gpu_id)
    if args.sync_bn and device.type != "cuda":
        parser.error("argument --sync-bn: torch has it on GPUs only")
    precision = choose_precision(parser, args, device)
    setup_backend(device, precision == "tf32", graphs=args.compile != "off")
    distributed.init(device)
    return device, distributed.run_on_rank0(lambda: precision)  # of one run, on whatever hardware


def choose_device(parser, gpu_id):
    """The torch.device to run on, which CUDA_VISIBLE_DEVICES may have masked; of several processes each takes its own.

    Exits with code 2 for a missing GPU.
    """
    visible = torch.cuda.device_count()
    if distributed.world_size() > 1 and visible:
        if gpu_id not in (None, -1):
            parser.error("argument --gpu-id: the processes of torchrun take a GPU each; CUDA_VISIBLE_DEVICES chooses")
        gpu_id = distributed.variable("LOCAL_RANK", distributed.rank() % visible) if gpu_id is None else gpu_id
    if gpu_id is None and visible == 0:
        print("no GPU is visible: running on the CPU")
    if gpu_id == -1 or (gpu_id is None and visible == 0):
        return torch.device("cpu")
    if (gpu_id or 0) >= visible:
        parser.error(
            f"argument --gpu-id: there is no GPU {gpu_id}; leaving it out takes the first or the CPU, -1 the CPU"
        )
    device = torch.device("cuda", gpu_id or 0)
    try:
        torch.cuda.set_device(device)
        torch.ones(1, device=device).item()  # runs a kernel
    # a driver too old, a card that is full or another's alone, or one that this torch has no kernels for
    except (RuntimeError, torch.cuda.DeferredCudaCallError) as e:
        reason = str(e).splitlines()[0]
        if "no kernel image" in reason:
            name, (major, minor) = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
            known = f"torch {torch.__version__} has kernels for {' '.join(torch.cuda.get_arch_list())}"
            remedy = "a card older than these takes a torch built for an older CUDA, a newer card a newer torch"
            reason = f"{name} is an sm_{major}{minor}, this {known}; {remedy}: https://pytorch.org/get-started"
        parser.error(f"argument --gpu-id: GPU {device.index} cannot be used ({reason}); -1 is the CPU")
    return device


def choose_precision(parser, args, device):
    """ "fp32", "tf32", "bf16" or "fp16". Exits with code 2 for one that a CPU has not."""
    if args.precision in ("tf32", "fp16") and device.type != "cuda":
        parser.error(f"argument --precision: {args.precision} is of GPUs")
    if args.precision != "auto":
        return args.precision
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        half, faster = "bf16" if capability >= (8, 0) else "fp16", capability >= (7, 0)  # since Ampere, since Volta
    else:
        half, faster = "bf16", bf16_speedup() > 1
    precision = half if faster else "fp32"
    print(f"precision: {precision} ({half} is {'' if faster else 'not '}faster here; --precision overrides)")
    return precision


def bf16_speedup():
    """How many times as fast as in fp32 this CPU multiplies matrices in bf16.

    Measured, as torch knows a CPU's instructions but not their worth: avx512_bf16 without AMX runs at two to four times
    fp32's rate on AMD's, at half of it on Intel's.
    """

    def seconds(dtype):
        matrix, taken = torch.ones(256, 256, dtype=dtype), []
        for _ in range(6):
            begin = time.thread_time()  # of this thread alone: whatever else runs does not count
            torch.mm(matrix, matrix)
            taken.append(time.thread_time() - begin)
        return min(taken)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return seconds(torch.float32) / seconds(torch.bfloat16)
    finally:
        torch.set_num_threads(threads)


def autocast(device, precision):
    """A function that gives a fresh context for a network's forward pass in this precision."""
    if precision not in HALVES:
        return nullcontext
    return partial(torch.autocast, device.type, dtype=HALVES[precision])


def learning_rate(args, epoch):
    """The rate in 1-based `epoch`: lr times gamma for every milestone that has passed."""
    return args.lr * args.gamma ** sum(epoch > m for m in args.milestones)


# ----------------------------------------------------------------------------------------------- seconds and bytes


def process_seconds():
    """Seconds since this process was started, its imports included; None where the system (not Linux) does not say."""
    try:
        ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]  # field 22, since boot
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return None


def peak_memory(device):
    """The most bytes that were in use: on a GPU by torch, graphs included, on the CPU by the whole process.

    None where the system (not Linux) does not say.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    with suppress(OSError):
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024


def reset_peak_memory(device):
    """From now on, a GPU's peak_memory() is of what follows."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what is kept for later counts as in use
        torch.cuda.reset_peak_memory_stats(device)


def hours(seconds):
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
