"""The 25 networks against their contract, and reading weights."""

import json
import math

import pytest
import torch
from conftest import SHARED

from cost import forward_macs
from models import CheckpointError, load_model, model_dict, read_checkpoint

SIZES = {  # parameters, and millions of multiply-accumulates of a 32x32 image
    "resnet8": (83892, 12.507),
    "resnet14": (181108, 26.663),
    "resnet20": (278324, 40.819),
    "resnet32": (472756, 69.13),
    "resnet44": (667188, 97.442),
    "resnet56": (861620, 125.754),
    "resnet110": (1736564, 253.156),
    "resnet8x4": (1233540, 177.071),
    "resnet14x4": (2783620, 403.564),
    "resnet32x4": (7433860, 1083.041),
    "ResNet18": (11220132, 555.469),
    "ResNet34": (21328292, 1159.449),
    "ResNet50": (23705252, 1298.014),
    "wrn_16_1": (180916, 26.663),
    "wrn_16_2": (703284, 101.118),
    "wrn_40_1": (569780, 83.286),
    "wrn_40_2": (2255156, 327.611),
    "vgg8": (3965028, 96.193),
    "vgg11": (9277284, 209.439),
    "vgg13": (9462180, 284.936),
    "vgg16": (14774436, 398.182),
    "vgg19": (20086692, 511.429),
    "MobileNetV2": (812836, 6.524),
    "ShuffleV1": (949258, 38.691),
    "ShuffleV2": (1355528, 44.504),
}
NAMES = list(SIZES)


def images(n=2, size=32):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_all_25_are_there():
    assert sorted(model_dict) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_size(name):
    model = model_dict[name](num_classes=100)
    assert (sum(p.numel() for p in model.parameters()), round(forward_macs(name) / 1e6, 3)) == SIZES[name]


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    path = SHARED / "spec" / "models.json"
    if not path.exists():
        pytest.skip("the full contract is not part of the repository")
    contract = json.loads(path.read_text())[name]
    model = model_dict[name]().eval()
    state = [f"{key} {'x'.join(map(str, tensor.shape)) or 'scalar'}" for key, tensor in model.state_dict().items()]
    assert state == contract["state"]
    features, _ = model(images(), is_feat=True)
    assert [list(feature.shape[1:]) for feature in features] == contract["features"]


@pytest.mark.parametrize("name", NAMES)
def test_both_modes_give_the_same_logits_and_gradients_reach_everything(name):
    torch.manual_seed(0)
    model = model_dict[name](num_classes=7)
    model.eval()
    with torch.no_grad():
        features, logits = model(images(), is_feat=True)
        assert logits.shape == (2, 7) and torch.equal(logits, model(images()))
    assert features[-1].ndim == 2 and all(feature.ndim == 4 for feature in features[:-1])
    torch.testing.assert_close(logits, getattr(model, model.classifier_name)(features[-1]))
    if not name.startswith("wrn"):
        activated = features[:1] if name == "MobileNetV2" else features
        assert all(feature.min() >= 0 for feature in activated)
    else:
        assert all(feature.min() < 0 for feature in features[:-1]) and features[-1].min() >= 0

    model.train()
    model(images(4)).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    # a bias before batch norm has none by construction; every matrix and kernel must have some
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1)


@pytest.mark.parametrize("name", ["wrn_40_2", "vgg13", "MobileNetV2"])
def test_normal_initial_weights(name):
    torch.manual_seed(0)
    model = model_dict[name]()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 10_000:
            kh, kw = module.kernel_size
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / (kh * kw * module.out_channels)), rel=0.05)
            assert module.bias is None or not module.bias.any()
    linear = getattr(model, model.classifier_name)
    assert not linear.bias.any()
    if name != "wrn_40_2":
        assert linear.weight.std().item() == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("name", ["resnet32x4", "ResNet18"])
def test_kaiming_initial_weights(name):
    torch.manual_seed(0)
    for module in model_dict[name]().modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 10_000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)


def test_vgg_pools_once_more_at_64():
    features, _ = model_dict["vgg8"]().eval()(images(size=64), is_feat=True)
    assert [feature.shape[-1] for feature in features[:-1]] == [64, 32, 16, 8, 4]


# ---------------------------------------------------------------------------------------------------- checkpoints


def save(path, content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize("wrap", ["state_dict", "model", "module", "bare"])
def test_released_weights_load(tmp_path, wrap):
    original = model_dict["resnet8"](num_classes=10).eval()
    state = original.state_dict()
    if wrap == "module":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    content = state if wrap == "bare" else {"model" if wrap == "module" else wrap: state, "epoch": 240}
    model, checkpoint = load_model(save(tmp_path / "best.pth", content), "resnet8")
    assert torch.equal(model(images()), original(images())) and not model.training
    assert checkpoint["arch"] == "resnet8" and checkpoint["num_classes"] == 10
    assert wrap == "bare" or checkpoint["epoch"] == 240


def test_what_the_checkpoint_says_comes_before_the_caller(tmp_path):
    path = save(tmp_path / "x.pth", {"state_dict": model_dict["resnet8"]().state_dict(), "arch": "resnet8"})
    assert load_model(path, "vgg8")[1]["arch"] == "resnet8"


class Evil:
    def __reduce__(self):
        return eval, ("__import__('pathlib').Path('harmed').touch()",)


def test_a_checkpoint_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "evil.pth", {"state_dict": Evil()})
    with pytest.raises(CheckpointError, match="run code"):
        read_checkpoint(path)
    assert not (tmp_path / "harmed").exists()


def test_unusable_checkpoints(tmp_path):
    state = model_dict["resnet8"]().state_dict()
    good = save(tmp_path / "good.pth", {"state_dict": state}).read_bytes()
    cases = {
        "missing.pth": (None, "no such file"),
        "truncated.pth": (good[: len(good) // 2], "damaged"),
        "text.pth": (b"hello", "not a checkpoint"),
        "empty.pth": (b"", "not a checkpoint"),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as error:
            read_checkpoint(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)
    for content in ([1, 2], {"epoch": 3}, {"state_dict": {}}, {"state_dict": {"a": 1}}):
        with pytest.raises(CheckpointError, match="no weights"):
            read_checkpoint(save(tmp_path / "other.pth", content))


@pytest.mark.parametrize(
    "arch, message",
    [
        ("resnet20", "without layer1"),
        ("vgg8", "without block0"),
        (None, "name it"),
        ("resnet9", "resnet9"),
    ],
)
def test_weights_of_another_network(tmp_path, arch, message):
    path = save(tmp_path / "best.pth", {"state_dict": model_dict["resnet8"]().state_dict()})
    with pytest.raises(CheckpointError, match=message):
        load_model(path, arch)


def test_weights_of_another_width(tmp_path):
    state = model_dict["vgg8"]().state_dict()
    state["block1.0.weight"] = torch.zeros(96, 64, 3, 3)
    with pytest.raises(CheckpointError, match=r"another shape of block1\.0\.weight"):
        load_model(save(tmp_path / "best.pth", {"state_dict": state}), "vgg8")


def test_foreign_entries_are_not_ignored(tmp_path):
    path = save(tmp_path / "best.pth", {"model": model_dict["resnet20"]().state_dict()})
    with pytest.raises(CheckpointError, match="foreign layer1"):
        load_model(path, "resnet8")
