"""Images a second, ours beside the plain loop of plain.py, in turn, on the same generated images.

    python benchmarks/throughput.py                                             four pairs
    python benchmarks/throughput.py --pairs wrn_40_2:wrn_16_2 --precision fp32
    python benchmarks/throughput.py --startup                                   seconds until the first step is done
    python benchmarks/throughput.py --scaling scaling.png                       a step's time over batch and data size

A step has its data: drawing, augmentation, training, statistics. Of each pair the teacher's training, KD and UNIX are
measured. "of limit" is the share of the machine's limit: the operations of the step's convolutions and linear layers,
backward counted as two forwards, over the rate of a large matrix product in the same precision, measured in the same
run. "moved" is the same of memory: what the step's operations read and write when none is fused, over the rate of a
large copy; above 100 % says that caches, or fusing, spare traffic. Each side has a process of its own, for what ours
does to a process (speed.prepare) would speed up the plain loop too; peak memory is that process's: on a GPU
its tensors, on a CPU all of it, without the plain loop's three workers.
"""

import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).parent.parent))

import dataset
import student_v0
import teacher
from benchmarks.plain import PlainClassifier, PlainDistiller, batches
from cost import computation, forward_macs, training_macs
from loop import TrainingStep
from models import model_dict
from speed import choose_compilation, prepare
from utils import Parser, autocast, choose_device, choose_precision, entry, number, peak_memory

ROOT = Path(__file__).parent.parent
PAIRS = ("wrn_40_2:wrn_16_2", "resnet32x4:resnet8x4", "vgg13:MobileNetV2", "resnet56:resnet20")
METHODS = ("teacher", "KD", "UNIX")
WARM_UP = 8  # steps, before each round: compile, record a graph, use up what the plain loop's workers have ready


def arguments(method, pair, batch_size):
    teacher_arch, student_arch = pair.split(":")
    if method == "teacher":
        return teacher.flags().parse_args(f"--arch {teacher_arch} --batch-size {batch_size}".split())
    if method == "KD":
        flags = f"--strategy 0 --k {batch_size} --b {batch_size} --w 1000"
    else:
        flags = f"--k {batch_size * 3 // 4} --b {batch_size // 2}"
    return student_v0.flags().parse_args(f"--student-arch {student_arch} --batch-size {batch_size} {flags}".split())


class Ours:
    """The programs' own step, data included, called without arguments."""

    def __init__(self, device, method, pair, precision, compilation, graphs=True, images=6400, batch_size=64):
        prepare(device, graphs=graphs)
        args = arguments(method, pair, batch_size)
        data = dataset.load("synthetic", None, device, images, 1)
        cast = autocast(device, precision)
        torch.manual_seed(0)
        networks = [model_dict[arch]().to(device, memory_format=torch.channels_last) for arch in pair.split(":")]
        if method == "teacher":
            self.learner = teacher.Classifier(networks[0].train(), args, data, cast, 0, compilation)
        else:
            student = networks[1].train()
            self.learner = student_v0.Distiller(student, networks[0].eval(), args, data, cast, (0, 0), compilation)
        self.train = TrainingStep(self.learner, device)
        self.steps = (
            drawn for epoch in itertools.count(1) for drawn in self.learner.draw(epoch) if len(drawn[0]) == batch_size
        )

    def __call__(self):
        self.train(*next(self.steps))


class Plain:
    """The plain loop's step, data included."""

    def __init__(self, device, method, pair):
        args = arguments(method, pair, 64)
        torch.manual_seed(0)
        networks = [model_dict[arch]().to(device) for arch in pair.split(":")]
        if method == "teacher":
            self.learner = PlainClassifier(networks[0], args)
        else:
            self.learner = PlainDistiller(networks[1], networks[0], args)
        self.batches = batches(*dataset.synthetic(6400, "train"), 64, device)

    def __call__(self):
        self.learner.step(*next(self.batches))


# ------------------------------------------------------------------------------------------------------- measuring


def wait_for(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(step, steps, device):
    """Seconds a step, over so many."""
    wait_for(device)
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    wait_for(device)
    return (time.perf_counter() - begin) / steps


class Process:
    """A side in a process of its own. Calling it takes so many steps and returns their seconds a step."""

    def __init__(self, side, device, *settings):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, side, device, settings))
        self.process.start()
        theirs.close()

    def __call__(self, steps):
        self.pipe.send(steps)
        return self.pipe.recv()

    def end(self):
        """Peak memory in bytes."""
        peak = self(0)
        self.process.join()
        return peak


