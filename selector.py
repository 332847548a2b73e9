"""The method: uncertainty-aware mixup of one batch (arXiv 2012.09413, section 3), as pure functions of tensors.

The student scores a batch; the selector ranks it, most uncertain first, mixes each image with a random partner, the
more the more certain the student is of it, and keeps the first k. Teacher and student then see only those.

No function here draws from global state or synchronises with the host: what is random comes in as an argument.
"""

from typing import NamedTuple

import numpy as np
import torch

RANDOM, LEAST_CONFIDENCE, MARGIN, ENTROPY = range(4)


def uncertainty(logits, strategy):
    """How unsure softmax(logits) is of each sample; higher is more uncertain.

    logits: (N, C), any floating dtype. strategy: 1 least confidence, 1 - max p; 2 margin, -(p_1 - p_2) of the two
    largest; 3 entropy in nats, -sum p log p. Returns (N,) float32, finite for any finite logits.
    Raises ValueError for another strategy (0 ranks at random and has no scores).
    """
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    if strategy == LEAST_CONFIDENCE:
        score = 1 - log_p.amax(-1).exp()
    elif strategy == MARGIN:
        largest = log_p.topk(2, dim=-1).values.exp()
        score = largest[:, 1] - largest[:, 0]
    elif strategy == ENTROPY:
        # p log p tends to 0 with p; the clamp keeps log p finite, so that 0 * log 0 is 0 and not NaN
        score = -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)
    else:
        raise ValueError(f"strategy {strategy} has no scores; 1, 2 and 3 have")
    return score.float()


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
    """One batch after the selector: n images came in, these of the k kept ones are this process's share."""

    images: torch.Tensor  # (k, ...) mixed
    kept: torch.Tensor  # (k,) int64: the place in the batch of each
    partner: torch.Tensor  # (k,) int64: whom each is mixed with
    mask: torch.Tensor  # (k,) float32: the partner's weight
    rank: torch.Tensor  # (n,) int64: the full ranking, most uncertain first


class Selector(NamedTuple):
    """The selector's settings (section 3 and the paper's ablations), called on each batch."""

    k: int = 48  # images kept for the teacher and the student
    b: int = 32  # rank at which mixing reaches half its strength
    w: float = 10  # steepness of the mask over the ranks
    strategy: int = ENTROPY
    batch_size: int = 64

    @property
    def needs_scores(self):
        """Whether the student must score the batch first. A random ranking needs nothing of it."""
        return self.strategy != RANDOM

    def __call__(self, images, scores, lam, partner, share=slice(None)):
        """Rank, mix and keep.

        images: (n, ...) floating, n <= batch_size, in random order. scores: (n,) the student's uncertainty of each,
        unused (None) where nothing needs scores. lam: () the batch's lambda. partner: (n,) int64, a random permutation
        of the batch. share: which of the min(k, n) kept ranks to mix, all by default; the ranking is the same for any.
        Returns a Selection. Strategy 0 takes the batch's own order, random already, as its ranking.
        """
        n, k = len(images), min(self.k, len(images))
        if self.needs_scores:
            rank = scores.argsort(descending=True, stable=True)
        else:
            rank = torch.arange(n, device=images.device)
        mask = lam * mixup_mask(n, self.batch_size, self.b, self.w, images.device)
        kept, partner, mask = (each[:k][share] for each in (rank, partner, mask))
        return Selection(mix(images, kept, partner, mask), kept, partner, mask, rank)
