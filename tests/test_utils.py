"""utils.py: flags' types, device and precision, schedule."""

import argparse
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

import dataset
import engine.trainer
import report
import student_v0
import teacher
import utils
from models import model_dict
from utils import (
    Parser,
    autocast,
    choose_device,
    choose_precision,
    hours,
    learning_rate,
    number,
    stop_signals,
)


def test_number():
    convert = number(float, 0, below=1)
    assert convert("0") == 0 and convert("0.5") == 0.5
    for text in ("1", "-0.1", "nan", "inf", "x", ""):
        with pytest.raises(argparse.ArgumentTypeError, match=r"must be a number at least 0 and below 1, not '"):
            convert(text)
    with pytest.raises(argparse.ArgumentTypeError, match="a whole number at least 1"):
        number(int, 1)("2.5")


def test_learning_rate_is_torch_s_multistep():
    args = argparse.Namespace(lr=0.05, gamma=0.1, milestones=[150, 180, 210])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.05)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [150, 180, 210], 0.1)
    for epoch in range(1, 241):
        assert learning_rate(args, epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), epoch
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("flags", ["--epoch 60", "--epoch 150", "--epoch 151", "--epoch 60 --milestones", ""])
def test_a_learning_rate_that_never_drops_is_told(capsys, flags):
    parser = teacher.make_parser()
    utils.check_shared_flags(parser, parser.parse_args(f"--arch vgg8 {flags}".split()))
    assert ("the learning rate never drops" in capsys.readouterr().err) == (flags in ("--epoch 60", "--epoch 150"))


@pytest.mark.parametrize(
    "visible, gpu_id, expected",
    [(0, None, "cpu"), (0, -1, "cpu"), (2, -1, "cpu"), (2, None, "cuda:0"), (2, 1, "cuda:1")],
)
def test_choose_device(monkeypatch, capsys, visible, gpu_id, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch, "ones", lambda *_, device: torch.zeros(1))
    assert str(choose_device(Parser("x"), gpu_id)) == expected
    assert capsys.readouterr().out.count("\n") == (1 if (visible, gpu_id) == (0, None) else 0)


@pytest.mark.parametrize("gpu_id, expected", [(None, "cuda:1"), (-1, "cpu"), (0, None), (1, None)])
def test_several_processes_take_a_gpu_each(monkeypatch, gpu_id, expected):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch, "ones", lambda *_, device: torch.zeros(1))
    if expected:
        assert str(choose_device(Parser("x"), gpu_id)) == expected
        return
    with pytest.raises(SystemExit):
        choose_device(Parser("x"), gpu_id)


@pytest.mark.parametrize("rank, expected", [(1, "cuda:1"), (5, "cuda:1"), (6, "cuda:2")])
def test_without_a_local_rank_gpus_are_taken_in_turn(monkeypatch, rank, expected):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch, "ones", lambda *_, device: torch.zeros(1))
    assert str(choose_device(Parser("x"), None)) == expected


def test_flags_reach_what_they_set(monkeypatch):
    """--precision and --compile, up to the settings of the process."""
    prepared = []
    monkeypatch.setattr(utils, "choose_device", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(utils, "setup_backend", lambda device, tf32, graphs: prepared.append((tf32, graphs)))
    for flags in ("--precision tf32", "--precision fp32 --compile off", "--precision bf16"):
        args = teacher.make_parser().parse_args(["--arch", "vgg8", *flags.split()])
        device, precision = utils.set_up(Parser("x"), args)
        assert (autocast(device, precision) is nullcontext) == (precision != "bf16")
    assert prepared == [(True, True), (False, False), (False, True)]
    monkeypatch.setattr(utils.distributed, "run_on_rank0", lambda function: "rank 0's")
    assert utils.set_up(Parser("x"), args)[1] == "rank 0's"


def test_peak_memory_is_of_the_past():
    begin = "import torch, utils; cpu = torch.device('cpu'); "
    peaks = []
    for code in ("", "x = torch.ones(10**8); del x; "):
        command = [sys.executable, "-c", f"{begin}{code}print(utils.peak_memory(cpu))"]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout))
    assert 3.5e8 < peaks[1] - peaks[0] < 4.5e8


def test_peak_memory_of_a_gpu_is_of_all_epochs_but_the_first(monkeypatch):
    """And of the first where there is no other."""
    done = []
    monkeypatch.setattr(engine.trainer, "reset_peak_memory", lambda device: done.append(len(run.rows)))
    for epochs, expected in (("1", []), ("3", [1])):
        done.clear()
        run = SimpleNamespace(rows=[], restore=lambda trainer: None, startup_seconds=1.0, best={"val/cls_acc": 0.0})
        run.end_epoch = lambda trainer, row, run=run: run.rows.append(row)
        args = teacher.make_parser().parse_args(["--arch", "resnet8", "--epoch", epochs, "--compile", "off"])
        data = dataset.load("synthetic", None, "cpu", 64, 10)
        engine.trainer.train(run, teacher.TeacherTrainer(model_dict["resnet8"](), args, data, nullcontext))
        assert len(run.rows) == int(epochs) and done == expected


@pytest.mark.parametrize("visible, gpu_id", [(0, 0), (2, 2)])
def test_missing_gpu(monkeypatch, capsys, visible, gpu_id):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    with pytest.raises(SystemExit) as exit:
        choose_device(Parser("x"), gpu_id)
    err = capsys.readouterr().err
    assert exit.value.code == 2 and f"there is no GPU {gpu_id}" in err and "leaving it out takes" in err


