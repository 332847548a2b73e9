"""engine/flops.py against the published column of the computation and the counting behind it."""

import pytest

from engine.flops import cost_so_far, forward_macs
from models import model_dict
from reporting import published


@pytest.mark.parametrize("pair, row", published.pairs().items(), ids=map(":".join, published.pairs()))
def test_published_computation(pair, row):
    ft, fs = (forward_macs(model_dict[arch]()) for arch in pair)
    figures = cost_so_far(fs, 48, 64, ft, 48, 64)
    assert 100 * figures["computation"] == pytest.approx(row["computation"], abs=0.35)
    assert figures["computation_usual"] == pytest.approx(48 / 64 + 1 / (ft / fs + 3))


def test_cost_so_far():
    assert cost_so_far(10, trained=3) == {"teacher_queries": 0, "train_macs": 60, "train_macs_usual": 90}
    figures = cost_so_far(10, trained=3, scored=4, teacher=100, queries=2, seen=4)
    assert figures["teacher_queries"] == 2
    assert (figures["train_macs"], figures["train_macs_usual"]) == (300, 330)
    assert figures["computation"] == 300 / 480 and figures["computation_usual"] == 330 / 520
