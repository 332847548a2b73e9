"""The 25 networks against their contract, reading weights, and finding teachers."""

import argparse
import datetime
import hashlib
import json
import math
import os
import pathlib
import pickle
import random
import zipfile
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import SHARED

import models
from engine.flops import forward_macs
from models import CheckpointError, find_checkpoint, load_model, model_dict, read_checkpoint
from models.network import Network

# The start of the SHA-256 of each network's contract, a line for each of: parameters, millions of multiply-accumulates,
# names and shapes of the state dict, shapes of the features
WORDS = """
    resnet8 fb2df32928f9 resnet14 75638fe2d412 resnet20 ce34e178bf3f resnet32 c65d0d01bf27 resnet44 a49f5747877a
    resnet56 75ac5ba6d3c1 resnet110 a7a979699eef resnet8x4 d3fe5e8bee93 resnet14x4 c4cba76228d2 resnet32x4 5a6b4f43376e
    ResNet18 a8d15aee0a1e ResNet34 716a9c862ca9 ResNet50 e683b192b787 wrn_16_1 5315f122873a wrn_16_2 e364c7b37c9c
    wrn_40_1 10388ed8d65d wrn_40_2 6da2d37105fa vgg8 a614b0805f11 vgg11 34c676398c57 vgg13 a2aecf64c28c
    vgg16 a62b1ceb1aff vgg19 b1c8051e583d MobileNetV2 5ec2b01db266 ShuffleV1 7ae3e664cb7a ShuffleV2 e76e3a5a0b35
""".split()
CONTRACT = dict(zip(WORDS[::2], WORDS[1::2]))


def images(n=2, size=32):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name, digest", CONTRACT.items())
def test_contract(name, digest):
    model = model_dict[name]().eval()
    actual = {
        "params": sum(p.numel() for p in model.parameters()),
        "mmacs": round(forward_macs(model) / 1e6, 3),
        "state": [f"{key} {'x'.join(map(str, t.shape)) or 'scalar'}" for key, t in model.state_dict().items()],
        "features": [list(feature.shape[1:]) for feature in model(images(), is_feat=True)[0]],
    }
    lines = [actual["params"], actual["mmacs"], *actual["state"], *actual["features"]]
    assert hashlib.sha256("\n".join(map(str, lines)).encode()).hexdigest().startswith(digest), actual
    assert sorted(model_dict) == sorted(CONTRACT)


@pytest.mark.parametrize("name", CONTRACT)
def test_both_modes_give_the_same_logits_and_gradients_reach_everything(name):
    torch.manual_seed(0)
    model = model_dict[name](num_classes=7).eval()
    with torch.no_grad():
        features, logits = model(images(), is_feat=True)
        assert logits.shape == (2, 7) and torch.equal(logits, model(images()))
    torch.testing.assert_close(logits, getattr(model, model.classifier_name)(features[-1]))
    # features are taken after the ReLU, but for those of wrn and MobileNetV2's stages
    activated = {"wrn": features[-1:], "Mob": features[:1]}.get(name[:3], features)
    assert all(feature.min() >= 0 for feature in activated)
    assert not name.startswith("wrn") or all(feature.min() < 0 for feature in features[:-1])

    model.train()
    model(images(4)).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    # a bias before batch norm has no gradient by construction; every matrix and kernel must have some
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1)


@pytest.mark.parametrize("name", ["resnet32x4", "ResNet18", "wrn_40_2", "vgg13", "MobileNetV2"])
def test_initial_weights(name):
    torch.manual_seed(0)
    model = model_dict[name]()
    kaiming = name.lower().startswith("resnet")
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 10_000:
            kh, kw = module.kernel_size
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / (kh * kw * module.out_channels)), rel=0.05)
            assert module.bias is None or not module.bias.any()
    linear = getattr(model, model.classifier_name)
    assert kaiming or not linear.bias.any()
    if name in ("vgg13", "MobileNetV2"):
        assert linear.weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_vgg_pools_once_more_at_64():
    features, _ = model_dict["vgg8"]().eval()(images(size=64), is_feat=True)
    assert [feature.shape[-1] for feature in features[:-1]] == [64, 32, 16, 8, 4]


