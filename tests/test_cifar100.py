"""The programs on the real CIFAR-100, where it is at hand; a minute."""

import json
import runpy
import sys

import pytest
from conftest import SHARED

import dataset
import student_v0
import teacher

UNPACK = SHARED / "data" / "unpack.py"
pytestmark = pytest.mark.skipif(not UNPACK.exists(), reason="CIFAR-100 is not at hand")


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(UNPACK), str(root)])
        runpy.run_path(str(UNPACK), run_name="__main__")
    return root


def test_cifar100(data_root):
    folder = data_root / "cifar-100-python"  # which may be named itself
    (train_images, train_labels), (test_images, test_labels) = dataset.cifar100(folder)
    assert train_images.shape == (50_000, 32, 32, 3) and test_images.shape == (10_000, 32, 32, 3)
    assert sorted(set(train_labels.tolist())) == list(range(100)) and len(test_labels) == 10_000
    pixels = train_images.reshape(-1, 3) / 255
    assert pixels.mean(0) == pytest.approx(dataset.MEAN, abs=1e-4)
    # what the field uses for red differs from the pixels in the fourth digit
    assert pixels.std(0) == pytest.approx(dataset.STD, abs=2e-4)


def test_learning_happens(data_root, tmp_path):
    """Chance is 1 %, with a standard error of 0.22 points on 2000 images; 2 % is four and a half of those above."""
    quick = f"--data-root {data_root} --train-limit 4000 --val-limit 2000 --epoch 3 --milestones 2 --gpu-id -1"
    flags = [*quick.split(), "--experiments", str(tmp_path)]
    teacher.main(["--arch", "resnet8", *flags])
    (folder,) = tmp_path.iterdir()
    for method in ("", "--strategy 0 --k 64 --b 64 --w 1000"):
        student_v0.main(["--teacher-path", str(folder), "--student-arch", "resnet8", *flags, *method.split()])
    results = [json.loads(path.read_text()) for path in tmp_path.glob("*/result.json")]
    accuracies = [result["last_acc"] for result in results]
    assert len(accuracies) == 3 and min(accuracies) > 2, accuracies
