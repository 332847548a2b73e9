"""engine/compile.py without a GPU: the in-place contract, and torch.compile. See test_gpu.py for graphs."""

import pytest
import torch
from small_runs import KD, TINY, differences, distil, distiller_of, outcome

import dataset
import teacher
from engine.compile import compile_network
from engine.device import DeviceError, Precision
from engine.meters import Evaluator, Meters
from models import load_model, model_dict

FP32 = Precision("fp32", "cpu")
META = torch.device("meta")


def to_meta(*owners):
    """Move all tensors and networks that are attributes of these objects to the meta device, where no tensor has
    values, so that whatever would read one on the host raises."""
    for owner in owners:
        for name, value in vars(owner).items():
            if isinstance(value, (torch.Tensor, torch.nn.Module)):
                setattr(owner, name, value.to(META))


@pytest.mark.parametrize(
    "flags",
    ["", KD, "--strategy 1", "--strategy 2", "--other-distill AT", "--other-distill SP", "--ce-weight 1", "teacher"],
)
def test_a_step_never_asks_the_device_for_a_value(trained_teacher, flags):
    if flags == "teacher":
        args = teacher.make_parser().parse_args(["--arch", "resnet8"])
        data = dataset.load("synthetic", None, torch.device("cpu"), 64, 1)
        trainer = teacher.TeacherTrainer(model_dict["resnet8"]().train(), args, data, FP32)
    else:
        trainer = distiller_of(model_dict["resnet8"](), load_model(trained_teacher / "ckpt" / "best.pth")[0], flags)
    (batch,) = trainer.draw_epoch(1)
    to_meta(trainer, trainer.data.train)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), 0.05)  # the fused one knows no such device
    trainer.meters = Meters(META)
    trainer.metered_step(*(tensor.to(META) for tensor in batch))
    assert trainer.meters.buffers and all(buffer.device == META for buffer in trainer.meters.buffers.values())


def test_validation_never_asks_either():
    split = dataset.load("synthetic", None, torch.device("cpu"), 1, 64).val
    evaluator = Evaluator(model_dict["resnet8"](), split, FP32)
    evaluator.meters = Meters(META)
    to_meta(evaluator, split)
    with torch.no_grad():
        evaluator.add_batch(split.images, split.labels)
    assert len(evaluator.meters.buffers) == 2


@pytest.mark.parametrize("training", [True, False])
def test_a_compiled_network_computes_the_same(training):
    """The teacher with its weights frozen, and the scoring, which moves the statistics of batch norm."""
    torch.manual_seed(0)
    plain = model_dict["resnet8"]().to(memory_format=torch.channels_last).train(training)
    network = model_dict["resnet8"]().to(memory_format=torch.channels_last).train(training)
    network.load_state_dict(plain.state_dict())
    images = torch.randn(8, 3, 32, 32)
    compiled = compile_network(network, images, FP32, frozen=not training)
    torch.testing.assert_close(network.state_dict(), plain.state_dict(), rtol=0, atol=0)  # compiling leaves no trace
    for batch in (torch.randn(8, 3, 32, 32), torch.randn(5, 3, 32, 32)):
        with torch.no_grad():
            features, logits = compiled(batch, is_feat=True)
            expected_features, expected_logits = plain(batch, is_feat=True)
        torch.testing.assert_close(logits, expected_logits, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(features[-1], expected_features[-1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(network.state_dict(), plain.state_dict(), rtol=1e-3, atol=1e-4)


def test_a_network_that_does_not_compile_is_told_in_one_line(monkeypatch):
    def fail(*_, **__):
        raise SystemError("the compiler is gone\nand more")

    monkeypatch.setattr(torch, "compile", lambda network, **options: fail)
    with pytest.raises(DeviceError) as told:
        compile_network(model_dict["resnet8"](), torch.zeros(2, 3, 32, 32), FP32)
    assert str(told.value) == "ResNet does not compile here (the compiler is gone)"


def test_what_is_compiled(trained_teacher, tmp_path, monkeypatch):
    """The teacher for k images, frozen, and the scoring for the whole batch. Where compiling changes nothing, the run
    ends in the same bits; its folder has the same name."""
    calls = []

    def compile_stub(network, dynamic, options):
        def compiled(images, **more):
            calls.append((len(images), network.training, options["freezing"]))
            return network(images, **more)

        return compiled

    monkeypatch.setattr(torch, "compile", compile_stub)
    plain = distil(trained_teacher, tmp_path / "plain", TINY)
    assert not calls
    compiled = distil(trained_teacher, tmp_path / "compiled", TINY, "--compile")
    assert set(calls) == {(48, False, True), (64, True, False)} and len(calls) == 2 * (1 + 4)
    assert compiled.name == plain.name
    assert all(name.endswith("/compile") for name in differences(outcome(compiled), outcome(plain)))
