"""A plain training loop of the method, as repositories of this field usually write it.

speed.py measures our program against it, and tests/test_speed.py checks that both compute the same.

It runs eagerly, in fp32, with channels first. A DataLoader with three worker processes puts PIL images one by one
through torchvision's transforms, and each statistic of each step is pulled to the host. It is better than usual in one
respect: KD makes no scoring pass. On a GPU, torch's defaults let its convolutions use TF32.
"""

import warnings
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, ToTensor

from dataset import MEAN, PADDING, SIZE, STD

WORKERS = 3
TRANSFORM = Compose([RandomCrop(SIZE, padding=PADDING), RandomHorizontalFlip(), ToTensor(), Normalize(MEAN, STD)])


class PlainImages(Dataset):
    """images: (n, 32, 32, 3) uint8. labels: (n,) int64."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return TRANSFORM(Image.fromarray(self.images[i])), int(self.labels[i])


def endless_batches(
    images: PlainImages, batch_size: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Whole batches of images and labels on the device, one epoch after the other."""
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores
    loader = DataLoader(
        images,
        batch_size,
        shuffle=True,
        num_workers=WORKERS,
        pin_memory=device.type == "cuda",
        drop_last=True,
        multiprocessing_context="fork",  # speed.py's spawned processes would spawn them, which takes far longer
    )
    while True:
        for x, y in loader:
            yield x.to(device), y.to(device)


class PlainDistiller:
    """Trains a student by UNIX with entropy (args.strategy 3) or by KD (0). args: the flags of student_v0.py."""

    def __init__(self, student: nn.Module, teacher: nn.Module, args: Namespace):
        self.student = student.train()
        self.teacher = teacher.eval()
        self.args = args
        self.rng = np.random.default_rng(args.seed)
        self.optimizer = torch.optim.SGD(student.parameters(), args.lr, args.momentum, weight_decay=args.weight_decay)
        self.statistics = defaultdict(list)  # name: its value in each step

    def log(self, name: str, value: torch.Tensor) -> None:
        self.statistics[name].append(value.item())

    def step(self, images: torch.Tensor, labels: torch.Tensor, *mixing: torch.Tensor) -> None:
        """Train on a batch. mixing: lambda, (), and the partners, (n,) int64; they are drawn if they are not given."""
        args = self.args
        rank = torch.arange(len(images), device=images.device)
        lam, partner = mixing or (self.rng.beta(1, 1), torch.randperm(len(images), device=images.device))

        order = rank
        if args.strategy:
            with torch.no_grad():
                uncertainty = entropy(self.student(images).softmax(1))
            order = uncertainty.argsort(descending=True)
            self.log("uncertainty", uncertainty.mean())
        mask = lam * torch.sigmoid(args.w * (rank - (2 * args.b - 1) / 2) / args.batch_size)
        kept = order[: args.k]
        weight = mask[: args.k].view(-1, 1, 1, 1)
        mixed = (1 - weight) * images[kept] + weight * images[partner[: args.k]]

        with torch.no_grad():
            target = self.teacher(mixed)
        logits = self.student(mixed)
        log_p = F.log_softmax(logits / args.T, 1)
        loss = args.kd_weight * args.T**2 * F.kl_div(log_p, F.softmax(target / args.T, 1), reduction="batchmean")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

        self.log("loss", loss)
        self.log("acc", (logits.argmax(1) == labels[kept]).float().mean())
        for name, p in (("teacher", target.softmax(1)), ("student", logits.softmax(1))):
            first, second = p.topk(2, dim=1).values.T
            self.log(f"{name} confidence", first.mean())
            self.log(f"{name} margin", (first - second).mean())
            self.log(f"{name} entropy", entropy(p).mean())


def entropy(p: torch.Tensor) -> torch.Tensor:
    """(n,) entropies in nats of (n, C) probabilities."""
    return -(p * p.clamp(min=1e-30).log()).sum(1)
