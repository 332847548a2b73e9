"""CIFAR-100 and a generated stand-in for it. Both lie on the device as uint8, and are augmented there in batches.

What is random follows from (seed, epoch) alone, so a run can be repeated or resumed without saving the state of any
generator.
"""

import fcntl
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.datasets import CIFAR100

NUM_CLASSES = 100
SIZE = 32
PADDING = 4
MEAN = (0.5071, 0.4866, 0.4409)
STD = (0.2675, 0.2565, 0.2761)
CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
""".split()  # CIFAR-100's fine labels, in order

BATCHES, MIXING, HOLDOUT = range(3)  # independent streams of random numbers


def generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """Make the generator of one stream in one epoch. Epoch 0 is for what is drawn once a run."""
    return np.random.default_rng((seed, epoch, stream))


class DataError(OSError):
    """The data is not available. The message is one line and says what to do."""


# ---------------------------------------------------------------------------------------------------- augmentation


def augment(images: Tensor, offsets: Tensor, flips: Tensor) -> Tensor:
    """Crop and flip a batch as torchvision's RandomCrop(32, padding=4) and RandomHorizontalFlip do one image.

    images: (n, 32, 32, 3) uint8, as is the result. offsets: (n, 2) int64 in 0..8, row and column of the crop in the
    padded image. flips: (n,) bool, whether the crop is mirrored.
    """
    padded = F.pad(images, (0, 0, PADDING, PADDING, PADDING, PADDING))
    span = torch.arange(SIZE, device=images.device)
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    rows = offsets[:, 0, None] + span
    columns = offsets[:, 1, None] + torch.where(flips[:, None], SIZE - 1 - span, span)
    return padded[sample, rows[:, :, None], columns[:, None, :]]


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Compute (x / 255 - mean) / std of each channel.

    images: (n, 32, 32, 3) uint8. Returns (n, 3, 32, 32) float32, channels last in memory.
    """
    return images.float().div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)


def from_picture(picture: Any) -> Tensor:
    """Scale and normalize a PIL image of any size to a network's input, (1, 3, 32, 32) float32."""
    pixels = torch.from_numpy(np.array(picture.convert("RGB").resize((SIZE, SIZE))))
    return normalize(pixels[None], torch.tensor(MEAN), torch.tensor(STD))


# ---------------------------------------------------------------------------------------------------------- splits


