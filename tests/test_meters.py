"""engine/meters.py: meters and validation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dataset import Split, normalize
from engine.device import Precision
from engine.meters import Evaluator, Meters, correct
from models import model_dict

FP32 = Precision("fp32", "cpu")


def test_meters_are_means_over_samples():
    meters = Meters()
    assert meters.means() == {}
    meters.add({"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([True, False]) * 100.0, "no": torch.zeros(0)})
    meters.add({"a": torch.tensor([10.0]), "no": torch.zeros(0)})
    assert meters.means() == {"a": 4.0, "b": 50.0}
    places = {name: buffer.data_ptr() for name, buffer in meters.buffers.items()}
    meters.reset()
    meters.add({"a": torch.tensor([7.0])})
    assert meters.means() == {"a": 7.0}
    assert places == {name: buffer.data_ptr() for name, buffer in meters.buffers.items()}


def test_meters_keep_small_values_beside_large_sums():
    meters = Meters()
    for _ in range(1000):
        meters.add({"a": torch.full((1000,), 0.1)})
    assert meters.means()["a"] == pytest.approx(0.1, rel=1e-6)


def test_correct():
    assert correct(torch.eye(3), torch.tensor([0, 1, 0])).tolist() == [100, 100, 0]


def test_evaluator():
    """600 images are two batches. The network's weights are read anew in each pass, and not changed."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (600, 32, 32, 3), dtype=np.uint8))
    split = Split(images, torch.arange(600) % 100, torch.arange(600))
    model, other = model_dict["resnet8"](), model_dict["resnet8"]()
    evaluator = Evaluator(model, split, FP32)
    first = evaluator()
    model.load_state_dict(other.state_dict())
    loss, acc, centers = evaluator()
    assert loss != first[0] and not model.training
    with torch.no_grad():
        features, logits = other.eval()(normalize(images, split.mean, split.std), is_feat=True)
    assert loss == pytest.approx(F.cross_entropy(logits, split.labels).item(), rel=1e-5)
    assert acc == pytest.approx((logits.argmax(1) == split.labels).double().mean().item() * 100)
    for label in (0, 57, 99):
        torch.testing.assert_close(centers[label], features[-1][split.labels == label].mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_a_class_without_an_image_has_no_center():
    split = Split(torch.zeros(99, 32, 32, 3, dtype=torch.uint8), torch.arange(99), torch.arange(99))
    centers = Evaluator(model_dict["resnet8"](), split, FP32)()[2]
    assert centers[:99].isfinite().all() and centers[99].isnan().all()
