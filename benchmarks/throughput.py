"""Images a second, ours beside the plain loop of plain.py, in turn, on the same generated images.

    python benchmarks/throughput.py                                             four pairs
    python benchmarks/throughput.py --pairs wrn_40_2:wrn_16_2 --precision fp32
    python benchmarks/throughput.py --startup                                   seconds until the first step is done

A step has its data: drawing, augmentation, training, statistics. "of limit" is the share of the machine's limit: the
operations of its convolutions and linear layers, backward counted as two forwards, over the rate of a large matrix
product in the same precision. Each side has a process of its own, as engine.compile.setup_backend would speed up the
plain loop too. Peak memory is that process's: on a GPU its tensors, on a CPU all of it, without the loop's workers.
"""

import argparse
import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import dataset
import student_v0
import teacher
from benchmarks.plain import PlainClassifier, PlainDistiller, batches
from engine.compile import place, setup_backend
from engine.flops import forward_macs, training_macs
from engine.trainer import TrainStep
from models import model_dict
from utils import HALVES, Parser, autocast, choose_device, choose_precision, number, peak_memory, run_main

ROOT = Path(__file__).parent.parent
PAIRS = ("wrn_40_2:wrn_16_2", "resnet32x4:resnet8x4", "vgg13:MobileNetV2", "resnet56:resnet20")
METHODS = {  # name: flags of student_v0.py; None: the teacher's own training
    "teacher": None,
    "KD": "--strategy 0 --k 64 --b 64 --w 1000",
    "UNIX": "",
    "unscored": "--strategy 0",  # as UNIX between the scoring epochs of --score-every, with a few more statistics
}
BATCH, IMAGES = 64, 6400  # whole batches
WARM_UP = 8  # steps before each round: compile, record a graph, use up what the plain loop's workers have ready


def pair_name(text):
    """An argparse type."""
    if text.count(":") != 1 or not all(arch in model_dict for arch in text.split(":")):
        raise argparse.ArgumentTypeError(f"{text} is not two networks with a colon between them")
    return text


def arguments(method, pair, compilation="auto"):
    """A program's arguments. compilation: of --compile; "auto" decides as in a run of 240 epochs of all images."""
    teacher_arch, student_arch = pair.split(":")
    shared = f"--compile {compilation} --epoch {240 * 50_000 // IMAGES}"
    if METHODS[method] is None:
        return teacher.make_parser().parse_args(f"--arch {teacher_arch} {shared}".split())
    return student_v0.make_parser().parse_args(f"--student-arch {student_arch} {shared} {METHODS[method]}".split())


def networks(pair):
    """(teacher, student), untrained, on the CPU."""
    torch.manual_seed(0)
    return [model_dict[arch]() for arch in pair.split(":")]


@functools.cache
def macs(pair):
    """(of the teacher, of the student): multiply-accumulates of a forward pass."""
    return tuple(map(forward_macs, networks(pair)))


def train_step(device, method, pair, precision="fp32", compilation="auto", graphs=True):
    """The programs' own TrainStep, ready to be called with a batch."""
    args = arguments(method, pair, compilation)
    setup_backend(device, graphs=graphs)
    data, cast = dataset.load("synthetic", None, device, IMAGES, 1), autocast(device, precision)
    teacher_model, student = networks(pair)
    if METHODS[method] is None:
        trainer = teacher.TeacherTrainer(teacher_model, args, data, cast)
    else:
        teacher_model = place(teacher_model, device, cast).eval()
        trainer = student_v0.Distiller(student, teacher_model, args, data, cast)
    return TrainStep(trainer)


def endless(step):
    """A function without arguments: a TrainStep on one batch after the other."""
    batches = (batch for epoch in itertools.count(1) for batch in step.trainer.batches(epoch))
    return lambda: step(*next(batches))


def our_step(*settings):
    """The step that train_step() makes of these settings, data included."""
    return endless(train_step(*settings))


def plain_step(device, method, pair):
    """The same of the plain loop."""
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    args, alone = arguments(method, pair), METHODS[method] is None
    teacher_model, student = (network.to(device) for network in networks(pair))
    trainer = PlainClassifier(teacher_model, args) if alone else PlainDistiller(student, teacher_model, args)
    steps = batches(*dataset.synthetic(IMAGES, "train"), BATCH, device)
    return lambda: trainer.step(*next(steps))


def operations(method, pair):
    """Floating-point operations of a step."""
    teacher_macs, student_macs = macs(pair)
    if METHODS[method] is None:
        return 2 * training_macs(teacher_macs, trained=BATCH, backward=2)
    args = arguments(method, pair)
    return 2 * training_macs(student_macs, teacher_macs, args.k, BATCH if args.strategy else 0, backward=2)


