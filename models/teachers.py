"""Finding a teacher's checkpoint, and reading names of folders."""

import os
import re
from pathlib import Path

from .checkpoint import CheckpointError
from .registry import model_dict

SUFFIX = re.compile(r"\.(pth|pth\.tar|pt|ckpt|th)$")  # the file names that this project and others give to checkpoints


def find_checkpoint(path: Path, word: str) -> Path:
    """Find the checkpoint in <path>/ckpt that is named `word`, or else the only one whose name contains it.

    A `path` that is a file is returned as it is. Raises CheckpointError where no file, or more than one, fits.
    """
    if path.is_file():
        return path
    folder = path / "ckpt"
    if not folder.is_dir():
        kinds = "the folder of a teacher's run, a folder with a downloaded ckpt/best.pth, or the file itself"
        raise CheckpointError(f"{folder}: no such folder; a teacher is {kinds}")
    names = sorted(file.name for file in folder.iterdir() if SUFFIX.search(file.name) and file.is_file())
    exact = [name for name in names if word in (name, SUFFIX.sub("", name))]
    matches = exact or [name for name in names if word in name]
    if not matches:
        raise CheckpointError(
            f"{folder}: no checkpoint is called {word}; there are: {', '.join(names) or 'none at all'}"
        )
    if len(matches) > 1:
        raise CheckpointError(f"{folder}: {word} has to name one checkpoint, it names several: {', '.join(matches)}")
    return folder / matches[0]


def teacher_name(path: Path) -> tuple[str, str]:
    """Return the name of the folder that a checkpoint belongs to, skipping ckpt/, and its own name without suffix."""
    folder = path.parent.parent if path.parent.name == "ckpt" else path.parent
    absolute = os.path.abspath(folder)  # noqa: PTH100  resolve() would follow links
    return Path(absolute).name, SUFFIX.sub("", path.name)


def arch_from_name(name: str) -> str | None:
    """Return the network that a folder's name says, as teacher_wrn_40_2 or teacher_vgg13_seed1 do, or None."""
    rest = name.removeprefix("teacher_") + "_"
    candidates = [arch for arch in model_dict if rest.startswith(f"{arch}_")]
    return max(candidates, key=len, default=None)