def serve(pipe, side, device, settings):
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    step = side(device, *settings)
    while steps := pipe.recv():
        pipe.send(seconds(step, steps, device))
    pipe.send(peak_memory(device))


def best_rate(amount, function, device):
    """amount a second, the best of several runs of function."""
    function()
    return max(amount / seconds(function, 1, device) for _ in range(10))


def machine_rates(device):
    """{precision: floating-point operations a second of a large matrix product}, bytes a second of a large copy."""
    n, rates = (8192 if device.type == "cuda" else 2048), {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(n, n, device=device).to(dtype)
        rates[precision] = best_rate(2 * n**3, lambda a=a: a @ a, device)
    source = torch.zeros(2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return rates, best_rate(2 * source.numel(), lambda: target.copy_(source), device)


class Traffic(TorchDispatchMode):
    """Counts operations, and the bytes that they read and write; views excepted."""

    operations = bytes = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if not operation.is_view:
            self.operations += 1
            tensors = [x for x in tree_leaves((args, kwargs, result)) if torch.is_tensor(x)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def traffic(device, method, pair, precision):
    step = Ours(device, method, pair, precision, "nothing")
    with Traffic() as counter:
        step.learner.step(*next(step.steps))
    return counter.bytes


def operations(method, pair):
    """Floating-point operations of a step of 64."""
    ft, fs = map(forward_macs, pair.split(":"))
    if method == "teacher":
        return 2 * training_macs(ft, trained=64, backward=2)
    kept, scored = (48, 64) if method == "UNIX" else (64, 0)
    return 2 * training_macs(fs, ft, kept, scored, backward=2)


# ----------------------------------------------------------------------------------------------------------- views


def table(args, precision, device, compilation):
    rates, copy_rate = machine_rates(device)
    print(", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items()), end="")
    print(f", copy {copy_rate / 1e9:.0f} GB/s; median of {args.rounds} rounds of {args.steps} steps, batch 64\n")
    print(f"{'':32}{'images/s':>19}{'':18}{'ms/step':>9}{'of limit':>19}{'moved':>8}{'peak memory, MB':>17}")
    print(f"{'':32}{'ours':>10}{'plain':>9}{'ratio':>18}{'ours':>9}{'ours':>10}{'plain':>9}{'ours':>8}", end="")
    print(f"{'ours':>8}{'plain':>9}")
    for pair in args.pairs:
        sides = {}
        for method in args.methods:
            sides[method, "ours"] = Process(Ours, device, method, pair, precision, compilation, args.compile != "off")
            sides[method, "plain"] = Process(Plain, device, method, pair)
        taken = {name: [] for name in sides}
        for _ in range(args.rounds):
            for name, side in sides.items():
                side(WARM_UP)
                taken[name].append(side(args.steps))
                time.sleep(0.5)  # until the plain loop's workers are idle
        peaks = {name: side.end() / 1e6 for name, side in sides.items()}
        for method in args.methods:
            ours, plain = taken[method, "ours"], taken[method, "plain"]
            ratios = sorted(p / o for p, o in zip(plain, ours))
            spread = f"{median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
            flops, moved = operations(method, pair), traffic(device, method, pair, precision)
            ours, plain = median(ours), median(plain)
            print(
                f"{pair:24}{method:8}{64 / ours:10.0f}{64 / plain:9.0f}{spread:>18}{1000 * ours:9.1f}"
                f"{flops / ours / rates[precision]:10.0%}{flops / plain / rates['fp32']:9.0%}"
                f"{moved / ours / copy_rate:8.0%}{peaks[method, 'ours']:8.0f}{peaks[method, 'plain']:9.0f}",
                flush=True,
            )
        if {"KD", "UNIX"} <= set(args.methods):
            ft, fs = map(forward_macs, pair.split(":"))
            relative = median(u / k for u, k in zip(taken["UNIX", "ours"], taken["KD", "ours"]))
            computed = computation(fs, ft, 48, 64, backward=2)
            print(f"{pair:24}UNIX takes {relative:.1%} of KD's time, {computed:.1%} is computed", flush=True)


def startup(args, device):
    """Seconds from a program's start until its first step is done, compiled anew, from inductor's cache, and not."""
    with tempfile.TemporaryDirectory() as folder:
        for pair in args.pairs:
            teacher_arch, student_arch = pair.split(":")
            file = Path(folder) / f"teacher_{teacher_arch}" / "ckpt" / "best.pth"
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"state_dict": model_dict[teacher_arch]().state_dict()}, file)
            common = "--dataset synthetic --train-limit 640 --val-limit 100 --epoch 1 --milestones --fresh"
            common += f" --precision {args.precision} --experiments {folder}/runs" + (
                " --gpu-id -1" if device.type == "cpu" else f" --gpu-id {device.index}"
            )
            commands = {
                "teacher": f"teacher.py --arch {teacher_arch} {common}",
                "UNIX": f"student_v0.py --teacher-path {file.parent.parent} --student-arch {student_arch} {common}",
            }
            cache = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": f"{folder}/cache_{teacher_arch}_{student_arch}"}
            for name, command in commands.items():
                times = {}
                for how, flag in (("plain", "off"), ("compiled", "on"), ("from the cache", "on")):
                    words = [sys.executable, *f"{ROOT}/{command} --compile {flag}".split()]
                    subprocess.run(words, env=cache, check=True, capture_output=True)
                    newest = max(Path(folder).glob("runs/*/result.json"), key=lambda path: path.stat().st_mtime)
                    times[how] = json.loads(newest.read_text())["startup_seconds"]
                said = ", ".join(f"{how} {value:.1f} s" for how, value in times.items())
                print(f"{pair:24}{name:8} {said}", flush=True)


def scaling(args, precision, device, compilation):
    """How a step's time grows, as two plots; the figures are printed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    pair = args.pairs[0]
    views = {
        "batch size": ([16, 32, 64, 128, 256], lambda size: {"images": max(6400, 4 * size), "batch_size": size}),
        "images of the data set": ([1000, 5000, 20_000, 50_000], lambda size: {"images": size}),
    }
    for axis, (name, (sizes, options)) in zip(axes, views.items()):
        for method in args.methods:
            times = []
            for size in sizes:
                step = Ours(device, method, pair, precision, compilation, args.compile != "off", **options(size))
                seconds(step, WARM_UP, device)
                times.append(1000 * median(seconds(step, args.steps, device) for _ in range(args.rounds)))
            print(f"{pair} {method}, ms a step over {name}: " + ", ".join(f"{s} {t:.1f}" for s, t in zip(sizes, times)))
            axis.plot(sizes, times, "o-", label=method)
        axis.set(xlabel=name, ylabel="ms a step", xscale="log", xticks=sizes, xticklabels=sizes)
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False)
    figure.suptitle(f"{pair.replace(':', ' → ')}, {precision}, {device.type}")
    figure.savefig(args.scaling, dpi=120)
    print(f"drawn: {args.scaling}")


def main():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--pairs", nargs="+", default=PAIRS, metavar="TEACHER:STUDENT")
    add("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD", help=" ".join(METHODS))
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="ours; the plain loop's is fp32 (auto)")
    add("--compile", choices=("auto", "on", "off"), default="auto", help="as a run of 240 epochs takes it (auto)")
    add("--rounds", type=number(int, 1, 1000), default=3)
    add("--steps", type=number(int, 1, 1000), default=10, help="a round (10)")
    add("--gpu-id", type=number(int, -1, 1000), help="-1: the CPU (the first visible GPU, else the CPU)")
    views = parser.add_mutually_exclusive_group()
    views.add_argument("--startup", action="store_true", help="measure start-up instead")
    views.add_argument("--scaling", type=Path, metavar="PICTURE", help="measure and draw scaling instead")
    args = parser.parse_args()
    for pair in args.pairs:
        if pair.count(":") != 1 or not all(arch in model_dict for arch in pair.split(":")):
            parser.error(f"argument --pairs: {pair} is not two networks with a colon between them")
    args.tf32 = False
    device = choose_device(parser, args.gpu_id)
    precision = choose_precision(parser, args, device)
    if args.startup:
        return startup(args, device)
    compilation = choose_compilation(args.compile, device, 240 * 782)
    if args.scaling:
        return scaling(args, precision, device, compilation)
    table(args, precision, device, compilation)


if __name__ == "__main__":
    entry(main)
