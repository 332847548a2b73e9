"""engine/meters.py: meters and validation."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dataset import Split, normalize
from engine.meters import Evaluator, Meters, correct
from models import model_dict


def test_meters_are_means_over_samples():
    meters = Meters()
    meters.add({"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([True, False]) * 100.0, "no": torch.zeros(0)})
    meters.add({"a": torch.tensor([10.0]), "no": torch.zeros(0)})
    assert meters.means() == {"a": 4.0, "b": 50.0}
    half = meters.state()
    assert half == {"a": [16, 4], "b": [100, 2], "no": [0, 0]}
    places = {name: buffer.data_ptr() for name, buffer in meters.buffers.items()}
    meters.reset()
    meters.add({"a": torch.tensor([7.0])})
    assert meters.means() == {"a": 7.0}
    meters.reset(half)
    meters.add({"a": torch.tensor([9.0])})
    assert meters.means() == {"a": 5.0, "b": 50.0}
    assert places == {name: buffer.data_ptr() for name, buffer in meters.buffers.items()}
    fresh = Meters()
    fresh.reset(half)
    assert fresh.means() == {"a": 4.0, "b": 50.0} and Meters().state() == {}


def test_meters_keep_small_values_beside_large_sums():
    meters = Meters()
    for _ in range(1000):
        meters.add({"a": torch.full((1000,), 0.1)})
    assert meters.means()["a"] == pytest.approx(0.1, rel=1e-6)


def test_correct():
    assert correct(torch.eye(3), torch.tensor([0, 1, 0])).tolist() == [100, 100, 0]


def test_evaluate():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (600, 32, 32, 3), dtype=np.uint8))
    split = Split(images, torch.arange(600) % 100, torch.arange(600))
    torch.manual_seed(0)
    model = model_dict["resnet8"]()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluator = Evaluator(model, split, nullcontext)
    loss, acc, centers = evaluator()
    again = evaluator()
    assert again[:2] == (loss, acc) and torch.equal(again[2], centers)
    other = model_dict["resnet8"]()
    model.load_state_dict(other.state_dict())
    assert evaluator()[:2] == Evaluator(other, split, nullcontext)()[:2] != (loss, acc)
    model.load_state_dict(before)
    with torch.no_grad():
        features, logits = model(normalize(images, split.mean, split.std), is_feat=True)
    assert loss == pytest.approx(F.cross_entropy(logits, split.labels).item(), rel=1e-5)
    assert acc == pytest.approx((logits.argmax(1) == split.labels).double().mean().item() * 100)
    for label in (0, 57, 99):
        torch.testing.assert_close(centers[label], features[-1][split.labels == label].mean(0), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_class_without_an_image_has_no_center():
    split = Split(torch.zeros(99, 32, 32, 3, dtype=torch.uint8), torch.arange(99), torch.arange(99))
    centers = Evaluator(model_dict["resnet8"](), split, nullcontext)()[2]
    assert centers[:99].isfinite().all() and centers[99].isnan().all()
