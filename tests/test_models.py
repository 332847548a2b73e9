"""The 25 networks against their contract, and reading weights."""

import argparse
import datetime
import hashlib
import io
import json
import math
import os
import pathlib
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch
from conftest import SHARED

from engine.flops import forward_macs
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
    assert round(forward_macs(model_dict[name]()) / 1e6, 3) == mmacs
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


def trained(arch="resnet8", num_classes=100):
    """A network with weights and statistics as after some training: nowhere at their first values."""
    torch.manual_seed(0)
    model = model_dict[arch](num_classes=num_classes)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                torch.nn.init.normal_(tensor, 0.5, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            module.num_batches_tracked += 7
    return model.eval()


def check_loads(path, original, arch="resnet8"):
    model, checkpoint = load_model(path, arch)
    assert torch.equal(model(images()), original(images())) and not model.training
    assert same(model.state_dict(), dict(checkpoint["state_dict"]))
    return checkpoint


def same(a, b):
    if torch.is_tensor(a):
        return torch.is_tensor(b) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


PREFIXES = ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module.")


@pytest.mark.parametrize("wrap", ["state_dict", "model", "net", "model_state_dict", "model_state", "bare", *PREFIXES])
@pytest.mark.parametrize("zipped", [True, False])
def test_released_weights_load(tmp_path, capsys, wrap, zipped):
    original = trained(num_classes=10)
    state = original.state_dict()
    if wrap in PREFIXES:
        state = {wrap + name: tensor for name, tensor in state.items()}
    key = "model" if wrap in PREFIXES else wrap
    path = tmp_path / "best.pth"
    torch.save(state if wrap == "bare" else {key: state, "epoch": 240}, path, _use_new_zipfile_serialization=zipped)
    checkpoint = check_loads(path, original)
    assert checkpoint["arch"] == "resnet8" and checkpoint["num_classes"] == 10
    assert (wrap == "bare" or checkpoint["epoch"] == 240) and capsys.readouterr().out == ""


def test_a_network_compiled_in_part(tmp_path, capsys):
    original = trained()
    state = {name.replace("layer2.", "layer2._orig_mod."): tensor for name, tensor in original.state_dict().items()}
    check_loads(save(tmp_path / "x.pth", state), original)
    assert capsys.readouterr().out == ""


def test_weights_before_a_string_called_model(tmp_path):
    original = trained()
    check_loads(save(tmp_path / "x.pth", {"model": "resnet8", "net": original.state_dict()}), original)


def test_parameters_of_other_precision(tmp_path):
    state = {name: torch.nn.Parameter(t, t.is_floating_point()) for name, t in trained().half().state_dict().items()}
    check_loads(save(tmp_path / "x.pth", {"net": state}), trained().half().float())


@pytest.mark.parametrize("arch", ["resnet8_cifar", ["resnet8"], None])
def test_a_foreign_arch_is_no_hindrance(tmp_path, arch):
    path = save(tmp_path / "x.pth", {"state_dict": model_dict["resnet8"]().state_dict(), "arch": arch})
    assert load_model(path, "resnet8")[1]["arch"] == "resnet8"


def test_a_students_weights_load_and_say_so(tmp_path):
    content = {"state_dict": trained().state_dict(), "arch": "resnet8", "kind": "student"}
    assert check_loads(save(tmp_path / "x.pth", content), trained(), None)["kind"] == "student"


def test_the_checksum_of_earlier_versions_is_dropped(tmp_path):
    path = save(tmp_path / "x.pth", {"state_dict": trained().state_dict(), "epoch": 3, "checksum": "0" * 64})
    assert set(check_loads(path, trained())) == {"state_dict", "epoch", "arch", "num_classes"}


def test_what_the_checkpoint_says_comes_before_the_caller(tmp_path):
    path = save(tmp_path / "x.pth", {"state_dict": model_dict["resnet8"]().state_dict(), "arch": "resnet8"})
    assert load_model(path, "vgg8")[1]["arch"] == "resnet8"


# ------------------------------------------------------------------------------------------- what lies beside weights


class Runs:
    """Its pickle calls a function when it is read."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("kind", np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?")
def test_numpy_numbers_beside_the_weights(tmp_path, kind):
    number = np.array([1.5 if kind in np.typecodes["AllFloat"] else 1]).astype(kind)[0]
    path = save(tmp_path / "x.pth", {"model": trained().state_dict(), "acc": number})
    acc = check_loads(path, trained())["acc"]
    assert acc == number and acc.dtype == number.dtype


def test_numbers_of_another_byte_order(tmp_path):
    big = Runs(np.float64(0).__reduce__()[0], np.dtype(">f8"), np.array(1.5, ">f8").tobytes())
    path = save(tmp_path / "x.pth", {"model": trained().state_dict(), "acc": big})
    assert check_loads(path, trained())["acc"] == 1.5


def test_older_numpy(tmp_path):
    path = save(tmp_path / "x.pth", {"model": trained().state_dict(), "acc": np.float64(75.5), "a": np.ones(3)})
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "old.pth", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert check_loads(tmp_path / "old.pth", trained())["acc"] == 75.5


NOW = datetime.datetime.now(datetime.timezone.utc)
BESIDE = [
    argparse.Namespace(lr=0.1, milestones=[1, 2], start=NOW, folder=pathlib.Path("a/b"), nested=argparse.Namespace()),
    [NOW, NOW.date(), NOW.time(), NOW - NOW],
    [kind("a", "b") for kind in (pathlib.Path, pathlib.PurePosixPath, pathlib.PureWindowsPath)],
    [np.str_("a"), np.str_(""), np.bytes_(b"a"), np.datetime64("2020-01-01"), np.timedelta64(1, "s")],
    [np.void(b"ab"), np.zeros(1, "i4,f8")[0], np.zeros(2, "i4,O"), np.array([1, "a", None], dtype=object)],
    [np.arange(3), np.ones((2, 2), "f4", order="F"), np.array(["a"]), np.random.get_state()],
]


@pytest.mark.parametrize("content", BESIDE)
@pytest.mark.parametrize("zipped", [True, False])
def test_harmless_objects_beside_the_weights(tmp_path, content, zipped):
    path = tmp_path / "x.pth"
    torch.save({"opt": content, "model": trained().state_dict()}, path, _use_new_zipfile_serialization=zipped)
    check_loads(path, trained())


@pytest.mark.parametrize("name", ["pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath"])
def test_paths_of_another_system(tmp_path, name):
    """As WindowsPath and Python 3.13 write them; written by hand, as this system may not have them."""
    stated = io.BytesIO()
    torch.save({"opt": pathlib.PurePosixPath("a"), "model": trained().state_dict()}, stated)
    with zipfile.ZipFile(stated) as old, zipfile.ZipFile(tmp_path / "x.pth", "w") as new:
        for entry in old.namelist():
            module, kind = name.rsplit(".", 1)
            plain, other = b"cpathlib\nPurePosixPath\n", f"c{module}\n{kind}\n".encode()
            data = old.read(entry)
            assert not entry.endswith("data.pkl") or plain in data or b"pathlib._local" in data
            new.writestr(entry, data.replace(b"cpathlib._local\nPurePosixPath\n", plain).replace(plain, other))
    check_loads(tmp_path / "x.pth", trained())


def test_numpy_is_not_led_to_foreign_memory(tmp_path):
    """A file can say of numpy's object type that it holds no pointers, and then give pointers as plain bytes."""

    class Dtype:
        def __reduce__(self):
            return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)

    class Array:
        def __reduce__(self):
            empty = np.zeros(0)
            return empty.__reduce__()[0], (np.ndarray, (0,), b"b"), (1, (2,), Dtype(), False, b"\x10" * 16)

    checkpoint = check_loads(save(tmp_path / "x.pth", {"a": Array(), "net": trained().state_dict()}), trained())
    assert not isinstance(checkpoint["a"], np.ndarray)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_cannot_run_code(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    code = "__import__('pathlib').Path('harmed').touch()"
    for function, args, name in (
        (eval, (code,), "eval"),
        (exec, (code,), "exec"),
        (getattr, (pathlib.Path("harmed"), "touch"), "getattr"),
        (os.system, ("touch harmed",), "posix.system"),
        (np.load, ("harmed",), "numpy.load"),
    ):
        for content in ({"state_dict": Runs(function, *args)}, {"opt": Runs(function, *args), "net": {}}):
            torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
            with pytest.raises(CheckpointError, match=rf"holds (builtins\.)?{name}, which would run code") as error:
                read_checkpoint(tmp_path / "evil.pth")
            assert "\n" not in str(error.value) and not (tmp_path / "harmed").exists()


def test_a_whole_model_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"models\.resnet\.ResNet.*state_dict"):
        read_checkpoint(save(tmp_path / "x.pth", trained()))


