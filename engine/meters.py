"""How well a network does: means over an epoch, and a pass over a validation set."""

import torch
import torch.nn.functional as F

from dataset import NUM_CLASSES
from engine import distributed
from engine.compile import CUDAGraphed
from models import pooled_size


class Meters:
    """Means over an epoch. The sums stay on the device, each in its own buffer; reading them synchronizes once."""

    def __init__(self, device=None):
        self.device, self.sums, self.counts = device, {}, {}

    def add(self, stats):
        """The device's half of adding {name: (m,) tensor, one value a sample}; update_counts() is the host's."""
        totals = [values.detach().sum(dtype=torch.float64) for values in stats.values()]
        torch._foreach_add_([self.buffer(name) for name in stats], totals)

    def update_counts(self, stats):
        for name, values in stats.items():
            self.counts[name] = self.counts.get(name, 0) + len(values)

    def means(self):
        """{name: mean}; a name without values has none."""
        sums, counts = self.state()
        return {name: sums[name] / counts[name] for name in sums if counts.get(name)}

    def reduce(self):
        """Add in what the other processes have counted, so that these are the meters of all."""
        if distributed.world_size() == 1:
            return
        states = distributed.all_gather_object(self.state())
        names = dict.fromkeys(name for sums, _ in states for name in sums)
        self.reset([{name: sum(part.get(name, 0) for part in parts) for name in names} for parts in zip(*states)])

    def state(self):
        """({name: sum}, {name: count}), plain numbers."""
        sums = torch.stack(list(self.sums.values())).tolist() if self.sums else []
        return dict(zip(self.sums, sums)), self.counts

    def reset(self, state=None):
        """Start from nothing, or from what state() returned."""
        sums, counts = state or ({}, {})
        self.counts = {**counts}
        for name in {**self.sums, **sums}:
            self.buffer(name).fill_(sums.get(name, 0))

    def buffer(self, name):
        """The () float64 tensor of a sum, which keeps its memory (see engine.compile)."""
        if name not in self.sums:
            self.sums[name] = torch.zeros((), dtype=torch.float64, device=self.device)
        return self.sums[name]


def correct(logits, labels):
    """(m,) 100 where the largest logit is the label's, else 0: the mean is top-1 accuracy in percent."""
    return (logits.argmax(1) == labels) * 100.0


class Evaluator:
    """Evaluates a network on a Split, which the processes share out.

    Calling it returns (loss, acc, centers): mean cross-entropy, top-1 in percent, and the (100, D) float32 mean pooled
    feature of each class, nan for a class without an image. Leaves the network in eval mode.
    """

    BATCH = 500  # without batch norm in train mode any batch size gives the same result, up to rounding

    def __init__(self, model, split, autocast):
        self.model, self.split, self.autocast = model, split[distributed.rank() :: distributed.world_size()], autocast
        device = split.images.device
        self.class_sizes = torch.bincount(split.labels, minlength=NUM_CLASSES)
        self.meters = Meters(device)
        self.classes = torch.arange(NUM_CLASSES, device=device)
        self.feature_sums = torch.zeros(NUM_CLASSES, pooled_size(model), device=device)
        self.add = CUDAGraphed(self.add_batch, self.BATCH)

    def add_batch(self, images, labels):
        """images: (m, 32, 32, 3) uint8."""
        with self.autocast():
            features, logits = self.model(self.split.normalized(images), is_feat=True)
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
        stats = {"loss": losses, "acc": correct(logits, labels)}
        self.meters.add(stats)
        members = (labels == self.classes[:, None]).float()
        self.feature_sums.addmm_(members, features[-1].float())
        return stats

    @torch.no_grad()
    def __call__(self):
        distributed.broadcast_buffers(self.model)
        self.model.eval()
        self.meters.reset()
        self.feature_sums.zero_()
        for batch in zip(self.split.images.split(self.BATCH), self.split.labels.split(self.BATCH)):
            self.meters.update_counts(self.add(*batch))
        self.meters.reduce()
        distributed.all_reduce_(self.feature_sums)
        means = self.meters.means()
        return means["loss"], means["acc"], self.feature_sums / self.class_sizes[:, None]
