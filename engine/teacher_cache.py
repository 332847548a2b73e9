"""A teacher's logits of training images, kept in a file.

Crop and flip give an image 81 * 2 = 162 views, and a teacher in eval mode answers each view alike, whatever else is in
the batch. Ordinary distillation can therefore keep the answers. A run of 240 epochs meets 125 different views of an
image on average, and the next student of this teacher finds most of its views answered.
"""

import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dataset import NUM_CLASSES, PADDING, Split
from engine.device import Precision

OFFSETS = 2 * PADDING + 1
VIEWS = 2 * OFFSETS**2
BATCH = 500  # in eval mode any batch size gives the same result, up to rounding
CHECKED = 64  # views that are compared with the teacher's before the file is used


class TeacherCache:
    """Takes logits from a file, and asks the teacher only for the views that no run has met yet.

    path: of the file, (num_images, 162, 100) float16. It is sparse, with zeros where a view is missing, and 1.6 GB when
    it is full. Several runs may use it at once, because they write the same values. teacher: in eval mode, on the same
    device as the split. num_images: bounds split.indices. Raises OSError where the file cannot be written, or holds
    something else.
    """

    def __init__(self, path: Path, teacher: nn.Module, split: Split, num_images: int, precision: Precision):
        self.path = path
        self.teacher = teacher
        self.split = split
        self.precision = precision
        self.queries = 0  # views that the teacher was asked for
        self.checked = False
        shape = (num_images, VIEWS, NUM_CLASSES)
        size = 2 * math.prod(shape)
        path.touch()
        if path.stat().st_size == 0:
            os.truncate(path, size)
        if path.stat().st_size != size:
            raise self.foreign()
        self.saved = np.memmap(path, np.float16, "r", shape=shape)

    def foreign(self) -> OSError:
        return OSError(f"{self.path} does not hold this teacher's logits; delete it, and it is made anew")

    @torch.no_grad()
    def __call__(self, chosen: Tensor, offsets: Tensor, flips: Tensor) -> Tensor:
        """The (n, 100) float16 logits of n views, on the device of the split. Arguments: of Split.load_batch."""
        image = self.split.indices[chosen].cpu().numpy()
        view = (2 * (OFFSETS * offsets[:, 0] + offsets[:, 1]) + flips).cpu().numpy()
        logits = torch.from_numpy(self.saved[image, view])

        def ask(rows: Tensor) -> Tensor:
            asked = rows.to(chosen.device)
            images, _, _ = self.split.load_batch(chosen[asked], offsets[asked], flips[asked])
            self.queries += len(rows)
            with self.precision.autocast():
                return self.teacher(images).half().cpu()

        sound = (logits.isfinite() & (logits != 0)).all(1)  # a crash may have interrupted the writing of a view
        saved = sound.nonzero()[:CHECKED, 0]
        if not self.checked and len(saved):  # the network's code may have changed since
            error = (ask(saved).float() - logits[saved].float()).norm()
            if not error < 0.1 * logits[saved].float().norm():
                raise self.foreign()
        self.checked = True
        with self.path.open("r+b", buffering=0) as file:  # on a full disk a write to the memmap would kill the process
            for rows in (~sound).nonzero()[:, 0].split(BATCH):
                logits[rows] = ask(rows)
                for row in rows.tolist():
                    position = int(image[row] * VIEWS + view[row]) * 2 * NUM_CLASSES
                    try:
                        os.pwrite(file.fileno(), logits[row].numpy().tobytes(), position)
                    except OSError as e:
                        raise OSError(f"{self.path} could not be written ({e.strerror})") from e
        return logits.to(chosen.device)
