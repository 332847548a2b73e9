"""CIFAR-100 and a generated stand-in, held on the device as uint8; augmentation and batches are tensor work there.

What is random follows from (seed, epoch) alone, so a run can be repeated, resumed or shared between processes without
keeping any generator's state.
"""

import fcntl
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
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


def generator(seed, epoch, stream):
    """The numpy Generator of one stream in one epoch (0 for what is drawn once a run)."""
    return np.random.default_rng((seed, epoch, stream))


class DataError(OSError):
    """The data cannot be had. The message is one line and says what to do."""


# ---------------------------------------------------------------------------------------------------- augmentation


def augment(images, offsets, flips):
    """Torchvision's RandomCrop(32, padding=4) and RandomHorizontalFlip, batched: (n, 32, 32, 3) uint8 to the same.

    offsets: (n, 2) int64 in 0..8, row and column of the crop in the padded image. flips: (n,) bool, after cropping.
    """
    padded = F.pad(images, (0, 0, PADDING, PADDING, PADDING, PADDING))
    span = torch.arange(SIZE, device=images.device)
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    rows = offsets[:, 0, None] + span
    columns = offsets[:, 1, None] + torch.where(flips[:, None], SIZE - 1 - span, span)
    return padded[sample, rows[:, :, None], columns[:, None, :]]


def normalize(images, mean, std):
    """(n, 32, 32, 3) uint8 -> (n, 3, 32, 32) float32, channels last in memory, (x / 255 - mean) / std per channel."""
    return (images.float().div_(255).sub_(mean).div_(std)).permute(0, 3, 1, 2)


def from_picture(picture):
    """A PIL image of any size as a network's input: (1, 3, 32, 32) float32, scaled and normalized."""
    pixels = torch.from_numpy(np.array(picture.convert("RGB").resize((SIZE, SIZE))))
    return normalize(pixels[None], torch.tensor(MEAN), torch.tensor(STD))


# ---------------------------------------------------------------------------------------------------------- splits


@dataclass
class Split:
    """A set of images on one device."""

    images: torch.Tensor  # (n, 32, 32, 3) uint8
    labels: torch.Tensor  # (n,) int64
    indices: torch.Tensor  # (n,) int64: each image's place in the data set's own order

    def __post_init__(self):
        self.mean = torch.tensor(MEAN, device=self.images.device)
        self.std = torch.tensor(STD, device=self.images.device)

    def __len__(self):
        return len(self.labels)

    def draw_epoch(self, batch_size, seed, epoch):
        """An epoch's order, crops and flips: for each step what load_batch() takes. The last one has the images left."""
        rng, n = generator(seed, epoch, BATCHES), len(self)
        drawn = rng.permutation(n), rng.integers(0, 2 * PADDING + 1, (n, 2)), rng.random(n) < 0.5
        return list(zip(*(torch.from_numpy(array).to(self.images.device).split(batch_size) for array in drawn)))

    def load_batch(self, chosen, offsets, flips):
        """(images, labels, indices) of the (m,) int64 positions `chosen`, (m, 3, 32, 32) float32. See augment."""
        images = self.normalized(augment(self.images[chosen], offsets, flips))
        return images, self.labels[chosen], self.indices[chosen]

    def normalized(self, images):
        """Some of this split's images, (m, 32, 32, 3) uint8, as a network's input."""
        return normalize(images, self.mean, self.std)

    def __getitem__(self, chosen):
        """The Split of the images at int64 positions or a slice `chosen`."""
        return Split(self.images[chosen], self.labels[chosen], self.indices[chosen])


def held_out_mask(labels, n, seed):
    """Which n images to hold out, each class in its share: a (N,) bool array. labels: (N,) numpy ints.

    Every image gets its place within its class, in random order, as a fraction of the class; the n smallest go.
    """
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
    num_train_images: int  # images of the training set before any were held out: the range of `train.indices`

    def hold_out(self, n, seed):
        """The Data with n training images, stratified, kept apart as `val`; as it is for n = 0."""
        if not n:
            return self
        mask = torch.from_numpy(held_out_mask(self.train.labels.cpu().numpy(), n, seed)).to(self.train.labels.device)
        return Data(self.train[~mask], self.train[mask], self.val, self.num_train_images)


def load(dataset, root, device, train_limit=None, val_limit=None):
    """The Data of a run: dataset "cifar100" (from `root`, downloaded there if need be) or "synthetic".

    train_limit, val_limit: only the first so many training and test images. Raises DataError.
    """
    if dataset == "synthetic":
        parts = synthetic(train_limit or 50_000, "train"), synthetic(val_limit or 10_000, "test")
    else:
        parts = cifar100(root)
    train, test = (
        Split(*(torch.from_numpy(array[:limit]).to(device) for array in (images, labels, np.arange(len(labels)))))
        for (images, labels), limit in zip(parts, (train_limit, val_limit))
    )
    return Data(train, test, None, len(train))


