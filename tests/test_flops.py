"""engine/flops.py against the published column of the computation and the counting behind it."""

import pytest

from engine.flops import cost_so_far, forward_macs, relative_cost, training_macs
from models import model_dict

PUBLISHED = {  # teacher student: computation relative to KD in percent, k 48 of 64
    "vgg13 MobileNetV2": 77.49, "ResNet50 MobileNetV2": 75.57, "ResNet50 vgg8": 81.43, "resnet32x4 ShuffleV1": 78.43,
    "resnet32x4 ShuffleV2": 78.92, "wrn_40_2 ShuffleV1": 84.79, "wrn_40_2 wrn_16_2": 94.06, "wrn_40_2 wrn_40_1": 91.88,
    "resnet56 resnet20": 94.76, "resnet32x4 resnet8x4": 87.32, "vgg13 vgg8": 95.10, "vgg16 vgg8": 91.29,
}  # fmt: skip


@pytest.mark.parametrize("pair", PUBLISHED)
def test_published_computation(pair):
    ft, fs = (forward_macs(model_dict[arch]()) for arch in pair.split())
    assert 100 * relative_cost(fs, ft, 48, 64) == pytest.approx(PUBLISHED[pair], abs=0.35)
    assert relative_cost(fs, ft, 48, 64, backward=2) == pytest.approx(48 / 64 + 1 / (ft / fs + 3))
    assert relative_cost(fs, ft, 64, 64, scored=0) == relative_cost(fs, ft, 64, 64, scored=0, backward=2) == 1
    assert relative_cost(fs, ft, 48, 64, scored=0) == 0.75
    assert relative_cost(fs, ft, 48, 64, scored=1 / 5) == pytest.approx(0.75 + fs / (5 * (ft + 2 * fs)))


def test_counting():
    assert training_macs(10, trained=3, scored=4, teacher=100, queries=2) == 2 * 100 + 3 * 20 + 4 * 10
    assert training_macs(10, trained=3) == 60
    assert training_macs(10, trained=3, scored=4, teacher=100, queries=2, backward=2) == 2 * 100 + 3 * 30 + 4 * 10


def test_cost_so_far():
    assert cost_so_far(10, trained=3) == {"teacher_queries": 0, "train_macs": 60, "train_macs_usual": 90}
    figures = cost_so_far(10, trained=3, scored=4, teacher=100, queries=3, seen=4)
    assert figures["teacher_queries"] == 3
    assert (figures["train_macs"], figures["train_macs_usual"]) == (400, 430)
    assert figures["computation"] == 400 / 480 and figures["computation_usual"] == 430 / 520