# ------------------------------------------------------------------------------------------- other projects' networks


def renamed(state, **names):
    def new(name):
        for old, other in names.items():
            name = name.replace(old, other)
        return name

    return {new(name): tensor for name, tensor in state.items()}


OTHER_NAMES = [
    ("resnet20", {"downsample": "shortcut", "fc": "linear", "layer": "stage"}),
    ("resnet32x4", {"layer": "net.stage", "conv1": "conv_a", "bn1": "bn_a"}),
    ("ResNet18", {"shortcut": "downsample", "linear": "fc"}),
    ("wrn_16_2", {"convShortcut": "shortcut", "fc": "linear", "block": "conv"}),
    ("vgg8", {"block0": "features.0", "block1": "features.1", "classifier": "fc"}),
    ("MobileNetV2", {"blocks": "features", "conv": "c"}),
    ("ShuffleV1", {"linear": "fc"}),
    ("ShuffleV2", {"layer": "stage", "weight": "w"}),
]


@pytest.mark.parametrize("arch, names", OTHER_NAMES)
@pytest.mark.parametrize("counted", [True, False])
def test_other_names_load_by_order_and_say_so(tmp_path, capsys, arch, names, counted):
    original = trained(arch)
    state = {key: tensor for key, tensor in original.state_dict().items() if counted or "num_batches" not in key}
    checkpoint = check_loads(save(tmp_path / "x.pt", renamed(state, **names)), original, arch)
    (line,) = capsys.readouterr().out.splitlines()
    assert "x.pt" in line and f"by order: all {len(state)} entries agree with {arch}" in line
    assert list(checkpoint["state_dict"])[-1] in original.state_dict()
    if counted:
        assert same(dict(original.state_dict()), {key: checkpoint["state_dict"][key] for key in original.state_dict()})


