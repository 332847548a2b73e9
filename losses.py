"""Distillation losses. All compute in float32, whatever precision the networks ran in, and return a () tensor."""

import torch.nn.functional as F


def kd_loss(student_logits, teacher_logits, temperature):
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), batch mean (Hinton et al., arXiv 1503.02531).

    Both logits (N, C). The T^2 keeps the gradient's size independent of T.
    """
    log_p = F.log_softmax(student_logits.float() / temperature, dim=1)
    log_q = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)


def mixed_cross_entropy(logits, labels, partner_labels, mask):
    """Mean of (1 - mask) * CE(logits, labels) + mask * CE(logits, partner_labels) (mixup, arXiv 1710.09412).

    logits: (k, C). labels, partner_labels: (k,) int64. mask: (k,) weight of the partner.
    """
    logits = logits.float()
    own = F.cross_entropy(logits, labels, reduction="none")
    other = F.cross_entropy(logits, partner_labels, reduction="none")
    return ((1 - mask) * own + mask * other).mean()


def attention_transfer(student_features, teacher_features):
    """AT (Zagoruyko and Komodakis, ICLR 2017): mean squared difference of attention maps, summed over the stages.

    Takes the features between the stem's output and the pooled vector, each (N, C, H, W), as `model(x, is_feat=True)`
    gives them. A map is the mean over channels of the squared activations, flattened and L2-normalized. Where the two
    sizes differ, the larger is average-pooled to the smaller. Raises ValueError where the stages cannot be paired.
    """
    if len(student_features) != len(teacher_features):
        raise ValueError(
            f"AT pairs features stage by stage, but the student has {len(student_features) - 2} stages and the teacher "
            f"{len(teacher_features) - 2}; SP fits any two networks"
        )
    return sum(
        (attention_map(s, t.shape[-2:]) - attention_map(t, s.shape[-2:])).square().mean()
        for s, t in zip(student_features[1:-1], teacher_features[1:-1])
    )


def attention_map(feature, other_size):
    """(N, C, H, W) -> (N, h * w) unit rows, h and w at most other_size."""
    height, width = (min(own, other) for own, other in zip(feature.shape[-2:], other_size))
    pooled = F.adaptive_avg_pool2d(feature.float(), (height, width))
    return F.normalize(pooled.square().mean(1).flatten(1))


def similarity_preserving(student_features, teacher_features):
    """SP (Tung and Mori, ICCV 2019): squared difference of the batch's similarity matrices, divided by N^2.

    Takes the last spatial feature of each, (N, C, H, W), which may differ in C, H and W; the matrix is (N, N), the
    inner products of the flattened samples, each row L2-normalized.
    """
    student, teacher = similarity(student_features[-2]), similarity(teacher_features[-2])
    return (student - teacher).square().sum() / len(student) ** 2


def similarity(feature):
    """(N, ...) -> (N, N) inner products, rows L2-normalized."""
    flat = feature.float().flatten(1)
    return F.normalize(flat @ flat.T)


# --other-distill: the published weight beside KD, and the loss of (student features, teacher features).
FEATURE_LOSSES = {"AT": (1000, attention_transfer), "SP": (3000, similarity_preserving)}
