"""What `bash command/check_gpu.sh` runs: graphs, compilation, several processes and resuming end as plain runs do.

Without a GPU it runs what a CPU can: plain runs for those with graphs, gloo for NCCL.
"""

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from argparse import Namespace
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).parent.parent))

import student_v0
import teacher
import utils
from benchmarks.throughput import ROOT, WARM_UP, Side, made, our_step, plain_step, seconds
from engine.compile import setup_backend
from engine.run import read_json
from models import model_dict

CUDA = torch.cuda.is_available()
SIZE = "--train-limit 528 --val-limit 1100" if CUDA else "--train-limit 136 --val-limit 100 --gpu-id -1"  # odd batches
QUICK = f"--dataset synthetic {SIZE} --epoch 3 --milestones 2"
METHODS = ["", "--k 64", "--strategy 0 --k 64 --b 64 --w 1000", "--strategy 1 --other-distill SP --ce-weight 1"]
METHODS += ["--strategy 2 --holdout 100", "--score-every 2", *(f"--precision {p}" for p in ("fp32", "tf32", "fp16"))]
PAIRS = "vgg13:MobileNetV2 ResNet50:vgg8 resnet32x4:ShuffleV1 resnet32x4:ShuffleV2 wrn_40_2:wrn_16_2 resnet56:resnet20"
TIMED = "wrn_40_2:wrn_16_2" if CUDA else "resnet8:resnet8"
WAYS = ("plain", "off", False), ("graph", "off", True), ("teacher compiled", "auto", True), ("all compiled", "on", True)
ROUNDING = 0.05  # of weights after a short run; relative, by norm
replays = []


def check(name, function):
    """Print a line: what function() tells, or that it failed. Returns whether it did well."""
    print(f"{name:50} ", end="", flush=True)
    begin, output = time.monotonic(), io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            told = function()
    except (Exception, SystemExit) as e:
        print(f"FAILED ({type(e).__name__}: {e})\n{output.getvalue()}{traceback.format_exc()}")
        return False
    print(f"{told}  [{time.monotonic() - begin:.0f} s]")
    return True


def student_flags(folder, pair):
    """Of a short distillation from an untrained teacher."""
    teacher_arch, student_arch = pair.split(":")
    path = Path(folder, f"teacher_{teacher_arch}.pth")
    torch.save({"state_dict": model_dict[teacher_arch]().state_dict(), "arch": teacher_arch}, path)
    return f"--teacher-path {path} --student-arch {student_arch} --lr 0.01 {QUICK}"


def run(main, flags, folder):
    main([*flags.split(), "--experiments", folder])


def run_two(flags, folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "student_v0.py", *flags.split()]
    subprocess.run([*command, "--experiments", folder], cwd=ROOT, check=True, capture_output=True)