def test_our_names_are_loaded_by_name_in_any_order(tmp_path, capsys):
    original = trained()
    state = dict(sorted(original.state_dict().items()))
    model, _ = load_model(save(tmp_path / "x.pt", state), "resnet8")
    assert torch.equal(model(images()), original(images())) and capsys.readouterr().out == ""


def swap(state, a, b):
    """Two entries in each other's place in the order."""
    names = list(state)
    i, j = names.index(a), names.index(b)
    names[i], names[j] = names[j], names[i]
    return {name: state[name] for name in names}


def test_other_names_that_do_not_agree(tmp_path):
    """Each has one difference that shapes alone, or the count alone, would not show."""
    state = renamed(trained("resnet20").state_dict(), fc="linear")
    bias = "layer1.0.bn1.bias"
    cases = {
        "order": swap(state, "layer1.0.conv1.weight", "layer1.0.conv2.weight"),
        "role": swap(renamed(state, layer="stage"), "stage1.0.bn1.weight", "stage1.0.bn1.bias"),
        "fewer": {name: tensor for name, tensor in state.items() if name != bias},
        "more": {**state, "more": torch.zeros(1)},
        "shape": {name: tensor[:, :1] if name == "conv1.weight" else tensor for name, tensor in state.items()},
    }
    for what, case in cases.items():
        with pytest.raises(
            CheckpointError, match=r"not the weights of resnet20, without .*, with foreign \w+"
        ) as error:
            load_model(save(tmp_path / f"{what}.pt", case), "resnet20")
        assert "\n" not in str(error.value)


def test_missing_counters_are_filled(tmp_path):
    original = trained()
    state = {name: tensor for name, tensor in original.state_dict().items() if "num_batches_tracked" not in name}
    model, _ = load_model(save(tmp_path / "x.pth", state), "resnet8")
    assert torch.equal(model(images()), original(images())) and model.bn1.num_batches_tracked == 0


