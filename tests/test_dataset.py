"""dataset.py: augmentation against torchvision's, batches, splits, and data that is not there."""

import errno
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR100
from torchvision.transforms import functional

import dataset
from dataset import MEAN, STD, DataError, Split, augment, held_out_mask, load, normalize, synthetic


def random_images(n, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8))


def split_of(n):
    return Split(random_images(n), torch.arange(n) % 100, torch.arange(n))


def test_augmentation_is_torchvision_s():
    offsets = torch.tensor([[row, column] for row in range(9) for column in range(9)] * 2)
    images, flips = random_images(len(offsets)), torch.arange(len(offsets)) < 81
    ours = normalize(augment(images, offsets, flips), torch.tensor(MEAN), torch.tensor(STD))
    assert ours.dtype == torch.float32 and ours.is_contiguous(memory_format=torch.channels_last)
    for i, (row, column) in enumerate(offsets.tolist()):
        picture = functional.pad(Image.fromarray(images[i].numpy()), 4)
        picture = functional.crop(picture, row, column, 32, 32)
        picture = functional.hflip(picture) if flips[i] else picture
        theirs = functional.normalize(functional.to_tensor(picture), MEAN, STD)
        assert torch.equal(ours[i], theirs)


def epoch_of(split, *batch_size_seed_and_epoch):
    return [split.load_batch(*drawn) for drawn in split.draw_epoch(*batch_size_seed_and_epoch)]


def test_an_epoch_shows_each_image_once():
    split = split_of(150)
    batches = epoch_of(split, 64, 0, 1)
    assert [len(labels) for _, labels, _ in batches] == [64, 64, 22]
    indices = torch.cat([indices for _, _, indices in batches])
    assert sorted(indices.tolist()) == list(range(150)) and indices.tolist() != list(range(150))
    assert torch.equal(torch.cat([labels for _, labels, _ in batches]), split.labels[indices])
    images = torch.cat([images for images, _, _ in batches])
    # each augmented image holds the center of its own original, at one of 81 offsets and perhaps mirrored
    for i, image in zip(indices[:10], images[:10]):
        crops = augment(split.images[i].repeat(162, 1, 1, 1), *every_augmentation())
        assert (normalize(crops, split.mean, split.std) == image).flatten(1).all(1).any()


def every_augmentation():
    offsets = torch.tensor([[row, column] for row in range(9) for column in range(9)] * 2)
    return offsets, torch.arange(162) < 81


def test_offsets_and_flips_take_all_values_equally_often():
    n = 9000
    marked = torch.zeros(n, 32, 32, 3, dtype=torch.uint8)
    marked[:, 15, 15] = 255  # the crop and the flip move this pixel to a place that tells them
    split = Split(marked, torch.zeros(n), torch.arange(n))
    images = torch.cat([images for images, _, _ in epoch_of(split, 500, 0, 1)])
    places = (images[:, 0] > 0).nonzero()[:, 1:]
    assert len(places) == n
    rows, columns = places[:, 0], places[:, 1]
    # unmirrored the pixel lies in columns 11..19, mirrored in 12..20
    for counts, expected in (
        (rows.bincount()[11:20], [n / 9] * 9),
        (columns.bincount()[11:21], [n / 18, *[n / 9] * 8, n / 18]),
    ):
        # four standard errors of a binomial count
        assert all(abs(c - e) < 4 * e**0.5 for c, e in zip(counts.tolist(), expected))


def test_batches_follow_from_seed_epoch_and_step():
    split = split_of(100)

    def epoch(*seed_and_epoch):
        return [images for images, _, _ in epoch_of(split, 64, *seed_and_epoch)]

    first = epoch(0, 1)
    torch.randn(5), np.random.rand(5)
    assert all(torch.equal(a, b) for a, b in zip(first, epoch(0, 1)))
    assert not torch.equal(first[0], epoch(0, 2)[0]) and not torch.equal(first[0], epoch(1, 1)[0])