# ------------------------------------------------------------------------------------------------- what loads


def save(path, content, zipped=True):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
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


STATE = trained().state_dict()


def check_loads(path, original=None, arch="resnet8"):
    model, checkpoint = load_model(path, arch)
    assert torch.equal(model(images()), (original or trained())(images())) and not model.training
    assert checkpoint["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    return checkpoint


def renamed(state, **names):
    def new(name):
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        return name

    return {new(name): tensor for name, tensor in state.items()}


RELEASED = {
    **{key: {key: STATE, "epoch": 240} for key in ("state_dict", "model", "net", "model_state_dict", "model_state")},
    "DataParallel": {"model": {f"module.{name}": tensor for name, tensor in STATE.items()}},
    "compiled": {"model": {f"_orig_mod.module.module.{name}": tensor for name, tensor in STATE.items()}},
    "weights alone": STATE,
    "compiled in part": {name.replace("layer2.", "layer2._orig_mod."): tensor for name, tensor in STATE.items()},
    "a string under model": {"model": "resnet8", "net": STATE},
    "parameters": {"net": {name: torch.nn.Parameter(t, t.is_floating_point()) for name, t in STATE.items()}},
    "another precision": {name: t.double() for name, t in STATE.items()},
    "another order": dict(sorted(STATE.items())),
    "no counters": {name: tensor for name, tensor in STATE.items() if "num_batches" not in name},
    "profiled and averaged": {**STATE, "total_ops": torch.zeros(1), "module.layer1.0.total_params": torch.zeros(1),
                              "n_averaged": torch.tensor(3)},
    "a foreign arch": {"net": STATE, "arch": "resnet8_cifar"},
    "an unhashable arch": {"net": STATE, "arch": ["resnet8"]},
    "an arch of numpy's": {"net": STATE, "arch": np.zeros(1, "i4,f8")[0]},
}  # fmt: skip


@pytest.mark.parametrize("content", RELEASED.values(), ids=RELEASED)
@pytest.mark.parametrize("zipped", [True, False])
def test_released_weights_load(tmp_path, capsys, content, zipped):
    checkpoint = check_loads(save(tmp_path / "best.pth", content, zipped))
    assert (checkpoint["arch"], checkpoint["num_classes"]) == ("resnet8", 100) and capsys.readouterr().out == ""
    assert "epoch" not in content or checkpoint["epoch"] == 240


def test_what_a_checkpoint_says(tmp_path):
    settings = {"lr": 0.1, "milestones": [1], "root": np.float64(3), (1, 2): 0}
    content = {"net": trained(num_classes=7).state_dict(), "arch": "resnet8", "kind": "student", "settings": settings}
    checkpoint = check_loads(save(tmp_path / "x.pth", content), trained(num_classes=7), arch="vgg8")
    assert (checkpoint["arch"], checkpoint["kind"], checkpoint["num_classes"]) == ("resnet8", "student", 7)
    assert json.loads(json.dumps(checkpoint["settings"])).keys() == {"lr", "milestones", "root"}


@pytest.mark.parametrize("name", ["resnet20_best.pth", "resnet20_other_names.pt", "resnet20_plain.pth"])
def test_public_networks_load(name):
    path = SHARED / "data" / "teachers" / name
    if not path.exists():
        pytest.skip(f"no {path}")
    model, checkpoint = load_model(path, "resnet20")
    assert checkpoint["num_classes"] == 100 and model(images()).isfinite().all()


OTHER_NAMES = [
    ("resnet20", {"downsample": "shortcut", "fc": "linear", "layer": "stage"}),
    ("resnet32x4", {"layer": "net.stage", "conv1": "conv_a", "bn1": "bn_a"}),
    ("ResNet18", {"shortcut": "downsample", "linear": "fc"}),
    ("vgg8", {"block0": "features.0", "block1": "features.1", "classifier": "fc"}),
    ("MobileNetV2", {"blocks": "features", "conv": "c"}),
    ("ShuffleV2", {"layer": "stage", "weight": "w"}),
]


@pytest.mark.parametrize("arch, names", OTHER_NAMES)
@pytest.mark.parametrize("counted", [True, False])
def test_other_names_load_by_order_and_say_so(tmp_path, capsys, arch, names, counted):
    original = trained(arch)
    state = {key: tensor for key, tensor in original.state_dict().items() if counted or "num_batches" not in key}
    checkpoint = check_loads(save(tmp_path / "x.pt", renamed(state, **names)), original, arch)
    (line,) = capsys.readouterr().out.splitlines()
    assert f"by order, all {len(state)} entries agree with {arch}" in line
    assert checkpoint["state_dict"].keys() == original.state_dict().keys()


class Calls:
    """Its pickle calls a function when it is read."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


NOW = datetime.datetime.now(datetime.timezone.utc)
BESIDE = [
    [argparse.Namespace(milestones=[1, 2], start=NOW, folder=pathlib.Path("a/b"), nested=argparse.Namespace())],
    [NOW, NOW.date(), NOW.time(), NOW - NOW, pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("a"), b"", b"a"],
    [np.float64(75.5), np.bool_(True), np.str_("a"), np.datetime64("2020-01-01"), np.void(b"ab")],
    [np.ones((2, 2), "f4", order="F"), np.array([1, "a", None], dtype=object), np.zeros(2, "i4,O")],
]


@pytest.mark.parametrize("content", BESIDE)
@pytest.mark.parametrize("zipped", [True, False])
def test_harmless_objects_beside_the_weights(tmp_path, content, zipped):
    checkpoint = check_loads(save(tmp_path / "x.pth", {"opt": content, "model": STATE}, zipped))
    # numpy believes what a file says about memory, so nothing of numpy is ever made
    assert not any(isinstance(value, np.generic | np.ndarray) for value in checkpoint["opt"])


@pytest.mark.parametrize("name", ["numpy.core.multiarray.scalar", "pathlib.WindowsPath", "pathlib._local.PosixPath"])
def test_objects_of_other_systems_and_versions(tmp_path, name):
    path = save(tmp_path / "here.pth", {"opt": argparse.Namespace(), "model": STATE})
    module, _, kind = name.rpartition(".")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "x.pth", "w") as new:
        for entry in old.namelist():
            data = old.read(entry)
            assert not entry.endswith("data.pkl") or b"cargparse\nNamespace\n" in data
            new.writestr(entry, data.replace(b"cargparse\nNamespace\n", f"c{module}\n{kind}\n".encode()))
    check_loads(tmp_path / "x.pth")


CALLS = [(eval, ["open('harmed', 'w')"]), (os.system, ["touch harmed"]), (getattr, [pathlib.Path("a"), "touch"])]


@pytest.mark.parametrize("function, args", CALLS)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_cannot_run_code(tmp_path, monkeypatch, zipped, function, args):
    monkeypatch.chdir(tmp_path)
    for content in ({"state_dict": Calls(function, *args)}, {"opt": Calls(function, *args), "net": STATE}):
        with pytest.raises(CheckpointError, match=rf"holds '.*{function.__name__}', which could run code"):
            load_model(save(tmp_path / "evil.pth", content, zipped), "resnet8")
        assert not (tmp_path / "harmed").exists()


# ------------------------------------------------------------------------------------------------ what does not load


def changed(name, value):
    return {"net": {**STATE, name: value}}


def swap(state, a, b):
    """Two entries in each other's position in the order."""
    position = {a: b, b: a}
    return {position.get(name, name): state[position.get(name, name)] for name in state}


ONE = torch.ones(1)
OTHERS = renamed(STATE, fc="linear")  # of the right shapes in the right order, so each change has to be noticed
BROKEN = {
    "empty": (b"", "not a checkpoint"),
    "another protocol": (pickle.dumps({"a": 1}, 4), "not a checkpoint"),
    "safetensors": (b'\x20\0\0\0\0\0\0\0{"a":{"dtype"', "a safetensors file"),
    "list": ([1, 2], "holds no weights but a list"),
    "whole model": (trained(), r"models\.resnet\.ResNet', which could run code.*state_dict"),
    "nothing": ({"net": {}}, "holds no weights"),
    "number": ({"state_dict": {"a": 1}}, "'a' is no weight"),
    "other key": ({"epoch": 3, "weights": {}}, "'epoch' is no weight; .* under state_dict, model, net"),
    "without values": (changed("fc.bias", torch.empty(100, device="meta")), "'fc.bias' is no weight"),
    "complex": (changed("fc.bias", torch.ones(100, dtype=torch.complex64)), "'fc.bias' is no weight"),
    "twice": (changed("module.conv1.weight", STATE["conv1.weight"]), "two entries called 'conv1.weight'"),
    "10^8 classes": (changed("fc.weight", ONE.expand(10**8, 64)), "no linear classifier of 1 to 100,000 classes"),
    "long name": (changed("a" * 5_000_000, ONE), r"foreign \['a{10,40}\.\.\.a{10,40}'\]"),
    "control characters": (changed("a\x1b[31m\n", ONE), r"foreign \['a\\x1b"),
    "another network": (trained("resnet20").state_dict(), r"not the weights of resnet8: .*foreign \['layer1\.1"),
    "too few": ({name: tensor for name, tensor in STATE.items() if name != "bn1.bias"}, r"missing \['bn1\.bias'\]"),
    "another shape": (changed("conv1.weight", torch.ones(8, 3, 3, 3)), r"another shape \['conv1\.weight'\]"),
    "infinite in float32": (changed("fc.bias", torch.full((100,), 1e300, dtype=torch.float64)), "is not finite"),
    "variance": (changed("bn1.running_var", -torch.ones(16)), "bn1.running_var holds a variance below zero"),
    "other names, order": (swap(OTHERS, "layer1.0.conv1.weight", "layer1.0.conv2.weight"), "foreign"),
    "other names, roles": (swap(OTHERS, "linear.bias", "linear.weight"), "foreign"),
    "other names, bn roles": (renamed(swap(OTHERS, "bn1.weight", "bn1.bias"), bn="norm"), "foreign"),
    "other names, more": ({**OTHERS, "more": ONE}, "foreign"),
    "other names, shape": ({**OTHERS, "conv1.weight": torch.ones(16, 1, 3, 3)}, "foreign"),
}


@pytest.mark.parametrize("content, message", BROKEN.values(), ids=BROKEN)
def test_a_broken_or_hostile_file_is_one_line(tmp_path, capsys, recwarn, content, message):
    path = tmp_path / "x.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    recwarn.clear()
    with pytest.raises(CheckpointError, match=message) as error:
        load_model(path, "resnet8")
    text = str(error.value)
    assert text.startswith(f"{path}: ") and text.isprintable() and len(text) < len(str(path)) + 300
    assert not recwarn.list and capsys.readouterr().out == ""


def test_weights_of_a_network_that_is_not_named(tmp_path):
    with pytest.raises(CheckpointError, match="does not say which network it holds"):
        load_model(save(tmp_path / "best.pth", {"net": STATE, "arch": "resnet9"}))


def test_what_is_no_file_is_not_waited_for(tmp_path):
    (tmp_path / "ckpt").mkdir()
    pipe = tmp_path / "ckpt" / "best.pth"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match="no such file"):
            read_checkpoint(path)
    with pytest.raises(CheckpointError, match="none at all"):
        find_checkpoint(tmp_path, "best")


