"""Reading weights from disk: ours, and those that other projects released for the same networks."""

import hashlib
import io
import pickle
import warnings
from pathlib import Path

import numpy as np
import torch


class CheckpointError(OSError):
    """A file that does not hold the weights it should. The message is one line and says what to do."""


number = np.float64(0).__reduce__()[0]  # what a pickled numpy number is made by; its module's name has changed
NUMPY_NUMBERS = [
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float32", "float64", "int64")),
    (number, "numpy.core.multiarray.scalar"),
    (number, "numpy._core.multiarray.scalar"),
]
"""Harmless objects that released checkpoints hold beside their weights: accuracies and epochs as numpy numbers."""


def read_checkpoint(path):
    """Read a checkpoint without running any code in it.

    Returns a dict with at least `state_dict` (name -> CPU tensor). Our own checkpoints also say `arch`, `epoch`, `acc`
    and the `settings` of their run. Weights may lie under `state_dict`, under `model` (as other projects release
    them) or be the whole file; a `module.` before every name (left by DataParallel) is taken off.
    Raises CheckpointError, or OSError where the file cannot be read at all.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    file = io.BytesIO(path.read_bytes())
    try:
        with torch.serialization.safe_globals(NUMPY_NUMBERS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError as e:
        if "Unsupported global" in str(e) or "GLOBAL" in str(e):
            raise CheckpointError(f"{path}: holds more than weights (objects that would run code), not loaded") from e
        raise CheckpointError(f"{path}: not a checkpoint, or a damaged one") from e
    except Exception as e:  # torch reports damage as RuntimeError, EOFError, KeyError, ValueError and others
        raise CheckpointError(f"{path}: not a checkpoint, or a damaged one ({type(e).__name__})") from e

    content = content if isinstance(content, dict) else {}
    if "checksum" in content and content.pop("checksum") != checksum(content):
        raise CheckpointError(f"{path}: a damaged checkpoint (its content does not have its checksum)")
    state_dict = next((content[key] for key in ("state_dict", "model") if key in content), content)
    if not isinstance(state_dict, dict) or not state_dict or not all(map(is_weight, state_dict.items())):
        raise CheckpointError(f"{path}: holds no weights (neither `state_dict` nor `model`)")
    if all(name.startswith("module.") for name in state_dict):
        state_dict = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    extra = {} if state_dict is content else content
    return {**extra, "state_dict": state_dict}


def is_weight(item):
    name, tensor = item
    return isinstance(name, str) and torch.is_tensor(tensor) and tensor.layout == torch.strided


def checksum(content):
    """SHA-256 of what a checkpoint holds: dicts, lists, tensors and plain values, in their order."""
    digest = hashlib.sha256()

    def add(value):
        if torch.is_tensor(value):
            add((str(value.dtype), *value.shape))
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        elif isinstance(value, dict):
            digest.update(b"{")
            for key, entry in value.items():
                add(key)
                add(entry)
        elif isinstance(value, (list, tuple)):
            digest.update(b"[")
            for entry in value:
                add(entry)
        else:
            digest.update(repr(value).encode())
        digest.update(b",")

    add(content)
    return digest.hexdigest()


def num_classes(state_dict):
    """The class count of a network's state dict: the rows of its one matrix, the classifier (None without one)."""
    return next((tensor.shape[0] for tensor in state_dict.values() if tensor.ndim == 2), None)


def load_strict(model, state_dict, arch, path):
    """model.load_state_dict(strict=True) that says in one line what does not fit. Raises CheckpointError."""
    own = model.state_dict()
    missing = [name for name in own if name not in state_dict]
    unknown = [name for name in state_dict if name not in own]
    reshaped = [name for name in own if name in state_dict and own[name].shape != state_dict[name].shape]
    for what, names in (("without", missing), ("with a foreign", unknown), ("with another shape of", reshaped)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"{path}: not the weights of {arch}, {what} {names[0]}{more}")
    model.load_state_dict(state_dict)