def test_holdout_is_stratified_and_fixed_by_the_seed():
    labels = np.arange(5000) % 100
    chosen = held_out_mask(labels, 500, seed=0)
    assert chosen.sum() == 500 and (np.bincount(labels[chosen]) == 5).all()
    assert (chosen == held_out_mask(labels, 500, seed=0)).all()
    assert (chosen != held_out_mask(labels, 500, seed=1)).any()
    uneven = np.array([0] * 90 + [1] * 10)
    assert np.bincount(uneven[held_out_mask(uneven, 20, seed=0)]).tolist() == [18, 2]


def test_holdout_splits_the_training_images():
    whole = load("synthetic", None, "cpu", train_limit=1000, val_limit=200)
    data = whole.hold_out(100, seed=0)
    assert whole.hold_out(0, seed=0) is whole
    assert (len(data.train), len(data.val), len(data.test)) == (900, 100, 200) and whole.test is None
    assert sorted(torch.cat([data.train.indices, data.val.indices]).tolist()) == list(range(1000))
    assert torch.equal(data.val.images, whole.train.images[data.val.indices])
    assert torch.equal(data.test.images, whole.val.images)


def test_synthetic_images_are_always_the_same():
    images, labels = synthetic(1500, "train")
    assert images.shape == (1500, 32, 32, 3) and images.dtype == np.uint8 and labels.dtype == np.int64
    again, _ = synthetic(1200, "train")
    assert (images[:1200] == again).all()
    assert all(sorted(labels[i : i + 100]) == list(range(100)) for i in range(0, 1500, 100))
    test_images, _ = synthetic(100, "test")
    assert (test_images != images[:100]).any()


def test_data_lies_on_the_device_as_bytes():
    data = load("synthetic", None, "cpu", train_limit=100, val_limit=50)
    assert data.train.images.dtype == torch.uint8 and len(data.train) == 100 and len(data.val) == 50


# ------------------------------------------------------------------------------------------------ missing CIFAR-100


@pytest.fixture
def no_site(monkeypatch):
    monkeypatch.setattr(CIFAR100, "url", "http://127.0.0.1:9/cifar-100-python.tar.gz")  # nobody listens there


def message_of(root):
    with pytest.raises(DataError) as error:
        dataset.cifar100(root)
    message = str(error.value)
    assert "\n" not in message and "--dataset synthetic" in message and CIFAR100.url in message
    return message


def test_missing_data_says_where_it_was_looked_for_and_what_to_do(tmp_path, no_site):
    message = message_of(tmp_path / "a" / "data")
    assert f"{tmp_path / 'a' / 'data' / 'cifar-100-python'} is missing" in message
    assert not (tmp_path / "a").exists()


def test_the_data_s_own_folder_is_known(tmp_path, monkeypatch, no_site):
    (tmp_path / "cifar-100-python").mkdir()
    monkeypatch.chdir(tmp_path / "cifar-100-python")
    for root in (tmp_path / "cifar-100-python", Path()):
        assert f"CIFAR-100 in {tmp_path / 'cifar-100-python'} is incomplete" in message_of(root)
    assert not list(Path().iterdir())
    Path("cifar-100-python").mkdir()  # as an earlier download left it
    nested = tmp_path / "cifar-100-python" / "cifar-100-python"
    assert f"CIFAR-100 in {nested} is incomplete" in message_of(nested.parent)


def test_without_locks_data_is_still_read(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(dataset.fcntl, "flock", no_locks)
    with dataset.one_at_a_time(tmp_path / "data"):
        assert (tmp_path / "data").is_dir()


def test_altered_data_is_not_used(tmp_path, no_site):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(b"not the official file")
    assert "is incomplete, altered" in message_of(tmp_path)
    assert (folder / "train").read_bytes() == b"not the official file"


def test_one_process_at_a_time_downloads(tmp_path, monkeypatch):
    """A lock of files keeps threads, which open the folder for themselves, apart as it does processes."""
    steps = []

    class Slow:
        base_folder, url, data, targets = CIFAR100.base_folder, CIFAR100.url, [], []

        def __init__(self, root, train, download):
            for _ in range(2):
                steps.append(threading.get_ident())
                time.sleep(0.02)

    monkeypatch.setattr(dataset, "CIFAR100", Slow)
    threads = [threading.Thread(target=dataset.cifar100, args=[tmp_path / "data"]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(steps) == 12 and all(len(set(steps[i : i + 4])) == 1 for i in (0, 4, 8))
