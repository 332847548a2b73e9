"""selector.py against slow float64 computations of the method's formulas."""

import math

import numpy as np
import pytest
import torch

from selector import Selector, confidences, draw_mixing, log_softmax, uncertainty


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
    logged = list(confidences(log_softmax(logits)).values())[strategy - 1]
    torch.testing.assert_close(logged, {1: 1 - actual, 2: -actual, 3: actual}[strategy])


@pytest.mark.parametrize("strategy", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_uncertainty_is_finite_and_ordered_for_extreme_logits(strategy, dtype):
    """Where p is 0, p log p is 0 and not NaN."""
    largest = torch.finfo(dtype).max
    logits = [[200, 0, 0, 0], [largest, -largest, -largest, -largest], [0.5, 0, 0, 0], [0, 0, 0, 0]]
    logits = torch.tensor(logits, dtype=dtype)
    score = uncertainty(logits, strategy)
    assert score.dtype == torch.float32 and score.isfinite().all()
    assert dtype == torch.float64 or torch.equal(score, uncertainty(logits.float(), strategy))
    assert score[0] == score[1] < score[2] < score[3]


def test_a_strategy_without_scores():
    with pytest.raises(ValueError, match="strategy 0 has no scores"):
        uncertainty(torch.zeros(2, 3), 0)


def test_a_batch_that_is_too_large():
    images, _, lam, partner = batch(65)
    with pytest.raises(ValueError, match="65 images are more than the selector's batch_size 64"):
        Selector(strategy=0)(images, None, lam, partner)


def batch(n, seed=0):
    """images, logits, lam, partner of a batch of n."""
    generator = torch.Generator().manual_seed(seed)
    images, logits = torch.randn(n, 3, 4, 4, generator=generator), 3 * torch.randn(n, 10, generator=generator)
    return images, logits, torch.tensor(0.7), torch.randperm(n, generator=generator)


@pytest.mark.parametrize("strategy", [0, 1, 2, 3])
@pytest.mark.parametrize("n, k, b, w", [(64, 48, 32, 10), (16, 48, 32, 10), (64, 20, 5, 3), (64, 64, 64, 1000)])
def test_selector_follows_the_formula(strategy, n, k, b, w):
    images, logits, lam, partner = batch(n)
    selector = Selector(k, b, w, strategy, batch_size=64)
    selection = selector(images, uncertainty(logits, strategy) if strategy else None, lam, partner)
    k = min(k, n)

    order = list(range(n))  # strategy 0 keeps the batch's own order, which is random already
    if strategy:
        scores = [slow_uncertainty(row, strategy) for row in logits.double().tolist()]
        order.sort(key=lambda i: -scores[i])
    assert selector.needs_scores == (strategy > 0)
    assert selection.order.tolist() == order and selection.kept.tolist() == order[:k]
    assert selection.partner.tolist() == partner[:k].tolist()
    assert selection.images.shape == (k, 3, 4, 4) and selection.mask.shape == (k,)
    for r in range(k):
        m = 0.35 * (1 + math.tanh(w / 2 * (r / 64 - (2 * b - 1) / 128)))  # 0.7 times the sigmoid
        assert selection.mask[r].item() == pytest.approx(m, rel=1e-4)
        expected = (1 - m) * images[order[r]].double() + m * images[partner[r]].double()
        np.testing.assert_allclose(selection.images[r].numpy(), expected.numpy(), atol=1e-5)
    # the last batch of an epoch and ordinary distillation (w = 1000) are kept whole and nearly unmixed
    assert len(selection.images) < n or selection.mask.max() < 0.08


def test_draw_mixing():
    lam, partner = draw_mixing(64 * 200 + 16, 64, np.random.default_rng(3))
    assert lam.shape == (201,) and lam.dtype == torch.float32 and partner.shape == (12816,)
    orders = [order.tolist() for order in partner.split(64)]
    assert all(sorted(order) == list(range(len(order))) for order in orders) and len(set(map(tuple, orders))) == 201
    # uniform on (0, 1): mean 1/2 and variance 1/12, here within four standard errors of 201 draws
    assert abs(lam.mean() - 0.5) < 4 * math.sqrt(1 / 12 / 201) and abs(lam.var() - 1 / 12) < 0.025
    # published runs are reproduced only if the very numbers stay, which follow from the generator alone
    lam, partner = draw_mixing(100, 64, np.random.default_rng((0, 1, 1)))
    assert lam.tolist() == pytest.approx([0.8109, 0.1454], abs=5e-5) and partner[:4].tolist() == [27, 5, 48, 37]