def test_profilers_entries_are_dropped(tmp_path):
    state, zero = trained().state_dict(), torch.zeros(1, dtype=torch.float64)
    extra = {f"{name}total_{what}": zero for name in ("", "conv1.", "module.layer1.0.") for what in ("ops", "params")}
    check_loads(save(tmp_path / "x.pth", {"net": {**extra, **state, "n_averaged": torch.tensor(3)}}), trained())


def with_biases(model, wanted=lambda name: True):
    """Every convolution without a bias gets one, in place. Returns the model."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d) and module.bias is None and wanted(name):
            module.bias = torch.nn.Parameter(torch.randn(module.out_channels))
    return model


NO_WRN = [name for name in NAMES if not name.startswith("wrn")]


@pytest.mark.parametrize("arch", NO_WRN)
def test_biases_of_convolutions_are_folded(tmp_path, arch):
    original = with_biases(trained(arch))
    model, checkpoint = load_model(save(tmp_path / "x.pth", original.state_dict()), arch)
    with torch.no_grad():
        torch.testing.assert_close(model(images()), original(images()), rtol=1e-3, atol=1e-3)
        for ours, theirs in zip(model(images(), is_feat=True)[0], original(images(), is_feat=True)[0]):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert checkpoint["state_dict"].keys() == model_dict[arch]().state_dict().keys()


def test_biases_are_folded_under_other_names(tmp_path):
    original = with_biases(trained())
    state = renamed(original.state_dict(), fc="linear", bn="norm", layer="stage")
    model, _ = load_model(save(tmp_path / "x.pth", state), "resnet8")
    torch.testing.assert_close(model(images()), original(images()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("arch", ["wrn_16_1", "wrn_16_2"])
def test_biases_that_no_batch_norm_follows(tmp_path, arch):
    """In a wide resnet only a block's first convolution is read by one batch norm and nothing else."""
    original = with_biases(trained(arch), lambda name: name.endswith("layer.0.conv1"))
    model, _ = load_model(save(tmp_path / "x.pth", original.state_dict()), arch)
    torch.testing.assert_close(model(images()), original(images()), rtol=1e-3, atol=1e-3)
    for name in ("conv1", "block1.layer.0.conv2", "block1.layer.1.conv2", "block2.layer.0.convShortcut"):
        original = with_biases(trained(arch), lambda other, name=name: other == name)
        with pytest.raises(CheckpointError, match=rf"not the weights of {arch}, with foreign {name}\.bias;"):
            load_model(save(tmp_path / "x.pth", original.state_dict()), arch)


@pytest.mark.parametrize("name", ["resnet20_best.pth", "resnet20_other_names.pt", "resnet20_plain.pth"])
def test_public_networks_load(name):
    path = SHARED / "data" / "teachers" / name
    if not path.exists():
        pytest.skip(f"no {path}")
    model, checkpoint = load_model(path, "resnet20")
    assert checkpoint["num_classes"] == 100 and model(images()).isfinite().all()


# -------------------------------------------------------------------------------------------------- what does not load


