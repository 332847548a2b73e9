"""The method: uncertainty-aware mixup of one batch (arXiv 2012.09413, section 3), as pure functions of tensors.

The student scores a batch. The selector orders the batch, most uncertain first, mixes each image with a random partner
and keeps the first k. The more certain the student is of an image, the more of the partner is mixed in. Teacher and
student then see the kept images alone.

No function here draws from global state or waits for the device. What is random is an argument.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

RANDOM, LEAST_CONFIDENCE, MARGIN, ENTROPY = range(4)  # the values of --strategy


def least_confidence(log_p: Tensor) -> Tensor:
    """Compute 1 - max p."""
    return 1 - log_p.amax(-1).exp()


def margin(log_p: Tensor) -> Tensor:
    """Compute -(p_1 - p_2) of the two largest probabilities."""
    largest = log_p.topk(2, dim=-1).values.exp()
    return largest[:, 1] - largest[:, 0]


def entropy(log_p: Tensor) -> Tensor:
    """Compute -sum p log p, in nats."""
    # p log p tends to 0 with p; the clamp keeps log p finite, so that 0 * log 0 is 0 and not NaN
    return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)


# By --strategy: (N, C) log-probabilities to (N,) uncertainties, where higher is more uncertain. Strategy 0 has none.
UNCERTAINTIES: dict[int, Callable[[Tensor], Tensor]] = {
    LEAST_CONFIDENCE: least_confidence,
    MARGIN: margin,
    ENTROPY: entropy,
}


def log_softmax(logits: Tensor) -> Tensor:
    """Take logits, (N, C) of any floating dtype, to log-probabilities at temperature 1, in float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def uncertainty(logits: Tensor, strategy: int) -> Tensor:
    """Score how uncertain softmax(logits) is of each sample; higher is more uncertain.

    logits: (N, C), of any floating dtype. strategy: a key of UNCERTAINTIES. Returns (N,) float32, finite for any finite
    logits. Raises ValueError for a strategy without scores.
    """
    if strategy not in UNCERTAINTIES:
        raise ValueError(f"strategy {strategy} has no scores; {', '.join(map(str, UNCERTAINTIES))} have")
    return UNCERTAINTIES[strategy](log_softmax(logits)).float()


def confidences(log_p: Tensor) -> dict[str, Tensor]:
    """Compute "confidence" (max p), "margin" (p_1 - p_2) and "entropy" (in nats) of (N, C) log_p, each (N,)."""
    log_p = log_p.detach()
    return {"confidence": 1 - least_confidence(log_p), "margin": -margin(log_p), "entropy": entropy(log_p)}


def mixup_mask(n: int, batch_size: int, b: int, w: float, device: torch.device | None = None) -> Tensor:
    """Compute the partner's weight at each rank, before lambda (the paper's section 3).

    n: the images in this batch, fewer than batch_size only in an epoch's last one. Returns (n,) float32 in (0, 1),
    which rises with the rank, crosses 1/2 between ranks b-1 and b, and gets steeper as w grows.
    """
    rank = torch.arange(n, dtype=torch.float32, device=device) / batch_size
    return torch.sigmoid(w * (rank - (2 * b - 1) / (2 * batch_size)))


def mix(x: Tensor, kept: Tensor, partner: Tensor, mask: Tensor) -> Tensor:
    """Mix the kept rows of x: row r becomes (1 - mask[r]) * x[kept[r]] + mask[r] * x[partner[r]].

    x: (N, ...) floating. kept, partner: (k,) int64 indices into x. mask: (k,). Returns (k, ...) in x's dtype.
    """
    weight = mask.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    return torch.lerp(x[kept], x[partner], weight)


def draw_mixing(n: int, batch_size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw what is random in the method for one epoch of n images, in steps of batch_size.

    Returns lam, (steps,) float32, a lambda ~ Beta(1, 1) for each step, and partner, (n,) int64, which joins the
    partners of all steps: for each step a permutation of the positions in its batch.
    """
    sizes = [min(batch_size, n - start) for start in range(0, n, batch_size)]
    lam = rng.beta(1, 1, len(sizes)).astype(np.float32)
    partner = np.concatenate([rng.permutation(size) for size in sizes])
    return torch.from_numpy(lam), torch.from_numpy(partner)


class Selection(NamedTuple):
    """One batch after the selector, which kept k of n images."""

    images: Tensor  # (k, ...) mixed
    kept: Tensor  # (k,) int64: the position of each in the batch
    partner: Tensor  # (k,) int64: the position of its partner
    mask: Tensor  # (k,) float32: the partner's weight
    order: Tensor  # (n,) int64: the positions of the whole batch, most uncertain first


class Selector(NamedTuple):
    """The selector with its settings (the paper's section 3 and its ablations). It is called on each batch."""

    k: int = 48  # images kept for the teacher and the student
    b: int = 32  # the rank at which mixing reaches half its strength
    w: float = 10  # how steeply mixing rises over the ranks
    strategy: int = ENTROPY
    batch_size: int = 64

    @property
    def needs_scores(self) -> bool:
        """Whether the student has to score the batch first."""
        return self.strategy != RANDOM

    def __call__(self, images: Tensor, scores: Tensor | None, lam: Tensor, partner: Tensor) -> Selection:
        """Order the batch, mix it, and keep min(k, n) images.

        images: (n, ...) floating, n <= batch_size, in random order. scores: (n,), the student's uncertainty of each;
        strategy 0 ignores it. lam: (), the batch's lambda. partner: (n,) int64, a random permutation of the batch.
        Raises ValueError for more than batch_size images, since k and b are numbers of a batch of that size.
        """
        n = len(images)
        if n > self.batch_size:
            raise ValueError(f"{n} images are more than the selector's batch_size {self.batch_size}")
        if self.needs_scores:
            order = scores.argsort(descending=True, stable=True)
        else:
            order = torch.arange(n, device=images.device)  # the batch's own order, which is random already
        mask = lam * mixup_mask(n, self.batch_size, self.b, self.w, images.device)
        kept = order[: self.k]
        partner = partner[: self.k]
        mask = mask[: self.k]
        return Selection(mix(images, kept, partner, mask), kept, partner, mask, order)
