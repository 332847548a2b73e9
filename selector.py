"""The method: uncertainty-aware mixup of one batch (arXiv 2012.09413, section 3), as pure functions of tensors.

The student scores a batch; the selector ranks it, most uncertain first, mixes each image with a random partner, the
more the more certain the student is of it, and keeps the first k. Teacher and student then see only those.

No function here draws from global state or synchronizes with the host: what is random comes in as an argument.
"""

from typing import NamedTuple

import numpy as np
import torch

RANDOM, LEAST_CONFIDENCE, MARGIN, ENTROPY = range(4)  # the values of --strategy


def least_confidence(log_p):
    """1 - max p."""
    return 1 - log_p.amax(-1).exp()


def margin(log_p):
    """-(p_1 - p_2), of the two largest."""
    largest = log_p.topk(2, dim=-1).values.exp()
    return largest[:, 1] - largest[:, 0]


def entropy(log_p):
    """-sum p log p, in nats."""
    # p log p tends to 0 with p; the clamp keeps log p finite, so that 0 * log 0 is 0 and not NaN
    return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)


# The (N,) uncertainty of (N, C) log-probabilities, by --strategy; higher is more uncertain. Strategy 0 has none.
UNCERTAINTIES = {LEAST_CONFIDENCE: least_confidence, MARGIN: margin, ENTROPY: entropy}


def log_softmax(logits):
    """(N, C) log-probabilities at temperature 1, in float32 at least. logits: (N, C), any floating dtype."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def uncertainty(logits, strategy):
    """How unsure softmax(logits) is of each sample, by a strategy of UNCERTAINTIES; higher is more uncertain.

    logits: (N, C), any floating dtype. Returns (N,) float32, finite for any finite logits. Raises ValueError for a
    strategy without scores.
    """
    if strategy not in UNCERTAINTIES:
        raise ValueError(f"strategy {strategy} has no scores; {', '.join(map(str, UNCERTAINTIES))} have")
    return UNCERTAINTIES[strategy](log_softmax(logits)).float()


def confidences(log_p):
    """{"confidence": max p, "margin": p_1 - p_2, "entropy": in nats}, each (n,). log_p: (n, C)."""
    log_p = log_p.detach()
    return {"confidence": 1 - least_confidence(log_p), "margin": -margin(log_p), "entropy": entropy(log_p)}


def mixup_mask(n, batch_size, b, w, device=None):
    """Mixing weight of each rank, before lambda (section 3, step "mix").

    n: images in this batch; smaller than batch_size only in an epoch's last batch. b: the rank where the weight
    crosses 1/2; w: how steeply. Returns a (n,) float32 tensor in (0, 1) that rises with rank and crosses 1/2 between
    ranks b-1 and b.
    """
    rank = torch.arange(n, dtype=torch.float32, device=device) / batch_size
    return torch.sigmoid(w * (rank - (2 * b - 1) / (2 * batch_size)))


def mix(x, kept, partner, mask):
    """Row r is (1 - mask[r]) * x[kept[r]] + mask[r] * x[partner[r]]; only the kept rows are gathered.

    x: (N, ...) floating. kept, partner: (k,) int64 indices into x. mask: (k,). Returns (k, ...) in x's dtype.
    """
    weight = mask.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    return torch.lerp(x[kept], x[partner], weight)


def draw_mixing(n, batch_size, rng):
    """An epoch's randomness of the method, for n images in steps of batch_size.

    rng: numpy Generator. Returns lam, (steps,) float32, a lambda ~ Beta(1, 1) for each step; and partner, (n,) int64,
    the steps' partner orders one behind the other: each a permutation of the places in its batch.
    """
    sizes = [min(batch_size, n - start) for start in range(0, n, batch_size)]
    lam = rng.beta(1, 1, len(sizes)).astype(np.float32)
    partner = np.concatenate([rng.permutation(size) for size in sizes])
    return torch.from_numpy(lam), torch.from_numpy(partner)


class Selection(NamedTuple):
    """One batch after the selector: of n images k were kept."""

    images: torch.Tensor  # (k, ...) mixed
    kept: torch.Tensor  # (k,) int64: the place in the batch of each
    partner: torch.Tensor  # (k,) int64: whom each is mixed with
    mask: torch.Tensor  # (k,) float32: the partner's weight
    order: torch.Tensor  # (n,) int64: the whole batch, most uncertain first


class Selector(NamedTuple):
    """The selector's settings (section 3 and the paper's ablations), called on each batch."""

    k: int = 48  # images kept for the teacher and the student
    b: int = 32  # rank at which mixing reaches half its strength
    w: float = 10  # steepness of the mask over the ranks
    strategy: int = ENTROPY
    batch_size: int = 64

    @property
    def needs_scores(self):
        """Whether the student must score the batch first."""
        return self.strategy != RANDOM

    def __call__(self, images, scores, lam, partner):
        """Rank, mix and keep.

        images: (n, ...) floating, n <= batch_size, in random order. scores: (n,) the student's uncertainty of each,
        ignored by strategy 0. lam: () the batch's lambda. partner: (n,) int64, a random permutation of the batch.
        Returns a Selection of min(k, n) images.
        """
        n = len(images)
        if self.needs_scores:
            order = scores.argsort(descending=True, stable=True)
        else:
            order = torch.arange(n, device=images.device)  # the batch's own order, which is random already
        mask = lam * mixup_mask(n, self.batch_size, self.b, self.w, images.device)
        kept, partner, mask = order[: self.k], partner[: self.k], mask[: self.k]
        return Selection(mix(images, kept, partner, mask), kept, partner, mask, order)
