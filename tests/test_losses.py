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
    loss = kd_loss((-300 * logits.sign()).half(), (300 * logits.sign()).half(), 1)
    assert loss.isfinite() and loss.dtype == torch.float32


def test_mixed_cross_entropy():
    logits = random(5, 10)
    labels, partner_labels = torch.tensor([0, 3, 3, 9, 1]), torch.tensor([1, 3, 0, 2, 9])
    mask = torch.tensor([0, 0.2, 0.5, 0.9, 1])
    expected = np.mean(
        [
            -(1 - m) * math.log(softmax(row)[a]) - m * math.log(softmax(row)[b])
            for row, a, b, m in zip(logits.double().tolist(), labels, partner_labels, mask.tolist())
        ]
    )
    assert mixed_cross_entropy(logits, labels, partner_labels, mask).item() == pytest.approx(expected, rel=1e-5)


def pool(x, h, w):
    """(C, H, W) -> (C, h, w) by the mean of equal blocks."""
    c, height, width = x.shape
    return x.reshape(c, h, height // h, w, width // w).mean((2, 4))


def test_attention_transfer_with_stages_of_other_sizes():
    stem, pooled = [random(3, 2, 8, 8)], [random(3, 7)]
    student = [random(3, 4, 8, 8, seed=1), random(3, 6, 2, 2, seed=2)]
    teacher = [random(3, 5, 8, 8, seed=3), random(3, 2, 4, 4, seed=4)]
    expected = 0
    for s, t, size in zip(student, teacher, (8, 2)):
        squares = []
        for i in range(3):
            maps = []
            for feature in (s[i], t[i]):
                attention = (pool(feature.double().numpy(), size, size) ** 2).mean(0).ravel()
                maps.append(attention / np.linalg.norm(attention))
            squares.append((maps[0] - maps[1]) ** 2)
        expected += np.mean(squares)
    actual = attention_transfer(stem + student + pooled, stem + teacher + pooled)
    assert actual.item() == pytest.approx(expected, rel=1e-5)


def test_similarity_preserving():
    student, teacher = random(4, 3, 2, 2), random(4, 5, 4, 4, seed=1)
    grams = []
    for feature in (student, teacher):
        rows = feature.double().flatten(1).numpy()
        gram = np.array([[a @ b for b in rows] for a in rows])
        grams.append([row / np.linalg.norm(row) for row in gram])
    expected = sum((grams[0][i][j] - grams[1][i][j]) ** 2 for i in range(4) for j in range(4)) / 16
    # the stem and the pooled vector play no part: they hold NaN
    nothing = torch.full((4, 1), math.nan)
    actual = similarity_preserving([nothing, student, nothing], [nothing, teacher, nothing])
    assert actual.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [attention_transfer, similarity_preserving])
def test_feature_losses_vanish_for_equal_features_and_teach_the_student(loss):
    features = [random(4, 2, 4, 4).requires_grad_(), random(4, 3, 4, 4, seed=1).requires_grad_(), random(4, 5)]
    assert loss(features, [f.detach() for f in features]).item() == pytest.approx(0, abs=1e-7)
    loss(features, [random(*f.shape, seed=9) for f in features]).backward()
    assert features[1].grad.abs().sum() > 0


def features_of(name):
    with torch.no_grad():
        return model_dict[name]().eval()(torch.zeros(2, 3, 32, 32), is_feat=True)[0]


def test_features_that_cannot_be_paired():
    with pytest.raises(ValueError, match="student has 4 stages and the teacher 3"):
        attention_transfer(features_of("vgg8"), features_of("wrn_40_2"))
    assert similarity_preserving(features_of("vgg8"), features_of("wrn_40_2")).isfinite()


@pytest.mark.parametrize("pair", ["vgg13 MobileNetV2", "ResNet50 vgg8", "resnet32x4 ShuffleV1", "wrn_40_2 ShuffleV2"])
def test_feature_losses_work_on_published_pairs(pair):
    teacher, student = map(features_of, pair.split())
    assert attention_transfer(student, teacher).isfinite() and similarity_preserving(student, teacher).isfinite()
