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
from torch import nn

from dataset import NUM_CLASSES, PADDING, Split
from engine.device import Precision

OFFSETS = 2 * PADDING + 1
VIEWS = 2 * OFFSETS**2
BATCH = 500  # in eval mode any batch size gives the same result, up to rounding


class CacheError(OSError):
    """The file of a TeacherCache cannot be used. The message is one line and says what to do."""


class TeacherCache:
    """Takes logits from the file, and asks the teacher only for the views that no run has met yet.

    path: of the file, (num_images, 162, 100) float16. It is sparse, with zeros where a view is missing, and 1.6 GB when
    it is full. Several runs may use it at once, because they write the same values.
    teacher: in eval mode on the device of the split, as images of which it is asked. num_images: see Split.indices.
    Raises CacheError for a file of another size, or on a full disk.
    """

    def __init__(self, path: Path, teacher: nn.Module, split: Split, num_images: int, precision: Precision):
        self.path = path
        self.teacher = teacher
        self.split = split
        self.precision = precision
        self.queries = 0  # views that the teacher was asked for
        shape = (num_images, VIEWS, NUM_CLASSES)
        size = 2 * math.prod(shape)
        path.touch()
        if path.stat().st_size == 0:
            os.truncate(path, size)
        if path.stat().st_size != size:
            raise CacheError(f"{path} does not have {size} bytes; delete it, and it is made anew")
        self.saved = np.memmap(path, np.float16, "r", shape=shape)

    @torch.no_grad()
    def __call__(self, chosen: torch.Tensor, offsets: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
        """The (n, 100) float16 logits of n views, on the device of the split. Arguments: of Split.load_batch."""
        image = self.split.indices[chosen].cpu().numpy()
        view = (2 * (OFFSETS * offsets[:, 0] + offsets[:, 1]) + flips).cpu().numpy()
        logits = torch.from_numpy(self.saved[image, view])
        sound = logits.isfinite() & (logits != 0)  # a crash may have interrupted the writing of a view anywhere
        missing = (~sound.all(1)).nonzero()[:, 0]
        with self.path.open("r+b", buffering=0) as file:  # on a full disk a write to the memmap would kill the process
            for rows in missing.split(BATCH):
                asked = rows.to(chosen.device)
                images, _, _ = self.split.load_batch(chosen[asked], offsets[asked], flips[asked])
                with self.precision.autocast():
                    logits[rows] = self.teacher(images).half().cpu()
                for row in rows.tolist():
                    position = int(image[row] * VIEWS + view[row]) * 2 * NUM_CLASSES
                    try:
                        os.pwrite(file.fileno(), logits[row].numpy().tobytes(), position)
                    except OSError as e:
                        raise CacheError(f"{self.path} could not be written ({e.strerror})") from e
        self.queries += len(missing)
        return logits.to(chosen.device)