def stopped(flags, folder):
    """A run that gets SIGTERM once it has saved, and then runs to its end."""

    def stop():
        while not list(Path(folder).glob("*/ckpt/*last.pth")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with contextlib.suppress(SystemExit):
        run(student_v0.main, flags, folder)
        raise AssertionError("was not stopped")
    run(student_v0.main, flags, folder)


def compiled(flags, folder):
    run(student_v0.main, f"{flags} --compile on", folder)
    (config,) = Path(folder).glob("*/config.json")
    assert read_json(config)["compile"] == "all", "a network stays as it is"  # or its frozen teacher differed


def numbers(folder, everything):
    """What the run in a folder ended with: its weights, or all but times."""
    saved = torch.load(next(Path(folder).glob("*/ckpt/*last.pth")), weights_only=True)
    rows = [[value for name, value in row.items() if "seconds" not in name] for row in saved["rows"]]
    parts = (saved["optimizer"]["state"], saved["trainer"], rows) if everything else ()
    return [torch.as_tensor(x, dtype=torch.float64).nan_to_num() for x in tree_leaves((saved["state_dict"], *parts))]


def alike(ours, plain, limit=0.0):
    """Two runs, each a function of a folder, end alike: to the bit, or their weights within a limit."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        ours(one), plain(two)
        pairs = list(zip(numbers(one, not limit), numbers(two, not limit), strict=True))
    found = max(((x - y).norm() / y.norm().clamp(min=1e-12)).item() for x, y in pairs)
    assert found <= limit, f"differs by {found:.1e}"
    return f"differs by {found:.1e}"


def graphed(main, flags, limit=0.0):
    """A run that replays graphs ends as one that does not."""
    replays.clear()
    told = alike(partial(run, main, flags), partial(run, main, f"{flags} --compile off"), limit)
    assert replays or not CUDA, "no graph was replayed"
    return f"{told}, {len(replays)} replays"


def exchange(device):
    """What a run over several processes exchanges, of one with itself."""
    backend, options = ("cpu:gloo,cuda:nccl", {"device_id": device}) if CUDA else ("gloo", {})
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, **options)
    values, layer = [None], torch.nn.Linear(8, 8, device=device)
    dist.all_gather_object(values, 5)
    torch.nn.parallel.DistributedDataParallel(layer)(torch.ones(8, device=device)).sum().backward()
    dist.barrier()
    dist.destroy_process_group()
    assert values == [5] and (layer.weight.grad == 1).all()
    return "objects and gradients"


def timed(make, device, *settings):
    """A step in a process of its own."""
    side = Side(make, device, "UNIX", TIMED, *settings)
    side(WARM_UP)
    told = f"{1000 * median(side(100 if CUDA else 1) for _ in range(5)):.3f} ms a step"
    told += f", {side.pool.submit(kernels, *side.step).result()} kernels" if CUDA else ""
    return f"{told}, peak memory {side.end() / 1e6:.0f} MB"


def kernels(make, device, *settings):
    """In that process: how many a step runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        seconds(made(make, device, *settings), 1, device)
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def checks(folder, device, precision):
    """(name, function) of all that can be checked here."""
    flags = student_flags(folder, "resnet8:resnet8")
    fp32, long = f"{flags} --precision fp32", f"{flags} --epoch 8"
    for method in METHODS if CUDA else METHODS[:1]:
        yield f"graph = plain: {method or 'defaults'}", partial(graphed, student_v0.main, f"{flags} {method}")
    yield "graph = plain: teacher.py", partial(graphed, teacher.main, f"--arch resnet8 {QUICK}")
    yield "graph = plain: AT", partial(graphed, student_v0.main, f"{fp32} --other-distill AT", ROUNDING)
    for pair in PAIRS.split() if CUDA else ():
        yield f"graph = plain: {pair}", partial(graphed, student_v0.main, student_flags(folder, pair), ROUNDING)
    plain = partial(run, student_v0.main, f"{fp32} --compile off")
    yield "compiled, teacher frozen = plain", partial(alike, partial(compiled, fp32), plain, ROUNDING)
    yield "stopped, resumed = whole", partial(alike, partial(stopped, long), partial(run, student_v0.main, long))
    yield f"one process, {'NCCL' if CUDA else 'gloo'}", partial(exchange, device)
    if not CUDA or torch.cuda.device_count() > 1:
        two = partial(run_two, fp32 + " --sync-bn" * CUDA)  # without it each norms its own half
        yield "two processes = one", partial(alike, two, plain, ROUNDING if CUDA else 1.0)
    for way, *settings in WAYS if CUDA else WAYS[:1]:
        yield f"{TIMED}, {precision}, {way}", partial(timed, our_step, device, precision, *settings)
    yield f"{TIMED}, fp32, the plain loop", partial(timed, plain_step, device)


def repeatable(*settings, **more):
    """setup_backend(), with kernels that repeat themselves to the bit."""
    setup_backend(*settings, **more)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True


def main():
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS then repeats itself on any stream
    parser = utils.Parser(__doc__)
    device = utils.choose_device(parser, None)
    precision = utils.choose_precision(parser, Namespace(precision="auto"), device)
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}, {torch.cuda.device_count()} GPUs")
    if CUDA:
        print(torch.cuda.get_device_properties(device), *torch.cuda.get_arch_list(), torch.backends.cudnn.version())
    else:
        print("left out without a GPU: graphs, tf32, fp16, NCCL, --sync-bn, the large pairs, kernels")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of stopped(), should its run be over by then
    replay, utils.setup_backend = torch.cuda.CUDAGraph.replay, repeatable
    torch.cuda.CUDAGraph.replay = lambda graph: (replays.append(1), replay(graph))
    with tempfile.TemporaryDirectory() as folder:
        failed = [name for name, function in checks(folder, device, precision) if not check(name, function)]
    print(f"FAILED: {', '.join(failed)}" if failed else "all passed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
