"""How well a network does: means over an epoch, and a pass over a validation set."""

import torch
import torch.nn.functional as F

from dataset import NUM_CLASSES
from engine import distributed
from engine.compile import CUDAGraphed
from models import pooled_size


class Meters:
    """Means over an epoch. Sums and counts stay on the device, each in its buffer; reading them synchronizes once."""

    def __init__(self, device=None):
        self.device, self.buffers = device, {}

    def add(self, stats):
        """stats: {name: (m,) tensor, one value a sample}."""
        buffers = [self.buffer(name) for name in stats]
        totals = [values.detach().sum(dtype=torch.float64) for values in stats.values()]
        torch._foreach_add_([buffer[0] for buffer in buffers], totals)
        torch._foreach_add_([buffer[1] for buffer in buffers], [float(len(values)) for values in stats.values()])

    def means(self):
        """{name: mean}; a name without values has none."""
        return {name: total / count for name, (total, count) in self.state().items() if count}

    def reduce(self):
        """Add what the other processes have counted, under the same names, so that these are the meters of all."""
        if self.buffers and distributed.world_size() > 1:
            buffers = [self.buffers[name] for name in sorted(self.buffers)]
            reduced = torch.stack(buffers)
            distributed.all_reduce_(reduced)
            torch._foreach_copy_(buffers, list(reduced))

    def state(self):
        """{name: [sum, count]}, plain numbers."""
        return dict(zip(self.buffers, torch.stack(list(self.buffers.values())).tolist())) if self.buffers else {}

    def reset(self, state=None):
        """Start from nothing, or from what state() returned."""
        state = state or {}
        for name in {**self.buffers, **state}:
            self.buffer(name).copy_(torch.tensor(state.get(name, [0.0, 0.0]), dtype=torch.float64))

    def buffer(self, name):
        """The (2,) float64 tensor of a sum and its count, which keeps its memory (see engine.compile)."""
        if name not in self.buffers:
            self.buffers[name] = torch.zeros(2, dtype=torch.float64, device=self.device)
        return self.buffers[name]


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
        self.meters.add({"loss": losses, "acc": correct(logits, labels)})
        members = (labels == self.classes[:, None]).float()
        self.feature_sums.addmm_(members, features[-1].float())

    @torch.no_grad()
    def __call__(self):
        distributed.broadcast_buffers(self.model)
        self.model.eval()
        self.meters.reset({"loss": [0, 0], "acc": [0, 0]})  # also where a process has no image
        self.feature_sums.zero_()
        for batch in zip(self.split.images.split(self.BATCH), self.split.labels.split(self.BATCH)):
            self.add(*batch)
        self.meters.reduce()
        distributed.all_reduce_(self.feature_sums)
        means = self.meters.means()
        return means["loss"], means["acc"], self.feature_sums / self.class_sizes[:, None]
