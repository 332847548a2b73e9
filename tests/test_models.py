"""The 25 networks against their contract, and reading weights."""

import hashlib
import json
import math

import numpy as np
import pytest
import torch
from conftest import SHARED

from cost import forward_macs
from models import CheckpointError, load_model, model_dict, read_checkpoint

CONTRACT = {
    # parameters, millions of multiply-accumulates of a 32x32 image, and the start of the SHA-256 of the lines that
    # contract_lines() makes: names and shapes of the state dict in order, then shapes of the features
    "resnet8": (83892, 12.507, "94622f63cb6eed1e"),
    "resnet14": (181108, 26.663, "2a343e2eb9c1a280"),
    "resnet20": (278324, 40.819, "b56225565f187a95"),
    "resnet32": (472756, 69.13, "cc6832a8c6b1785f"),
    "resnet44": (667188, 97.442, "55f6f9d8729b5bdb"),
    "resnet56": (861620, 125.754, "bedd35309129dd34"),
    "resnet110": (1736564, 253.156, "0a2eda1f2e731d49"),
    "resnet8x4": (1233540, 177.071, "45d1afe03fa009d6"),
    "resnet14x4": (2783620, 403.564, "e71854b344d4947c"),
    "resnet32x4": (7433860, 1083.041, "7b57cfe1ada30ff6"),
    "ResNet18": (11220132, 555.469, "6a580ec552818375"),
    "ResNet34": (21328292, 1159.449, "bdfff8dd8527db67"),
    "ResNet50": (23705252, 1298.014, "1883a9bf2cee771f"),
    "wrn_16_1": (180916, 26.663, "8a231d30003213d1"),
    "wrn_16_2": (703284, 101.118, "02a3a3662618cab6"),
    "wrn_40_1": (569780, 83.286, "8d127b731c3bab34"),
    "wrn_40_2": (2255156, 327.611, "0bffd953e85d7518"),
    "vgg8": (3965028, 96.193, "0da7e422361df6f6"),
    "vgg11": (9277284, 209.439, "4ea843af43971755"),
    "vgg13": (9462180, 284.936, "eadcac204f5c7932"),
    "vgg16": (14774436, 398.182, "217465364b34a2e6"),
    "vgg19": (20086692, 511.429, "a45492c6241f663e"),
    "MobileNetV2": (812836, 6.524, "9583a9f21c6a3db8"),
    "ShuffleV1": (949258, 38.691, "d430bda4501b781e"),
    "ShuffleV2": (1355528, 44.504, "3049b00aafe8b2bd"),
}
NAMES = list(CONTRACT)


def images(n=2, size=32):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_all_25_are_there():
    assert sorted(model_dict) == sorted(NAMES)


def contract_lines(name):
    model = model_dict[name]().eval()
    state = [f"{key} {'x'.join(map(str, tensor.shape)) or 'scalar'}" for key, tensor in model.state_dict().items()]
    features, _ = model(images(), is_feat=True)
    return state, [list(feature.shape[1:]) for feature in features]


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    params, mmacs, digest = CONTRACT[name]
    assert sum(p.numel() for p in model_dict[name](num_classes=100).parameters()) == params
    assert round(forward_macs(name) / 1e6, 3) == mmacs
    state, features = contract_lines(name)
    lines = "\n".join([*state, *map(str, features)])
    assert hashlib.sha256(lines.encode()).hexdigest().startswith(digest), lines
    full = SHARED / "spec" / "models.json"
    if full.exists():
        contract = json.loads(full.read_text())[name]
        assert (state, features) == (contract["state"], contract["features"])


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


@pytest.mark.parametrize("arch", ["resnet8_cifar", ["resnet8"], None])
def test_a_foreign_arch_is_no_hindrance(tmp_path, arch):
    path = save(tmp_path / "x.pth", {"state_dict": model_dict["resnet8"]().state_dict(), "arch": arch})
    assert load_model(path, "resnet8")[1]["arch"] == "resnet8"


def test_numpy_numbers_beside_the_weights(tmp_path):
    numbers = {"best_acc": np.float64(75.5), "acc": np.float32(70), "epoch": np.int64(240)}
    path = save(tmp_path / "x.pth", {"model": model_dict["resnet8"]().state_dict(), **numbers})
    assert load_model(path, "resnet8")[1]["best_acc"] == 75.5


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
    sparse = {"a": torch.eye(2).to_sparse()}
    for content in (
        [1, 2],
        {0: torch.ones(1)},
        {"model": sparse},
        {"epoch": 3},
        {"state_dict": {}},
        {"state_dict": {"a": 1}},
    ):
        with pytest.raises(CheckpointError, match="no weights"):
            read_checkpoint(save(tmp_path / "other.pth", content))


@pytest.mark.parametrize(
    "arch, message",
    [
        ("resnet20", "without layer1"),
        ("vgg8", "without block0"),
        (None, "name it"),
        ("resnet9", "name it"),
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
