"""engine/compile.py: that what is fast computes the same; graphs by a stand-in for CUDA's."""

import copy
import json
import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from conftest import QUICK, ROOT
from faults import differences, flatten, outcome
from test_programs import KD, distil, distiller_of
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dataset
import engine.compile
import teacher
from benchmarks.plain import PlainDistiller
from engine.compile import CUDAGraphed, freeze, resolve_compile
from engine.trainer import PartialEpoch, TrainStep
from models import load_model, model_dict
from utils import autocast

CPU = torch.device("cpu")
SLOWLY = "--lr 0.005"  # the faster a network learns, the faster rounding grows


class Recorder(TorchDispatchMode):
    """What a CUDA graph does, on a CPU: notes each operation with the tensors that it got and gave, and runs them all
    again on those same tensors, numbers as they were. Unlike a graph it also runs while recording, so the first replay
    is spared."""

    def __init__(self):
        super().__init__()
        self.operations, self.replays = [], 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.operations.append((operation, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for operation, args, kwargs, result in self.operations if self.replays > 1 else ():
            for old, new in zip(tree_leaves(result), tree_leaves(operation(*args, **kwargs))):
                if torch.is_tensor(old) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def graphs(monkeypatch):
    """CUDAGraphed behaves as on CUDA, with a Recorder for the graph. Gives the list of those made."""
    made = []

    class Stream:
        def wait_stream(self, other):
            pass

    def graph():
        made.append(Recorder())
        return made[-1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda recorder, stream: recorder)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(CUDAGraphed, "enabled", True)
    return made


def test_replay(graphs, monkeypatch):
    """State follows the inputs; numbers are those of the recording until it is forgotten."""
    total, product, factor, streams, stream = torch.zeros(()), torch.zeros(3), 2, [], torch.cuda.Stream
    monkeypatch.setattr(torch.cuda, "Stream", lambda: streams.append(stream()) or streams[-1])

    def function(x, y):
        total.add_(x.sum())
        product[: len(x)] = x * y * factor

    replay, expected = CUDAGraphed(function, 3), 0
    for i in range(8):
        replay(torch.full((3,), float(i)), torch.tensor(2.0))
        expected += 3 * i
        assert total == expected and product.tolist() == [4 * i] * 3
    (graph,) = graphs
    assert graph.replays == 8 - CUDAGraphed.WARM_UP
    replay(torch.ones(2), torch.tensor(1.0))
    assert product.tolist() == [2, 2, 28] and graph.replays == 5
    factor = 10
    replay(torch.ones(3), torch.tensor(1.0))
    assert product.tolist() == [2] * 3
    for _ in range(2):  # on the stream as before: libraries keep memory for each
        replay.reset()
        for i in range(5):
            replay(torch.full((3,), float(i)), torch.tensor(1.0))
            assert product.tolist() == [10 * i] * 3
    assert len(graphs) == 3 and len(streams) == 1


@pytest.mark.parametrize("place", ["begin", "inside", "end"])
def test_a_step_that_cannot_be_captured_is_run_plainly(graphs, monkeypatch, capsys, place):
    """Once, from what the step before left; on the stream that was current; and so are all later ones."""
    stream, streams, totals = torch.cuda.current_stream(), [], torch.zeros(2)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    capturing = []

    class Capture:
        """Like torch.cuda.graph: nothing is run within, and its own stream is left only where the end succeeds."""

        def __init__(self, graph, stream):
            self.stream = stream

        def __enter__(self):
            streams.append(self.stream)
            if place == "begin":
                raise RuntimeError("begin\nmore")
            capturing.append(True)

        def __exit__(self, *_):
            capturing.clear()
            raise RuntimeError("end\nmore")

    def function(x):
        if capturing and place == "inside":
            raise RuntimeError("inside\nmore")
        if not capturing:
            totals.add_(x)
            assert sys.exc_info()[0] is None  # nothing holds the failed capture's memory

    monkeypatch.setattr(torch.cuda, "graph", Capture)
    first, second = CUDAGraphed(function, 2), CUDAGraphed(function, 2)
    for i in range(1, 7):
        first(torch.full((2,), float(i)))
        assert totals.sum() == i * (i + 1)
        assert not streams if i <= CUDAGraphed.WARM_UP else streams[1:] == [stream]
    for _ in range(5):
        second(torch.zeros(2))
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"CUDA graphs: off, a step could not be captured ({'begin' if place == 'begin' else 'end'})"
    assert not CUDAGraphed.enabled and len(graphs) == 1


@pytest.fixture
def backends():
    """Leaves torch's settings as they were."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, CUDAGraphed.enabled
    yield
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, CUDAGraphed.enabled = before


@pytest.mark.parametrize(
    "device, count, graphs, tf32, allowed",
    [("cuda", 1, True, True, True), ("cuda", 1, False, False, False), ("cuda", 2, True, False, False),
     ("cpu", 1, True, False, False)],
)  # fmt: skip
def test_what_a_process_is_prepared_for(monkeypatch, backends, device, count, graphs, tf32, allowed):
    monkeypatch.setenv("WORLD_SIZE", str(count))
    engine.compile.setup_backend(torch.device(device), tf32, graphs)
    assert CUDAGraphed.enabled == allowed
    if device == "cuda":
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == tf32
        assert torch.backends.cudnn.benchmark


@pytest.mark.parametrize("flags", ["", KD, "--other-distill AT --ce-weight 1", "--score-every 2"])
def test_a_replayed_distillation_is_the_plain_one(trained_teacher, tmp_path, graphs, monkeypatch, flags):
    """All that a run leaves is the same to the bit, with a milestone and odd last batches."""
    quick = ("--train-limit 528 --val-limit 1100 --epoch 3 --milestones 2", flags)
    replayed = distil(trained_teacher, tmp_path / "replayed", *quick)
    # training was recorded in epoch 1 and for the lower rate in epoch 3 (in each where every other scores), validation
    # in epoch 2; each warmed up first
    counts = [8 - 3, 8 - 3, 6 - 3, 8 - 3] if "score" in flags else [16 - 3, 6 - 3, 8 - 3]
    assert [graph.replays for graph in graphs] == counts
    monkeypatch.undo()
    plain = distil(trained_teacher, tmp_path / "plain", *quick)
    assert outcome(replayed) and not differences(outcome(replayed), outcome(plain))


def test_a_replayed_teacher_run_is_the_plain_one(tmp_path, graphs, monkeypatch):
    flags = f"--arch resnet8 {QUICK} --train-limit 528 --experiments".split()
    teacher.main([*flags, str(tmp_path / "replayed")])
    assert [graph.replays for graph in graphs] == [8 - 3, 8 - 3]
    monkeypatch.undo()
    teacher.main([*flags, str(tmp_path / "plain")])
    ours, theirs = (
        torch.load(next((tmp_path / name).glob("*/ckpt/last.pth")), weights_only=True) for name in ("replayed", "plain")
    )
    for part in ("state_dict", "optimizer", "rows"):
        names = differences(flatten(ours[part]), flatten(theirs[part]))
        assert not [name for name in names if "seconds" not in name]


def losses(trained_teacher, precision, compilation, compiled, steps=20):
    """The losses of the first steps of UNIX, for which a data set of so many batches is distilled.

    compiled: which of teacher, scoring and training should be.
    """
    torch.manual_seed(0)
    teacher_model = load_model(trained_teacher / "ckpt" / "best.pth")[0].to(memory_format=torch.channels_last)
    student = model_dict["resnet8"]().to(memory_format=torch.channels_last)
    cast = autocast(CPU, precision)
    flags = f"{SLOWLY} --epoch 1000 --compile {compilation}"
    distiller = distiller_of(student, teacher_model, flags, images=64 * steps, cast=cast)
    plain = {"teacher": distiller.teacher is teacher_model, "scoring": distiller.student is student}
    plain["training"] = distiller.ddp_student is student
    assert {name for name in plain if not plain[name]} == compiled
    graphs = counters["stats"]["unique_graphs"]
    values = torch.stack([distiller.step(*batch)["train/loss"][0] for batch in distiller.batches(1)])
    assert counters["stats"]["unique_graphs"] == graphs  # all of it before the first step, whose seconds count
    return values


def test_fast_and_plain_give_the_same_losses(trained_teacher):
    forward, all_three = {"teacher", "scoring"}, {"teacher", "scoring", "training"}
    plain = losses(trained_teacher, "fp32", "off", set())
    assert len(set(plain.tolist())) == 20
    for compilation, compiled in (("auto", forward), ("on", all_three)):
        fast = losses(trained_teacher, "fp32", compilation, compiled)
        torch.testing.assert_close(fast[0], plain[0], rtol=3e-5, atol=0)
        torch.testing.assert_close(fast, plain, rtol=1e-3, atol=0)
    halved = losses(trained_teacher, "bf16", "on", all_three)
    torch.testing.assert_close(halved[0], plain[0], rtol=0.05, atol=0)
    assert not torch.equal(halved, plain)


def test_fp16_scales_its_loss(trained_teacher, graphs):
    """A step that overflows changes nothing but the scale; the scale grows within a graph, and a resumed run has it."""
    CUDAGraphed.enabled = False
    plain, resumed, again, graphed = (small_step(trained_teacher) for _ in range(4))
    weights, batches = weights_of(plain), plain.trainer.batches(1)
    plain(*batches[0])
    assert plain.trainer.scaler.get_scale() == 2.0**27 and torch.equal(weights_of(plain), weights)
    assert not any(state["momentum_buffer"].any() for state in plain.trainer.optimizer.state.values())
    scales = [plain(*batch) or plain.trainer.scaler.get_scale() for batch in batches[1:]]
    assert scales[0] == 2.0**26 and sorted(scales, reverse=True) != scales

    for batch in batches[:8]:
        resumed(*batch)
    for name in ("model", "optimizer"):
        getattr(again.trainer, name).load_state_dict(copy.deepcopy(getattr(resumed.trainer, name).state_dict()))
    again.trainer.load_state(resumed.trainer.state())
    for batch in batches[8:]:
        again(*batch)
    CUDAGraphed.enabled = True
    for batch in batches:
        graphed(*batch)
    assert graphs[-1].replays == len(batches) - CUDAGraphed.WARM_UP
    for other in (again, graphed):
        assert other.trainer.scaler.state_dict() == plain.trainer.scaler.state_dict()
        assert torch.equal(weights_of(other), weights_of(plain))

    CUDAGraphed.enabled = False
    halves, whole = small_step(trained_teacher, scale=2.0**10), small_step(trained_teacher, "fp32")
    for step in (halves, whole):
        step(*batches[0])
    moved = weights_of(whole) - weights
    assert 0 < (weights_of(halves) - weights - moved).norm() < 0.05 * moved.norm()


def small_step(trained_teacher, precision="fp16", scale=2.0**28):
    """The TrainStep of a distillation by small steps, in fp16 with a scale too large at first that grows often."""
    torch.manual_seed(0)
    teacher_model, _ = load_model(trained_teacher / "ckpt" / "best.pth")
    flags = f"{SLOWLY} --batch-size 4 --k 3 --b 2 --compile off"
    student, cast = model_dict["resnet8"](), autocast(CPU, precision)
    step = TrainStep(distiller_of(student, teacher_model, flags, images=4 * 16, cast=cast))
    if precision == "fp16":
        assert step.trainer.scaler.is_enabled()
        step.trainer.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
    assert step.trainer.scaler.is_enabled() == (precision == "fp16")
    step.begin_epoch(1, PartialEpoch())
    return step


def weights_of(step):
    return torch.cat([weights.detach().flatten() for weights in step.trainer.model.parameters()])


def test_the_plain_loop_gives_the_same_losses(trained_teacher):
    """benchmarks/plain.py, fed the same batches: what the benchmark compares computes the same."""
    torch.manual_seed(0)
    teacher_model, _ = load_model(trained_teacher / "ckpt" / "best.pth")
    student = model_dict["resnet8"]()
    plain = PlainDistiller(
        copy.deepcopy(student), copy.deepcopy(teacher_model), distiller_of(student, teacher_model, SLOWLY).args
    )
    channels_last = {"memory_format": torch.channels_last}
    distiller = distiller_of(student.to(**channels_last), teacher_model.to(**channels_last), SLOWLY, images=64 * 20)
    for i, batch in enumerate(distiller.batches(1)):
        images, labels, _ = distiller.data.train.batch(*batch[:3])
        plain.step(images.contiguous(), labels, *batch[3:])
        ours = distiller.step(*batch)
        tolerance = 3e-5 if i == 0 else 1e-3
        assert ours["train/loss"][0].item() == pytest.approx(plain.statistics["loss"][i], rel=tolerance)
        entropy = ours["train/s_all_entropy"].mean().item()
        assert entropy == pytest.approx(plain.statistics["uncertainty"][i], rel=tolerance)


def test_a_frozen_teacher_that_differs_is_not_used(trained_teacher, monkeypatch, capsys):
    teacher_model, _ = load_model(trained_teacher / "ckpt" / "best.pth")
    images = torch.randn(8, 3, 32, 32)
    monkeypatch.setattr(
        torch, "compile", lambda network, dynamic: lambda x, is_feat: (None, network(x) * torch.linspace(0.8, 1, 100))
    )
    assert freeze(teacher_model, images, nullcontext) is teacher_model
    assert "stays as it is, frozen it differs by" in capsys.readouterr().out


def compiler(monkeypatch, fails=()):
    """torch.compile is a stand-in that changes nothing, but for what fails: of "frozen", "forward" and "backward"."""

    def fail(*_):
        raise SystemError("the compiler is gone\nand more")

    def compile(network, dynamic):
        def compiled(images, **options):
            outputs = network(images, **options)
            if ("forward" if network.training else "frozen") in fails:
                fail()
            if "backward" in fails and torch.is_grad_enabled():
                tree_leaves(outputs)[-1].register_hook(fail)
            return outputs

        return compiled

    monkeypatch.setattr(torch, "compile", compile)


@pytest.mark.parametrize(
    "fails, compiled, lines",
    [("", "all", 0), ("frozen", "none", 1), ("forward", "forward", 2), ("backward", "forward", 1)],
)
def test_compiling_leaves_no_trace_and_its_failure_is_one_line(
    trained_teacher, tmp_path, monkeypatch, capsys, fails, compiled, lines
):
    """A run whose compiled networks are the plain ones, or fail to compile, ends in the same bits as the plain run."""
    flags = "--epoch 1 --milestones --train-limit 128"
    plain = outcome(distil(trained_teacher, tmp_path / "plain", flags))
    capsys.readouterr()
    compiler(monkeypatch, fails)
    folder = distil(trained_teacher, tmp_path / "compiled", flags, "--compile on")
    assert plain and {name.rpartition("/")[2] for name in differences(outcome(folder), plain)} == {"compile"}
    assert json.loads((folder / "config.json").read_text())["compile"] == compiled
    told = [line for line in capsys.readouterr().out.splitlines() if "compil" in line.replace(str(folder), "")]
    assert told == ["compilation: ResNet stays as it is, it does not compile here (the compiler is gone)"] * lines


@pytest.mark.parametrize("fails, compiled", [("", "all"), ("forward", "none"), ("backward", "none")])
def test_a_teacher_that_does_not_compile(monkeypatch, fails, compiled):
    compiler(monkeypatch, fails)
    args = teacher.make_parser().parse_args("--arch resnet8 --compile on".split())
    model, data = model_dict["resnet8"](), dataset.load("synthetic", None, "cpu", 64, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = teacher.TeacherTrainer(model, args, data, nullcontext)
    assert trainer.compile == compiled and (trainer.ddp_model is model) == (compiled == "none")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(weights.grad is None for weights in model.parameters())


def test_resolve_compile():
    for device, pays in ((CPU, 10_000), (torch.device("cuda"), 50_000)):
        assert resolve_compile("off", device, pays) == resolve_compile("auto", device, pays - 1) == "none"
        assert resolve_compile("auto", device, pays) == "forward"
        assert resolve_compile("on", device, pays - 1) == "all"


def test_without_a_compiler_it_runs_on(tmp_path):
    environment = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, ROOT / "teacher.py", "--arch", "resnet8", *QUICK.split(), "--compile", "on"]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("compilation:")]
    assert line.startswith("compilation: ResNet stays as it is, it does not compile here (")


@pytest.mark.parametrize("arch", ["MobileNetV2", "ShuffleV2"])
def test_depthwise_gradients_are_computed_in_fp32_on_a_cpu(arch):
    """Against the same network wholly in bf16: its outputs keep that precision, and its gradients are as good."""
    images = torch.randn(4, 3, 32, 32)
    torch.manual_seed(0)
    model = model_dict[arch]().train()
    seen = []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.groups == module.in_channels:
            module.register_forward_hook(lambda _, inputs, output: seen.append((output.dtype, output.grad_fn.name())))
    with autocast(CPU, "bf16")():
        model(images).float().sum().backward()
    assert len(seen) > 10 and {dtype for dtype, _ in seen} == {torch.bfloat16}
    assert {name for _, name in seen} == {"ToCopyBackward0"}  # the cast back from fp32
