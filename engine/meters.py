"""How well a network does: means over an epoch, and a pass over a set of images."""

import torch
import torch.nn.functional as F
from torch import nn

from dataset import NUM_CLASSES, Split
from engine.compile import CUDAGraphed
from engine.device import Precision
from models import pooled_size


class Meters:
    """Means over an epoch. Sums and counts stay on the device; reading them synchronizes once."""

    def __init__(self, device: torch.device | None = None):
        self.device = device
        self.buffers = {}  # name: (2,) float64, a sum and its count; keeps its address (see engine.compile)

    def add(self, stats: dict[str, torch.Tensor]) -> None:
        """Take in (m,) tensors, one value a sample."""
        for name in stats:
            if name not in self.buffers:
                self.buffers[name] = torch.zeros(2, dtype=torch.float64, device=self.device)
        buffers = [self.buffers[name] for name in stats]
        totals = [values.detach().sum(dtype=torch.float64) for values in stats.values()]
        torch._foreach_add_([buffer[0] for buffer in buffers], totals)
        torch._foreach_add_([buffer[1] for buffer in buffers], [float(len(values)) for values in stats.values()])

    def means(self) -> dict[str, float]:
        """The mean of each name. A name without values has none."""
        if not self.buffers:
            return {}
        sums = zip(self.buffers, torch.stack(list(self.buffers.values())).tolist())
        return {name: total / count for name, (total, count) in sums if count}

    def reset(self) -> None:
        """Start from nothing."""
        for buffer in self.buffers.values():
            buffer.zero_()


def correct(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(m,) 100 where the largest of the (m, C) logits is the label's, else 0. The mean is top-1 accuracy in percent."""
    return (logits.argmax(1) == labels) * 100.0


class Evaluator:
    """Evaluates a network on a Split. Leaves the network in eval mode."""

    BATCH = 500  # in eval mode any batch size gives the same result, up to rounding

    def __init__(self, model: nn.Module, split: Split, precision: Precision):
        self.model = model
        self.split = split
        self.precision = precision
        device = split.images.device
        self.meters = Meters(device)
        self.classes = torch.arange(NUM_CLASSES, device=device)
        self.class_sizes = torch.bincount(split.labels, minlength=NUM_CLASSES)
        self.feature_sums = torch.zeros(NUM_CLASSES, pooled_size(model), device=device)
        self.graphed_add = CUDAGraphed(self.add_batch, self.BATCH)

    def add_batch(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Take in a batch. images: (m, 32, 32, 3) uint8. labels: (m,) int64."""
        with self.precision.autocast():
            features, logits = self.model(self.split.normalized(images), is_feat=True)
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
        self.meters.add({"loss": losses, "acc": correct(logits, labels)})
        members = (labels == self.classes[:, None]).float()
        self.feature_sums.addmm_(members, features[-1].float())

    @torch.no_grad()
    def __call__(self) -> tuple[float, float, torch.Tensor]:
        """Returns (loss, acc, centers).

        loss: mean cross-entropy. acc: top-1 in percent. centers: (100, D) float32, the mean pooled feature of each
        class, nan for a class without an image.
        """
        self.model.eval()
        self.meters.reset()
        self.feature_sums.zero_()
        for batch in zip(self.split.images.split(self.BATCH), self.split.labels.split(self.BATCH)):
            self.graphed_add(*batch)
        means = self.meters.means()
        return means["loss"], means["acc"], self.feature_sums / self.class_sizes[:, None]
