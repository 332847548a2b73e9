"""losses.py against loops in float64."""

import math

import numpy as np
import pytest
import torch

from losses import attention_transfer, kd_loss, mixed_cross_entropy, similarity_preserving
from models import model_dict


def softmax(row):
    total = sum(math.exp(v - max(row)) for v in row)
    return [math.exp(v - max(row)) / total for v in row]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1, 4, 20])
def test_kd_loss(temperature):
    student, teacher = random(6, 10), 5 * random(6, 10, seed=1)
    expected = 0
    for s, t in zip(student.double().tolist(), teacher.double().tolist()):
        p, q = (softmax([v / temperature for v in row]) for row in (s, t))
        expected += sum(b * math.log(b / a) for a, b in zip(p, q))
    expected *= temperature**2 / 6
    assert kd_loss(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-5)


def test_kd_loss_is_zero_for_a_perfect_student_and_finite_in_half_precision():
    logits = 100 * random(4, 10)
    assert kd_loss(logits, logits, 4).item() == pytest.approx(0, abs=1e-6)
    student, teacher = (300 * random(4, 10, seed=1)).half(), logits.half()
    loss = kd_loss(student, teacher, 1)
    assert loss.isfinite() and torch.equal(loss, kd_loss(student.float(), teacher.float(), 1))


def test_mixed_cross_entropy():
    logits = random(5, 10)
    labels, partner_labels = torch.tensor([0, 3, 3, 9, 1]), torch.tensor([1, 3, 0, 2, 9])
    mask = torch.tensor([0, 0.2, 0.5, 0.9, 1])
    expected = 0
    for row, own, other, m in zip(logits.double().tolist(), labels, partner_labels, mask.tolist()):
        expected -= ((1 - m) * math.log(softmax(row)[own]) + m * math.log(softmax(row)[other])) / 5
    assert mixed_cross_entropy(logits, labels, partner_labels, mask).item() == pytest.approx(expected, rel=1e-5)


def attention(feature, size):
    """(N, C, H, W) to (N, size * size): the mean of equal blocks, its square averaged over channels, unit rows."""
    n, c, height, width = feature.shape
    blocks = feature.double().numpy().reshape(n, c, size, height // size, size, width // size)
    rows = (blocks.mean((3, 5)) ** 2).mean(1).reshape(n, -1)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_attention_transfer_with_stages_of_other_sizes():
    student = [random(3, 4, 8, 8, seed=1), random(3, 6, 2, 2, seed=2)]
    teacher = [random(3, 5, 8, 8, seed=3), random(3, 2, 4, 4, seed=4)]
    expected = 0
    for s, t, size in zip(student, teacher, (8, 2)):
        expected += ((attention(s, size) - attention(t, size)) ** 2).mean()
    # the stem and the pooled vector play no part: they hold NaN
    ends = [torch.full((3, 1), math.nan)]
    assert attention_transfer(ends + student + ends, ends + teacher + ends).item() == pytest.approx(expected, rel=1e-5)


def test_similarity_preserving():
    student, teacher = random(4, 3, 2, 2), random(4, 5, 4, 4, seed=1)
    grams = []
    for feature in (student, teacher):
        rows = feature.double().flatten(1).numpy()
        gram = np.array([[a @ b for b in rows] for a in rows])
        grams.append(gram / np.linalg.norm(gram, axis=1, keepdims=True))
    expected = ((grams[0] - grams[1]) ** 2).sum() / 16
    ends = [torch.full((4, 1), math.nan)]
    actual = similarity_preserving([*ends, student, *ends], [*ends, teacher, *ends])
    assert actual.item() == pytest.approx(expected, rel=1e-5)


def features_of(name):
    return model_dict[name]()(random(4, 3, 32, 32), is_feat=True)[0]


@pytest.mark.parametrize("pair", ["vgg13 MobileNetV2", "ResNet50 vgg8", "resnet32x4 ShuffleV1", "wrn_40_2 ShuffleV2"])
@pytest.mark.parametrize("loss", [attention_transfer, similarity_preserving])
def test_feature_losses_teach_published_students(loss, pair):
    teacher, student = map(features_of, pair.split())
    assert loss(student, student).item() == pytest.approx(0, abs=1e-7)
    value = loss(student, [feature.detach() for feature in teacher])
    (gradient,) = torch.autograd.grad(value, student[-2])
    assert value.isfinite() and gradient.isfinite().all() and gradient.any()


def test_features_that_cannot_be_paired():
    with pytest.raises(ValueError, match="student has 4 stages and the teacher 3"):
        attention_transfer([random(2, 3, 8, 8)] * 6, [random(2, 3, 8, 8)] * 5)