class Own(Network):
    """A user's network, with a hidden linear layer and a part that is called as DataParallel calls its own."""

    classifier_name = "fc"

    def __init__(self, num_classes, fault=None):
        super().__init__()
        if fault:
            raise fault
        self.module, self.fc = torch.nn.Linear(3, 64), torch.nn.Linear(64, num_classes)

    def features(self, x):
        return [x, self.module(x.mean((2, 3)))]


def test_a_network_of_one_s_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(model_dict, "own", Own)
    original = Own(num_classes=7).eval()
    path = save(tmp_path / "x.pth", original.state_dict())
    assert check_loads(path, original, "own")["num_classes"] == 7
    wrapped = {f"module.{name}": tensor for name, tensor in STATE.items()}
    assert read_checkpoint(path)["state_dict"].keys() == original.state_dict().keys()
    check_loads(save(tmp_path / "y.pth", wrapped))
    assert capsys.readouterr().out == ""


def test_what_is_no_fault_of_the_file_passes_through(tmp_path, monkeypatch):
    path = save(tmp_path / "x.pth", STATE)
    monkeypatch.setitem(model_dict, "own", partial(Own, fault=TypeError("ours")))
    with pytest.raises(TypeError, match="ours"):
        load_model(path, "own")
    monkeypatch.setattr(torch, "load", Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        load_model(path, "resnet8")


def test_no_flipped_bit_changes_what_is_loaded(tmp_path):
    """Every bit of a record's entry in the zip's directory, and some of all: refused in one line, or as it was."""

    def listed(checkpoint):
        return checkpoint["acc"], [(name, t.dtype, t.tolist()) for name, t in checkpoint["state_dict"].items()]

    path = save(tmp_path / "x.pth", {"net": {"a.weight": torch.randn(3, 4), "b": torch.tensor(3)}, "acc": 71.25})
    good = path.read_bytes()
    expected = listed(read_checkpoint(path))
    entry, end = (good.rindex(name) for name in (b"x/data/0", b"x/data/1"))
    for position in [*range(8 * entry, 8 * end), *random.Random(0).sample(range(8 * len(good)), 300)]:
        damaged = bytearray(good)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            assert listed(read_checkpoint(path)) == expected, position
        except CheckpointError as e:
            assert str(e).isprintable()


# ---------------------------------------------------------------------------------------------------- finding teachers


ARCHS = {
    "teacher_wrn_40_2": "wrn_40_2",
    "a/b/teacher_resnet8x4_seed1": "resnet8x4",
    "teacher_resnet8_epoch3_milestones2": "resnet8",
    "vgg13": "vgg13",
    "teacher_vgg131": None,
    "my_teacher": None,
}


@pytest.mark.parametrize("folder, arch", ARCHS.items())
def test_arch_from_name(tmp_path, monkeypatch, folder, arch):
    path = tmp_path / folder
    path.mkdir(parents=True)
    (tmp_path / "link").symlink_to(path)
    assert models.teacher_name(tmp_path / "link" / "ckpt" / "best.pth") == ("link", "best")
    monkeypatch.chdir(path)
    for file in (path / "ckpt" / "best.pth", path / "240.pth.tar", pathlib.Path("ckpt/best.pth"), pathlib.Path("a.th")):
        assert models.arch_from_name(models.teacher_name(file)[0]) == arch


def test_find_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        find_checkpoint(tmp_path, "best")
    folder = tmp_path / "ckpt"
    folder.mkdir()
    for name in ("best.pt", "best_old.ckpt", "040.pth", "140.pth", "240.pth", "model_last.pth.tar", "best.txt"):
        (folder / name).touch()
    found = {
        "best": "best.pt",
        "240": "240.pth",
        "240.pth": "240.pth",
        "old": "best_old.ckpt",
        "last": "model_last.pth.tar",
    }
    for word, name in found.items():
        assert find_checkpoint(tmp_path, word) == find_checkpoint(folder / name, "anything") == folder / name
    assert models.teacher_name(folder / "model_last.pth.tar") == (tmp_path.name, "model_last")
    with pytest.raises(CheckpointError, match=r"several: 040\.pth, 140\.pth, 240\.pth"):
        find_checkpoint(tmp_path, "40")
    with pytest.raises(CheckpointError, match="no checkpoint is called 100; there are: 040"):
        find_checkpoint(tmp_path, "100")
    (folder / "240.pt").touch()
    with pytest.raises(CheckpointError, match=r"several: 240\.pt, 240\.pth"):
        find_checkpoint(tmp_path, "240")