def test_unusable_checkpoints(tmp_path, recwarn):
    good = save(tmp_path / "good.pth", {"state_dict": trained().state_dict()}).read_bytes()
    cases = {
        "missing.pth": (None, "no such file"),
        "truncated.pth": (good[: len(good) // 2], "damaged"),
        "text.pth": (b"hello", "not a checkpoint"),
        "empty.pth": (b"", "not a checkpoint"),
        "zeros.pth": (bytes(1000), "not a checkpoint"),
        "other_protocol.pth": (pickle.dumps({"a": 1}, 4), "not a checkpoint"),
        "header.pth": (b"PK\3\4", "not a checkpoint"),
        "x.safetensors": (b"\x08\0\0\0\0\0\0\0{}      ", r"safetensors.*torch.save.*load_file\('x.safetensors'\)"),
        "best.pth": (b'\x20\0\0\0\0\0\0\0{"a":{"dtype"', r"safetensors.*torch.save.*load_file\('best.pth'\)"),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as error:
            read_checkpoint(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value) and not recwarn.list


def test_too_little_memory_is_no_damage(tmp_path, monkeypatch):
    def fails(*args, **options):
        raise MemoryError

    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(MemoryError):
        read_checkpoint(save(tmp_path / "x.pth", {}))


@pytest.mark.filterwarnings("ignore")
def test_what_holds_no_weights_says_what_it_holds(tmp_path):
    for content, found in (
        ([1, 2], "but a list"),
        ({}, "found nothing"),
        ({0: torch.ones(1)}, "found 0"),
        ({"model": {"a": torch.eye(2).to_sparse()}}, "alone under model; found a"),
        ({"model": {"a": torch.empty(1, device="meta")}}, "found a"),
        ({"model": {"a": torch.ones(1, dtype=torch.complex64)}}, "found a"),
        ({"model": {"a": torch.quantize_per_tensor(torch.ones(1), 1, 0, torch.qint8)}}, "found a"),
        ({"epoch": 3, "weights": {}}, "under state_dict, model, net.*; found epoch, weights"),
        ({str(i): i for i in range(9)}, "found 0, 1, 2 and 6 more"),
        ({"state_dict": {}}, "found nothing"),
        ({"state_dict": {"a": 1}}, "found a"),
    ):
        with pytest.raises(CheckpointError, match=f"holds no weights .*{found}") as error:
            load_model(save(tmp_path / "other.pth", content), "resnet8")
        assert "\n" not in str(error.value)
    nested = torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])
    with pytest.raises(CheckpointError, match=r"holds no weights .*found a|would run code"):  # since torch 2.15
        load_model(save(tmp_path / "nested.pth", {"model": {"a": nested}}), "resnet8")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["layer1.0.conv1.weight", "bn1.running_var", "fc.bias"])
def test_weights_that_are_not_finite(tmp_path, name, value):
    state = trained().state_dict()
    state[name].view(-1)[-1] = value
    with pytest.raises(CheckpointError, match=rf"not finite.*: {name};"):
        load_model(save(tmp_path / "x.pth", {"net": state}), "resnet8")


@pytest.mark.parametrize(
    "arch, message",
    [
        ("resnet20", "without layer1"),
        ("vgg8", r"without block0.*, with foreign conv1\.weight, .* and \d+ more"),
        (None, "name it"),
        ("resnet9", "name it"),
    ],
)
def test_weights_of_another_network(tmp_path, arch, message):
    path = save(tmp_path / "best.pth", {"state_dict": model_dict["resnet8"]().state_dict()})
    with pytest.raises(CheckpointError, match=message):
        load_model(path, arch)


def test_weights_without_a_classifier(tmp_path):
    with pytest.raises(CheckpointError, match=r"no linear classifier in a\.weight"):
        load_model(save(tmp_path / "best.pth", {"a.weight": torch.ones(3)}), "vgg8")


def test_weights_of_another_width(tmp_path):
    state = model_dict["vgg8"]().state_dict()
    state["block1.0.weight"] = torch.zeros(96, 64, 3, 3)
    with pytest.raises(CheckpointError, match=r"another shape of block1\.0\.weight"):
        load_model(save(tmp_path / "best.pth", {"state_dict": state}), "vgg8")


def test_foreign_entries_are_not_ignored(tmp_path):
    path = save(tmp_path / "best.pth", {"model": model_dict["resnet20"]().state_dict()})
    with pytest.raises(CheckpointError, match="foreign layer1"):
        load_model(path, "resnet8")


def test_no_flipped_bit_changes_what_is_loaded(tmp_path):
    """Every bit of a record's entry in the zip's directory, and some of all: refused in one line, or as it was."""
    content = {"state_dict": {"a.weight": torch.randn(3, 4), "b": torch.tensor(3)}, "acc": 71.25, "rows": [{"x": 1.5}]}
    path = save(tmp_path / "x.pth", content)
    good = path.read_bytes()
    entry, end = (good.rindex(name) for name in (b"x/data/0", b"x/data/1"))
    positions = [*range(8 * entry, 8 * end), *random.Random(0).sample(range(8 * len(good)), 500)]
    refused = 0
    for position in positions:
        damaged = bytearray(good)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            assert same(read_checkpoint(path), content), position
        except CheckpointError as e:
            assert "\n" not in str(e)
            refused += 1
    assert refused > 300