def seconds(step, steps, device):
    """Seconds a step, over so many."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize()
    return (time.perf_counter() - begin) / steps


class Side:
    """A step, by make(device, *settings), in a process of its own."""

    def __init__(self, make, device, *settings):
        self.step = make, device, *settings
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def __call__(self, steps):
        """Take so many. Returns seconds a step."""
        return self.pool.submit(take, steps, *self.step).result()

    def end(self):
        """Peak memory in bytes."""
        with self.pool:
            return self.pool.submit(peak_memory, self.step[1]).result()


def take(steps, make, device, *settings):
    """In a Side's process."""
    return seconds(made(make, device, *settings), steps, device)


@functools.cache
def made(make, device, *settings):
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with contextlib.redirect_stdout(sys.stderr):  # what is compiled is no part of the table
        return make(device, *settings)


def matmul_rate(device, dtype):
    """Floating-point operations a second of a large matrix product, the fastest of several."""
    n = 8192 if device.type == "cuda" else 2048
    a = torch.randn(n, n, device=device).to(dtype)
    return 2 * n**3 / min(seconds(lambda: a @ a, 1, device) for _ in range(11))


def table(args, precision, device):
    dtypes = {"fp32": torch.float32, precision: HALVES.get(precision, torch.float32)}
    limits = {name: matmul_rate(device, dtype) for name, dtype in dtypes.items()}
    print(", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in limits.items()), end="")
    print(f"; median of {args.rounds} rounds of {args.steps} steps, batch {BATCH}\n")
    print(f"{'':32}{'images/s':>19}{'':18}{'ms/step':>9}{'of limit':>19}{'peak memory, MB':>18}")
    print(f"{'':32}{'ours':>10}{'plain':>9}{'ratio':>18}{'ours':>9}{'ours':>10}{'plain':>9}{'ours':>9}{'plain':>9}")
    for pair in args.pairs:
        sides = {}
        for method in args.methods:
            sides[method, "ours"] = Side(our_step, device, method, pair, precision, args.compile, args.compile != "off")
            sides[method, "plain"] = Side(plain_step, device, method, pair)
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
            ours, plain, flops = median(ours), median(plain), operations(method, pair)
            print(
                f"{pair:24}{method:8}{BATCH / ours:10.0f}{BATCH / plain:9.0f}{spread:>18}{1000 * ours:9.1f}"
                f"{flops / ours / limits[precision]:10.0%}{flops / plain / limits['fp32']:9.0%}"
                f"{peaks[method, 'ours']:9.0f}{peaks[method, 'plain']:9.0f}",
                flush=True,
            )


def startup(args, device):
    """Seconds from a program's start until its first step is done: plain, compiled, and compiled before."""
    common = "--dataset synthetic --train-limit 640 --val-limit 100 --epoch 1 --milestones"
    common += f" --precision {args.precision} --gpu-id {-1 if device.type == 'cpu' else device.index}"
    for pair in args.pairs:
        teacher_arch, student_arch = pair.split(":")
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": f"{folder}/cache"}
            weights = Path(folder) / f"teacher_{teacher_arch}.pth"
            torch.save({"state_dict": model_dict[teacher_arch]().state_dict(), "arch": teacher_arch}, weights)
            for name, command in {
                "teacher": f"teacher.py --arch {teacher_arch}",
                "UNIX": f"student_v0.py --teacher-path {weights} --student-arch {student_arch}",
            }.items():
                times = []
                for i, (how, flag) in enumerate([("plain", "off"), ("compiled", "on"), ("from the cache", "on")]):
                    words = f"{ROOT}/{command} {common} --compile {flag} --experiments {folder}/{name}{i}".split()
                    subprocess.run([sys.executable, *words], env=environment, check=True, capture_output=True)
                    (result,) = Path(folder).glob(f"{name}{i}/*/result.json")
                    times.append(f"{how} {json.loads(result.read_text())['startup_seconds']:.1f} s")
                print(f"{pair:24}{name:8} {', '.join(times)}", flush=True)


def main():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--pairs", nargs="+", type=pair_name, default=PAIRS, metavar="TEACHER:STUDENT")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS)[:3], metavar="METHOD", help=" ".join(METHODS))
    add("--precision", choices=("auto", "fp32", *HALVES), default="auto", help="ours; the plain loop's is fp32 (auto)")
    add("--compile", choices=("auto", "on", "off"), default="auto", help="as a run of 240 epochs takes it (auto)")
    add("--rounds", type=number(int, 1, 1000), default=3)
    add("--steps", type=number(int, 1, 1000), default=10, help="a round (10)")
    add("--gpu-id", type=number(int, -1, 1000), help="-1: the CPU (the first visible GPU, else the CPU)")
    add("--startup", action="store_true", help="measure start-up instead")
    args = parser.parse_args()
    device = choose_device(parser, args.gpu_id)
    precision = choose_precision(parser, args, device)
    if args.startup:
        startup(args, device)
    else:
        table(args, precision, device)


if __name__ == "__main__":
    run_main(main)