# -------------------------------------------------------------------------------------------------------- CIFAR-100


def cifar100_root(root):
    """The absolute Path of the folder that holds cifar-100-python/, which --data-root may name itself."""
    root = Path(root).absolute()
    named_itself = root.name == CIFAR100.base_folder and not (root / CIFAR100.base_folder).exists()
    return root.parent if named_itself else root


def cifar100(root):
    """[(images, labels) of training, of test], (n, 32, 32, 3) uint8 and (n,) int64. Downloads what is missing."""
    root = cifar100_root(root)
    folder = root / CIFAR100.base_folder
    missing = [path for path in (root, *root.parents) if not path.exists()]
    try:
        with one_at_a_time(root):
            train, test = (CIFAR100(root, train=train, download=True) for train in (True, False))  # checks md5
    except Exception as e:  # torchvision lets URLError, HTTPError, RuntimeError, PermissionError, ... through
        state = "incomplete, altered or unreadable" if folder.exists() else "missing"
        for path in missing:  # made by torchvision for the download
            with suppress(OSError):
                path.rmdir()
        raise DataError(
            f"CIFAR-100 in {folder} is {state}, and downloading it failed ({(str(e) or repr(e)).splitlines()[0]}). Get "
            f"{CIFAR100.url} by hand and unpack it in {root}, or name another --data-root, or try --dataset synthetic"
        ) from e
    return [(split.data, np.array(split.targets, dtype=np.int64)) for split in (train, test)]


@contextmanager
def one_at_a_time(folder):
    """Make `folder`; of many runs that start together the first downloads, and the others find what it got."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# -------------------------------------------------------------------------------------------------------- synthetic


def synthetic(n, which):
    """n generated images of 100 classes, always the same: (n, 32, 32, 3) uint8 and (n,) int64 labels.

    which: "train" or "test". The first images of a longer set are those of a shorter one. Made so that our networks
    differ on it: 20 groups of 5 look-alike classes, each a smooth color pattern; an image is its class's pattern
    turned, scaled, shifted and dimmed, blended with a random other class's and covered by noise.
    """
    patterns, chunk, stream = synthetic_patterns(), 1000, ("train", "test").index(which)
    parts = [synthetic_chunk(patterns, chunk, stream, i) for i in range(-(-n // chunk))]
    return tuple(np.concatenate(column)[:n] for column in zip(*parts))


def synthetic_chunk(patterns, n, *seed):
    """n images (a multiple of 100) and their labels; every hundred holds each class once."""
    rng = np.random.default_rng(seed)
    labels = rng.permuted(np.tile(np.arange(NUM_CLASSES), (n // NUM_CLASSES, 1)), axis=1).ravel()
    own = random_affine(patterns[labels], rng)
    other = random_affine(patterns[rng.integers(0, NUM_CLASSES, n)], rng)
    share = torch.from_numpy(rng.uniform(0, 0.35, (n, 1, 1, 1)).astype(np.float32))
    contrast = torch.from_numpy(rng.uniform(0.5, 1.2, (n, 1, 1, 1)).astype(np.float32))
    noise = torch.from_numpy(rng.standard_normal((n, 3, SIZE, SIZE), dtype=np.float32))
    pixels = 128 + 55 * contrast * torch.lerp(own, other, share) + 12 * noise
    return pixels.clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy(), labels


def synthetic_patterns():
    """(100, 3, 48, 48) float32, about unit variance: what a class's images have in common."""
    rng = np.random.default_rng(100)

    def smooth(count, cells):
        grid = torch.from_numpy(rng.standard_normal((count, 3, cells, cells), dtype=np.float32))
        return F.interpolate(grid, size=(48, 48), mode="bicubic", align_corners=True)

    patterns = smooth(20, 5).repeat_interleave(5, dim=0) + smooth(NUM_CLASSES, 8)
    return patterns / patterns.std()


def random_affine(patterns, rng):
    """Each (3, 48, 48) pattern seen through its own 32x32 window: turned, scaled and shifted at random."""
    n = len(patterns)
    angle, scale = rng.uniform(-0.5, 0.5, n), rng.uniform(0.5, 0.8, n)
    shift = rng.uniform(-0.25, 0.25, (n, 2))
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    theta = np.stack([c, -s, shift[:, 0], s, c, shift[:, 1]], axis=1).reshape(n, 2, 3).astype(np.float32)
    grid = F.affine_grid(torch.from_numpy(theta), (n, 3, SIZE, SIZE), align_corners=False)
    return F.grid_sample(patterns, grid, padding_mode="reflection", align_corners=False)
