"""How good a network is: means over an epoch, and a pass over a validation set."""

import torch
import torch.nn.functional as F

import processes
from dataset import NUM_CLASSES
from models import pooled_size
from speed import Replay


class Meters:
    """Means over an epoch. Sums stay on the device, each at its place in memory (see speed.Replay); the host asks for
    them all at once."""

    def __init__(self, device=None):
        self.device, self.sums, self.counts = device, {}, {}

    def add(self, stats):
        """stats: {name: (m,) tensor, one value a sample}. This is the device's half of adding, count() the host's."""
        totals = [values.detach().sum(dtype=torch.float64) for values in stats.values()]
        torch._foreach_add_([self.place(name) for name in stats], totals)

    def count(self, stats):
        for name, values in stats.items():
            self.counts[name] = self.counts.get(name, 0) + len(values)

    def means(self):
        """{name: mean}, with one synchronisation; a name that got no values has no mean."""
        names = [name for name in self.sums if self.counts.get(name)]
        sums = torch.stack([self.sums[name] for name in names]).tolist()
        return {name: total / self.counts[name] for name, total in zip(names, sums)}

    def combine(self):
        """Take in what the other processes have added: from here on these are the meters of all."""
        if processes.count() == 1:
            return
        states = processes.everyone(self.state())
        names = dict.fromkeys(name for sums, _ in states for name in sums)
        self.restart([{name: sum(part.get(name, 0) for part in parts) for name in names} for parts in zip(*states)])

    def state(self):
        """({name: sum}, {name: count}), as plain numbers."""
        sums = torch.stack(list(self.sums.values())).tolist() if self.sums else []
        return dict(zip(self.sums, sums)), self.counts

    def restart(self, state=None):
        """Begin at nothing, or at what state() gave."""
        sums, counts = state or ({}, {})
        self.counts = {**counts}
        for name in {**self.sums, **sums}:
            self.place(name).fill_(sums.get(name, 0))

    def place(self, name):
        """The () float64 tensor of a sum, which stays where it is."""
        if name not in self.sums:
            self.sums[name] = torch.zeros((), dtype=torch.float64, device=self.device)
        return self.sums[name]


def correct(logits, labels):
    """Top-1 hits in percent, (m,): their mean is the accuracy."""
    return (logits.argmax(1) == labels) * 100.0


class Evaluator:
    """Evaluates a network on a Split: mean cross-entropy, top-1 accuracy in percent, and the class centres.

    Calling it returns (loss, acc, centres): centres is (100, D) float32, the mean pooled feature of each class, nan
    for a class without an image in the split. The network is in eval mode afterwards.
    """

    BATCH = 500  # no batch norm is in train mode here, so the result is that of any other batch, up to rounding

    def __init__(self, model, split, cast):
        self.model, self.split, self.cast = model, split[processes.share()], cast
        self.device = split.images.device
        self.class_sizes = torch.bincount(split.labels, minlength=NUM_CLASSES)
        self.meters = Meters(self.device)
        self.classes = torch.arange(NUM_CLASSES, device=self.device)
        self.feature_sums = torch.zeros(NUM_CLASSES, pooled_size(model), device=self.device)
        self.add = Replay(self.add_batch, self.BATCH)

    def add_batch(self, images, labels):
        """Take in a batch. images: (m, 32, 32, 3) uint8."""
        with self.cast():
            features, logits = self.model(self.split.normalized(images), is_feat=True)
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
        stats = {"loss": losses, "acc": correct(logits, labels)}
        self.meters.add(stats)
        members = (labels == self.classes[:, None]).float()
        self.feature_sums.addmm_(members, features[-1].float())
        return stats

    @torch.no_grad()
    def __call__(self):
        processes.take_statistics(self.model)
        self.model.eval()
        self.meters.restart()
        self.feature_sums.zero_()
        for batch in zip(self.split.images.split(self.BATCH), self.split.labels.split(self.BATCH)):
            self.meters.count(self.add(*batch))
        self.meters.combine()
        processes.add_up(self.feature_sums)
        means = self.meters.means()
        return means["loss"], means["acc"], self.feature_sums / self.class_sizes[:, None]