@pytest.mark.parametrize(
    "error, told",
    [(RuntimeError("The NVIDIA driver on your system is too old\nmore"), "too old"),
     (torch.cuda.DeferredCudaCallError("CUDA call failed lazily\nmore"), "lazily"),
     (getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: no kernel image is available\nmore"),  # since 2.8
      "Tesla V100 is an sm_70, this torch 2.x has kernels for sm_75 sm_80")],
)  # fmt: skip
def test_a_gpu_that_fails_is_said_in_one_line(monkeypatch, capsys, error, told):
    class Tensor:
        def item(self):  # where what a kernel met is raised
            raise error

    monkeypatch.setattr(torch, "__version__", "2.x")
    monkeypatch.setattr(torch, "ones", lambda *_, device: Tensor())
    cuda = {"device_count": 1, "set_device": None, "get_device_name": "Tesla V100", "get_device_capability": (7, 0),
            "get_arch_list": ["sm_75", "sm_80"]}  # fmt: skip
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    with pytest.raises(SystemExit):
        choose_device(Parser("x"), None)
    err = capsys.readouterr().err
    assert told in err and "-1 is the CPU" in err and err.count("\n") == 1


def test_precision(monkeypatch, capsys):
    cpu = torch.device("cpu")

    def chosen(precision, device=cpu):
        return choose_precision(Parser("x"), argparse.Namespace(precision=precision), device)

    assert chosen("bf16") == "bf16" and chosen("fp32") == "fp32"
    for speedup, expected, told in ((2.4, "bf16", "bf16 is faster here"), (0.5, "fp32", "bf16 is not faster here")):
        monkeypatch.setattr(utils, "bf16_speedup", lambda speedup=speedup: speedup)
        capsys.readouterr()
        assert chosen("auto") == expected
        assert f"precision: {expected} ({told};" in capsys.readouterr().out
    cuda = torch.device("cuda")
    assert chosen("tf32", cuda) == "tf32" and chosen("fp32", cuda) == "fp32"
    for capability, expected in (((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 0), "fp16"), ((6, 1), "fp32")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        assert chosen("auto", cuda) == expected
    for of_gpus in ("tf32", "fp16"):
        with pytest.raises(SystemExit):
            chosen(of_gpus)
        assert f"--precision: {of_gpus} is of GPUs" in capsys.readouterr().err
    model, images = model_dict["resnet8"](), torch.zeros(2, 3, 32, 32)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        with autocast(cpu, precision)():
            assert model(images).dtype == dtype


def test_bf16_is_measured_against_fp32(monkeypatch):
    """On a clock that only products move: what else takes time, or a first slow product, does not count."""
    clock, products = [0.0], []

    def product(a, b):
        products.append((a.dtype, torch.get_num_threads()))
        slow = 9 * (len(products) % 3 == 1)
        clock[0] += slow + (1 if a.dtype == torch.bfloat16 else 3)

    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr(utils.time, "thread_time", lambda: clock[0])
    try:
        torch.set_num_threads(2)
        assert utils.bf16_speedup() == 3
        assert set(products) == {(torch.float32, 1), (torch.bfloat16, 1)} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_process_seconds():
    """In a process of its own, between what this one sees of its beginning and end."""
    code = "import time; time.sleep(0.5); import utils; print(utils.process_seconds())"
    start = time.monotonic()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout
    assert 0.5 < float(out) < time.monotonic() - start + 0.05


def test_paths_of_flags_know_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    teacher_flags = "--arch resnet8 --experiments=~/exp --data-root=~/data".split()
    args = teacher.make_parser().parse_args(teacher_flags)
    assert (args.experiments, args.data_root) == (tmp_path / "exp", tmp_path / "data")
    args = student_v0.make_parser().parse_args(["--teacher-path=~/t", "--experiments=~no-such-user/x"])
    assert (args.teacher_path, args.experiments) == (tmp_path / "t", Path("~no-such-user/x"))
    args = report.make_parser().parse_args(["~/a", "~/b", "--out=~/out", "--data-root=~/data"])
    assert args.folders == [tmp_path / "a", tmp_path / "b"]
    assert (args.out, args.data_root) == (tmp_path / "out", tmp_path / "data")


LISTENED_TO = """
import os, sys, utils
def main():
    for i in range(20_000):  # more than a pipe holds
        print("±", i)
    print("to stderr", file=sys.stderr)
    print(sys.stderr.isatty(), end="")
    open("done", "w").close()
utils.run_main(main)
"""


@pytest.mark.parametrize("streams", [">&-", "2>&-", ">&- 2>&-", "| head -n 1", "2>&1 | true", ">/dev/full", "| cat"])
def test_a_program_goes_on_whoever_listens(tmp_path, streams):
    command = f'"$0" -c "$1" {streams}; exit ${{PIPESTATUS[0]}}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(
        ["bash", "-c", command, sys.executable, LISTENED_TO],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0 and (tmp_path / "done").exists(), result.stderr
    assert result.stderr == ("" if "2>" in streams else "to stderr\n")
    if streams == "| cat":
        assert result.stdout.startswith("? 0\n? 1\n") and result.stdout.endswith("\n? 19999\nFalse")


def test_which_signals_stop():
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert stop_signals() == [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        assert stop_signals() == [signal.SIGTERM, signal.SIGINT]
    finally:
        signal.signal(signal.SIGHUP, before)
    with ThreadPoolExecutor() as pool:
        assert pool.submit(stop_signals).result() == []


def test_hours():
    assert hours(3725.4) == "1:02:05"
