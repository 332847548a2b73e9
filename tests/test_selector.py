"""selector.py against slow float64 computations of the method's formulas."""

import math

import numpy as np
import pytest
import torch

from selector import Selector, draw_mixing, mix, mixup_mask, uncertainty


def slow_uncertainty(row, strategy):
    shifted = [v - max(row) for v in row]
    total = sum(math.exp(v) for v in shifted)
    p = sorted((math.exp(v) / total for v in shifted), reverse=True)
    if strategy == 1:
        return 1 - p[0]
    if strategy == 2:
        return -(p[0] - p[1])
    return -sum(v * math.log(v) for v in p if v > 0)


@pytest.mark.parametrize("strategy", [1, 2, 3])
@pytest.mark.parametrize("scale", [0.1, 3, 50])
def test_uncertainty(strategy, scale):
    logits = torch.randn(40, 100, generator=torch.Generator().manual_seed(0)) * scale
    expected = [slow_uncertainty(row, strategy) for row in logits.double().tolist()]
    actual = uncertainty(logits, strategy)
    assert actual.shape == (40,) and actual.dtype == torch.float32
    np.testing.assert_allclose(actual.numpy(), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("strategy", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_uncertainty_is_finite_and_ordered_for_extreme_logits(strategy, dtype):
    largest = torch.finfo(dtype).max
    logits = torch.tensor(
        [[200.0, 0, 0, 0], [largest, -largest, -largest, -largest], [0.5, 0, 0, 0], [0, 0, 0, 0]], dtype=dtype
    )
    score = uncertainty(logits, strategy)
    assert score.dtype == torch.float32 and score.isfinite().all()
    assert score[0] == score[1] < score[2] < score[3]


@pytest.mark.parametrize("strategy", [0, 4, -1])
def test_uncertainty_refuses_other_strategies(strategy):
    with pytest.raises(ValueError, match="strategy"):
        uncertainty(torch.zeros(2, 3), strategy)


@pytest.mark.parametrize(
    "n, batch_size, b, w", [(64, 64, 32, 10), (16, 64, 32, 10), (64, 64, 64, 1000), (10, 10, 1, 3)]
)
def test_mixup_mask(n, batch_size, b, w):
    expected = [(1 + math.tanh(w * (r / batch_size - (2 * b - 1) / (2 * batch_size)) / 2)) / 2 for r in range(n)]
    actual = mixup_mask(n, batch_size, b, w)
    assert actual.shape == (n,) and actual.dtype == torch.float32
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-4, atol=1e-12)  # exp(1000 x) magnifies x's rounding
    assert (actual[:b] < 0.5).all() and (actual[b:] > 0.5).all()


def test_mixup_mask_has_the_paper_s_shape():
    mask = mixup_mask(64, 64, 32, 10)
    np.testing.assert_allclose(
        mask[[0, 8, 16, 24, 32, 40, 47]], [0.007, 0.025, 0.08, 0.24, 0.52, 0.79, 0.92], atol=6e-3
    )


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 4, 4)])
def test_mix(shape):
    rng = np.random.default_rng(0)
    x, mask = rng.standard_normal(shape), rng.random(3)
    rank, partner = [4, 0, 2], [1, 0, 3]
    expected = [(1 - m) * x[r] + m * x[p] for r, p, m in zip(rank, partner, mask)]
    actual = mix(*map(torch.tensor, (x, rank, partner, mask)))
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12)


def batch(n, seed=0):
    """images, logits, lam, partner of a batch of n."""
    generator = torch.Generator().manual_seed(seed)
    images, logits = torch.randn(n, 3, 4, 4, generator=generator), 3 * torch.randn(n, 10, generator=generator)
    return images, logits, torch.tensor(0.7), torch.randperm(n, generator=generator)


@pytest.mark.parametrize("strategy", [1, 2, 3])
@pytest.mark.parametrize("n", [64, 16])
def test_selector_follows_the_formula(strategy, n):
    images, logits, lam, partner = batch(n)
    selector = Selector(k=48, b=32, w=10, strategy=strategy, batch_size=64)
    selection = selector(images, uncertainty(logits, strategy), lam, partner)
    k = min(48, n)

    scores = [slow_uncertainty(row, strategy) for row in logits.double().tolist()]
    rank = sorted(range(n), key=lambda i: -scores[i])
    assert selection.order.tolist() == rank
    assert selection.partner.tolist() == partner[:k].tolist()
    assert selection.images.shape == (k, 3, 4, 4) and selection.mask.shape == (k,)
    for r in range(k):
        m = 0.7 / (1 + math.exp(-10 * (r / 64 - 63 / 128)))
        assert selection.mask[r].item() == pytest.approx(m, rel=1e-5)
        expected = (1 - m) * images[rank[r]].double() + m * images[partner[r]].double()
        np.testing.assert_allclose(selection.images[r].numpy(), expected.numpy(), atol=1e-5)


def test_last_batch_is_kept_nearly_unmixed():
    images, logits, lam, partner = batch(16)
    selection = Selector()(images, uncertainty(logits, 3), lam, partner)
    assert len(selection.images) == 16 and selection.mask.max() < 0.08


def test_random_strategy_needs_no_scores_and_keeps_the_batch_s_order():
    images, _, lam, partner = batch(64)
    selector = Selector(strategy=0)
    selection = selector(images, None, lam, partner)
    assert not selector.needs_scores and all(Selector(strategy=s).needs_scores for s in (1, 2, 3))
    assert selection.order.tolist() == list(range(64)) and len(selection.images) == 48


def test_ordinary_distillation_is_in_effect_unmixed():
    images, _, _, partner = batch(64)
    selection = Selector(k=64, b=64, w=1000, strategy=0)(images, None, torch.tensor(1.0), partner)
    assert selection.mask.max() < 5e-4
    torch.testing.assert_close(selection.images, images, atol=5e-3, rtol=0)


def test_selector_leaves_global_randomness_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    images, logits, lam, partner = batch(64)
    Selector()(images, uncertainty(logits, 3), lam, partner)
    Selector(strategy=0)(images, None, lam, partner)
    draw_mixing(130, 64, np.random.default_rng(0))
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize("strategy", range(4))
def test_selector_never_asks_the_device_for_a_value(strategy):
    """Tensors of the meta device have no values: anything that would read one on the host raises."""
    images, logits, lam, partner = (tensor.to("meta") for tensor in batch(64))
    scores = uncertainty(logits, strategy) if strategy else None
    selection = Selector(strategy=strategy)(images, scores, lam, partner)
    assert selection.images.shape == (48, 3, 4, 4) and selection.images.device.type == "meta"


def test_draw_mixing():
    lam, partner = draw_mixing(64 * 200 + 16, 64, np.random.default_rng(3))
    assert lam.shape == (201,) and lam.dtype == torch.float32 and partner.shape == (12816,)
    for order in partner.split(64):
        assert sorted(order.tolist()) == list(range(len(order)))
    assert len({tuple(order.tolist()) for order in partner.split(64)}) == 201
    # uniform on (0, 1): mean 1/2 and variance 1/12, here within four standard errors of 201 draws
    assert abs(lam.mean() - 0.5) < 4 * math.sqrt(1 / 12 / 201) and abs(lam.var() - 1 / 12) < 0.025
    again = draw_mixing(64 * 200 + 16, 64, np.random.default_rng(3))
    assert torch.equal(again[0], lam) and torch.equal(again[1], partner)
