"""The plain loop: the method as repositories of this field usually run it, to measure against and to check against.

Eager, fp32, channels first; PIL images go one by one through torchvision's transforms in a DataLoader with 3 workers;
every statistic of every step is pulled to the host. In one thing it is better than usual: KD makes no scoring pass.
On a GPU, torch's defaults let its convolutions use TF32.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from dataset import MEAN, PADDING, SIZE, STD

WORKERS = 3
TRANSFORM = transforms.Compose(
    [
        transforms.RandomCrop(SIZE, padding=PADDING),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)


class Pictures(Dataset):
    """images: (n, 32, 32, 3) uint8 numpy. labels: (n,) ints."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return TRANSFORM(Image.fromarray(self.images[i])), int(self.labels[i])


def batches(images, labels, batch_size, device):
    """(images, labels) of whole batches on `device`, epoch after epoch, without end."""
    pictures, pinned = Pictures(images, labels), device.type == "cuda"
    loader = DataLoader(pictures, batch_size, shuffle=True, num_workers=WORKERS, pin_memory=pinned, drop_last=True)
    while True:
        for x, y in loader:
            yield x.to(device), y.to(device)


class PlainClassifier:
    """A teacher's training step."""

    def __init__(self, model, args):
        self.model, self.args = model.train(), args
        self.optimizer = torch.optim.SGD(model.parameters(), args.lr, args.momentum, weight_decay=args.weight_decay)
        self.statistics = {}  # {name: [its value in each step]}

    def log(self, name, value):
        self.statistics.setdefault(name, []).append(value.item())

    def step(self, images, labels):
        logits = self.model(images)
        self.update(F.cross_entropy(logits, labels), logits, labels)

    def update(self, loss, logits, labels):
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.log("loss", loss)
        self.log("acc", (logits.argmax(1) == labels).float().mean())


class PlainDistiller(PlainClassifier):
    """A student's training step: UNIX by entropy (args.strategy 3), or KD (0)."""

    def __init__(self, student, teacher, args):
        super().__init__(student, args)
        self.teacher, self.rng = teacher.eval(), np.random.default_rng(args.seed)

    def step(self, images, labels, lam=None, partner=None):
        """lam: (), partner: (n,): the step's mixing, drawn here where it is not given."""
        args, place = self.args, torch.arange(len(images), device=images.device)
        lam = self.rng.beta(1, 1) if lam is None else lam
        partner = torch.randperm(len(images), device=images.device) if partner is None else partner
        rank = place
        if args.strategy:
            with torch.no_grad():
                uncertainty = entropy(self.model(images).softmax(1))
            rank = uncertainty.argsort(descending=True)
            self.log("uncertainty", uncertainty.mean())
        mask = lam * torch.sigmoid(args.w * (place - (2 * args.b - 1) / 2) / args.batch_size)
        kept, partner, mask = rank[: args.k], partner[: args.k], mask[: args.k].view(-1, 1, 1, 1)
        mixed = (1 - mask) * images[kept] + mask * images[partner]
        with torch.no_grad():
            target = self.teacher(mixed)
        logits = self.model(mixed)
        log_p = F.log_softmax(logits / args.T, 1)
        loss = args.kd_weight * args.T**2 * F.kl_div(log_p, F.softmax(target / args.T, 1), reduction="batchmean")
        self.update(loss, logits, labels[kept])
        for name, of in (("teacher", target), ("student", logits)):
            p = of.softmax(1)
            top = p.topk(2, dim=1).values
            self.log(f"{name} confidence", top[:, 0].mean())
            self.log(f"{name} margin", (top[:, 0] - top[:, 1]).mean())
            self.log(f"{name} entropy", entropy(p).mean())


def entropy(p):
    return -(p * p.clamp(min=1e-30).log()).sum(1)