@dataclass
class Split:
    """A set of images on one device."""

    images: Tensor  # (n, 32, 32, 3) uint8
    labels: Tensor  # (n,) int64
    indices: Tensor  # (n,) int64: each image's position in the data set's own order

    def __post_init__(self):
        self.mean = torch.tensor(MEAN, device=self.images.device)
        self.std = torch.tensor(STD, device=self.images.device)

    def __len__(self) -> int:
        return len(self.labels)

    def draw_epoch(self, batch_size: int, seed: int, epoch: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Draw an epoch's order, crops and flips: for each step what load_batch takes. The last step may be smaller."""
        rng = generator(seed, epoch, BATCHES)
        n = len(self)
        order = rng.permutation(n)
        offsets = rng.integers(0, 2 * PADDING + 1, (n, 2))
        flips = rng.random(n) < 0.5
        device = self.images.device
        return list(zip(*(torch.from_numpy(drawn).to(device).split(batch_size) for drawn in (order, offsets, flips))))

    def load_batch(self, chosen: Tensor, offsets: Tensor, flips: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Augment and normalize the images at the positions `chosen`, (m,) int64; for offsets and flips see augment.

        Returns images, (m, 3, 32, 32) float32, labels and indices.
        """
        images = self.normalized(augment(self.images[chosen], offsets, flips))
        return images, self.labels[chosen], self.indices[chosen]

    def normalized(self, images: Tensor) -> Tensor:
        """Normalize images of this split, (m, 32, 32, 3) uint8, without augmenting them."""
        return normalize(images, self.mean, self.std)

    def __getitem__(self, chosen: Tensor | slice) -> "Split":
        """Return the Split of some of the images. chosen: positions, a mask or a slice."""
        return Split(self.images[chosen], self.labels[chosen], self.indices[chosen])


def held_out_mask(labels: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Choose n images to hold out, of each class in proportion to its size.

    labels: (N,) integers. Returns (N,) booleans.
    """
    # Every image gets its position in a random order of its class, as a fraction of the class; the n smallest go.
    rng = generator(seed, 0, HOLDOUT)
    fraction = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        fraction[rng.permutation(members)] = (np.arange(len(members)) + rng.random(len(members))) / len(members)
    return np.isin(np.arange(len(labels)), np.argsort(fraction)[:n])


@dataclass
class Data:
    train: Split
    val: Split  # what the best epoch is chosen on: the test images, or with a holdout the images held out
    test: Split | None  # the test images where there is a holdout, else None
    num_train_images: int  # the size of the training set before any were held out, which bounds `train.indices`

    def hold_out(self, n: int, seed: int) -> "Data":
        """Return the Data whose `val` are n stratified training images; for n = 0 the Data itself."""
        if not n:
            return self
        labels = self.train.labels
        mask = torch.from_numpy(held_out_mask(labels.cpu().numpy(), n, seed)).to(labels.device)
        return Data(self.train[~mask], self.train[mask], self.val, self.num_train_images)


def load(
    dataset: str,
    root: Path | str | None,
    device: torch.device | str,
    train_limit: int | None = None,
    val_limit: int | None = None,
) -> Data:
    """Load the Data of a run. Only the first images are taken where there is a limit.

    dataset: "cifar100", which is read from `root` and downloaded there if it is missing, or "synthetic".
    Raises DataError.
    """
    if dataset == "synthetic":
        train_arrays = synthetic(train_limit or 50_000, "train")
        test_arrays = synthetic(val_limit or 10_000, "test")
    else:
        train_arrays, test_arrays = cifar100(root)
    train = make_split(*train_arrays, train_limit, device)
    test = make_split(*test_arrays, val_limit, device)
    return Data(train, test, None, len(train))


def make_split(images: np.ndarray, labels: np.ndarray, limit: int | None, device: torch.device | str) -> Split:
    """Put the first `limit` images on the device."""
    arrays = images, labels, np.arange(len(labels))
    return Split(*(torch.from_numpy(array[:limit]).to(device) for array in arrays))


# -------------------------------------------------------------------------------------------------------- CIFAR-100


def cifar100_folder(root: Path | str) -> Path:
    """Return the absolute path of cifar-100-python/, which is in `root`, or is `root` itself."""
    root = Path(root).absolute()
    inner = root / CIFAR100.base_folder
    return root if root.name == inner.name and not inner.exists() else inner


def cifar100(root: Path | str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Read CIFAR-100, and download what is missing of it.

    Returns the training images and their labels, and the test images and theirs, (n, 32, 32, 3) uint8 and (n,) int64.
    """
    folder = cifar100_folder(root)
    root = folder.parent
    try:
        with one_at_a_time(root):
            splits = [CIFAR100(root, train=train, download=True) for train in (True, False)]  # checks their md5
    except Exception as e:  # torchvision lets URLError, HTTPError, RuntimeError, PermissionError, ... through
        state = "incomplete, altered or unreadable" if folder.exists() else "missing"
        raise DataError(
            f"CIFAR-100 in {folder} is {state}, and downloading it failed ({(str(e) or repr(e)).splitlines()[0]}). Get "
            f"{CIFAR100.url} by hand and unpack it in {root}, or name another --data-root, or try --dataset synthetic"
        ) from e
    return [(split.data, np.array(split.targets, dtype=np.int64)) for split in splits]


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Make `folder` and lock it, so that the first of many runs downloads and the others find what it got."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# -------------------------------------------------------------------------------------------------------- synthetic


def synthetic(n: int, which: str) -> tuple[np.ndarray, np.ndarray]:
    """Generate n images of 100 classes, always the same ones: (n, 32, 32, 3) uint8, and (n,) int64 labels.

    which: "train" or "test". The first images of a longer set are those of a shorter one. The classes are 20 groups of
    5 similar ones, each a smooth color pattern. An image is the pattern of its class turned, scaled, shifted and
    dimmed, blended with that of a random other class, and covered by noise. Our networks differ in accuracy on it.
    """
    patterns = synthetic_patterns()
    stream = ("train", "test").index(which)
    chunks = [synthetic_chunk(patterns, 1000, (stream, i)) for i in range(math.ceil(n / 1000))]
    images = np.concatenate([images for images, _ in chunks])
    labels = np.concatenate([labels for _, labels in chunks])
    return images[:n], labels[:n]


def synthetic_chunk(patterns: Tensor, n: int, seed: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Generate n images, a multiple of 100, and their labels. Every hundred images hold each class once."""
    rng = np.random.default_rng(seed)
    labels = rng.permuted(np.tile(np.arange(NUM_CLASSES), (n // NUM_CLASSES, 1)), axis=1).ravel()
    own = random_affine(patterns[labels], rng)
    other = random_affine(patterns[rng.integers(0, NUM_CLASSES, n)], rng)
    share = torch.from_numpy(rng.uniform(0, 0.35, (n, 1, 1, 1)).astype(np.float32))
    contrast = torch.from_numpy(rng.uniform(0.5, 1.2, (n, 1, 1, 1)).astype(np.float32))
    noise = torch.from_numpy(rng.standard_normal((n, 3, SIZE, SIZE), dtype=np.float32))
    pixels = 128 + 55 * contrast * torch.lerp(own, other, share) + 12 * noise
    return pixels.clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy(), labels


def synthetic_patterns() -> Tensor:
    """Generate what the images of each class have in common: (100, 3, 48, 48) float32 of unit variance."""
    rng = np.random.default_rng(100)

    def smooth(count: int, cells: int) -> Tensor:
        grid = torch.from_numpy(rng.standard_normal((count, 3, cells, cells), dtype=np.float32))
        return F.interpolate(grid, size=(48, 48), mode="bicubic", align_corners=True)

    patterns = smooth(20, 5).repeat_interleave(5, dim=0) + smooth(NUM_CLASSES, 8)
    return patterns / patterns.std()


def random_affine(patterns: Tensor, rng: np.random.Generator) -> Tensor:
    """Cut a 32x32 window, turned, scaled and shifted at random, out of each pattern, (3, 48, 48)."""
    n = len(patterns)
    angle = rng.uniform(-0.5, 0.5, n)
    scale = rng.uniform(0.5, 0.8, n)
    shift = rng.uniform(-0.25, 0.25, (n, 2))
    cosine = scale * np.cos(angle)
    sine = scale * np.sin(angle)
    theta = np.stack([cosine, -sine, shift[:, 0], sine, cosine, shift[:, 1]], axis=1)
    theta = theta.reshape(n, 2, 3).astype(np.float32)
    grid = F.affine_grid(torch.from_numpy(theta), (n, 3, SIZE, SIZE), align_corners=False)
    return F.grid_sample(patterns, grid, padding_mode="reflection", align_corners=False)
