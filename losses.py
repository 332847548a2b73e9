"""Distillation losses. All compute in float32, whatever the precision of the networks, and return a () tensor."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Compute T^2 * KL(softmax(teacher / T) || softmax(student / T)), averaged over the batch.

    Both logits are (N, C). The factor T^2 keeps the gradient's size independent of T (Hinton et al., arXiv 1503.02531).
    """
    log_p = F.log_softmax(student_logits.float() / temperature, dim=1)
    log_q = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)


def mixed_cross_entropy(logits: Tensor, labels: Tensor, partner_labels: Tensor, mask: Tensor) -> Tensor:
    """Compute the mean of (1 - mask) * CE(logits, labels) + mask * CE(logits, partner_labels).

    logits: (k, C). labels, partner_labels: (k,) int64. mask: (k,), the partner's weight (mixup, arXiv 1710.09412).
    """
    logits = logits.float()
    own = F.cross_entropy(logits, labels, reduction="none")
    other = F.cross_entropy(logits, partner_labels, reduction="none")
    return ((1 - mask) * own + mask * other).mean()


def attention_transfer(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
    """Compute AT: the mean squared difference of attention maps, summed over the stages.

    Both lists are what `model(x, is_feat=True)` returns; their first entry, the stem's output, and their last, the
    pooled vector, are left out. A stage's map is the mean over channels of the squared activations, (N, C, H, W),
    flattened and L2-normalized. Where two sizes differ, the larger is average-pooled to the smaller.
    Raises ValueError where the stages cannot be paired. Source: Zagoruyko and Komodakis, ICLR 2017.
    """
    if len(student_features) != len(teacher_features):
        raise ValueError(
            f"AT pairs features stage by stage, but the student has {len(student_features) - 2} stages and the teacher "
            f"{len(teacher_features) - 2}; SP fits any two networks"
        )
    return sum(
        (attention_map(student, teacher.shape[-2:]) - attention_map(teacher, student.shape[-2:])).square().mean()
        for student, teacher in zip(student_features[1:-1], teacher_features[1:-1])
    )


def attention_map(feature: Tensor, other_size: Sequence[int]) -> Tensor:
    """Take a feature, (N, C, H, W), to its attention map, (N, h * w) unit rows; h and w are at most other_size."""
    size = [min(own, other) for own, other in zip(feature.shape[-2:], other_size)]
    pooled = F.adaptive_avg_pool2d(feature.float(), size)
    return F.normalize(pooled.square().mean(1).flatten(1))


def similarity_preserving(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
    """Compute SP: the squared difference of the batch's two similarity matrices, divided by N^2.

    Only the last spatial feature of each network is compared. Both are (N, C, H, W), and may differ in C, H and W.
    Source: Tung and Mori, ICCV 2019.
    """
    student = similarity(student_features[-2])
    teacher = similarity(teacher_features[-2])
    return (student - teacher).square().sum() / len(student) ** 2


def similarity(feature: Tensor) -> Tensor:
    """Take a feature, (N, ...), to the inner products of its flattened samples, (N, N), each row L2-normalized."""
    flat = feature.float().flatten(1)
    return F.normalize(flat @ flat.T)


FeatureLoss = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
# By the name in --other-distill: the published weight beside KD, and the loss of student and teacher features
FEATURE_LOSSES: dict[str, tuple[float, FeatureLoss]] = {
    "AT": (1000, attention_transfer),
    "SP": (3000, similarity_preserving),
}
