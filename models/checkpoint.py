"""Reading weights from disk: this project's own, and those that others released for the same networks.

No code in a file is run. Whatever is wrong with the content of a file ends in one CheckpointError.
"""

import hashlib
import io
import json
import re
import reprlib
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

KEYS = ("state_dict", "model", "net", "model_state_dict", "model_state")  # where a file may hold its weights
WRAPPERS = ("module", "_orig_mod")  # parts of a name that DataParallel and torch.compile add
NO_WEIGHTS = ("total_ops", "total_params", "n_averaged")  # left behind by profilers and weight averaging
COUNTER = "num_batches_tracked"  # old files lack it, and it has no effect at a fixed momentum
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32)
HARMLESS = """
    argparse.Namespace builtins.bytes numpy.dtype numpy.ndarray
    numpy.core.multiarray._reconstruct numpy.core.multiarray.scalar
    numpy._core.multiarray._reconstruct numpy._core.multiarray.scalar
    datetime.date datetime.datetime datetime.time datetime.timedelta datetime.timezone
    pathlib.PosixPath pathlib.WindowsPath pathlib.PurePosixPath pathlib.PureWindowsPath
    pathlib._local.PosixPath pathlib._local.WindowsPath pathlib._local.PurePosixPath pathlib._local.PureWindowsPath
""".split()  # what other projects save beside their weights

quote = reprlib.Repr()  # shortens what a file says and escapes its control characters, so that it can be printed
quote.maxstring = 60
quote.maxlist = 3


class CheckpointError(OSError):
    """A file does not hold the weights that it should. The message is one line."""


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint whose weights lie under one of KEYS, or which consists of weights alone.

    Returns what the file holds, with the weights as "state_dict" (name -> CPU tensor) and the file's "sha256". This
    project's checkpoints also have "arch", "kind", "epoch", "acc" and "settings".
    Raises CheckpointError, or another OSError where the system does not let us read the file.
    """
    path = Path(path)
    if not path.is_file():  # a pipe or a device could keep us waiting for ever
        raise CheckpointError(f"{path}: no such file")
    data = path.read_bytes()
    try:
        return unpickle(data)
    except MemoryError:
        raise
    except Exception as e:  # torch, zipfile and objects of a hostile file raise anything
        problem = f"not a checkpoint of torch.save, or a damaged one ({type(e).__name__}: {quote.repr(str(e))})"
        code = re.search(r"GLOBAL (\S+)", str(e))
        if isinstance(e, CheckpointError):
            problem = str(e)
        elif code:
            problem = f"holds {quote.repr(code[1])}, which could run code; save a model's state_dict() alone"
        raise CheckpointError(f"{path}: {problem}") from e


class Placeholder:
    """Stands for an object beside the weights, so that none of its own code runs."""

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        pass


def unpickle(data: bytes) -> dict[str, Any]:
    """Take the content of a file to the dict that read_checkpoint returns."""
    if data[8:10] == b'{"':
        raise CheckpointError("a safetensors file; write it anew: torch.save(safetensors.torch.load_file(FILE), NEW)")
    if data.startswith(b"PK\3\4"):  # files of torch before 1.6 are no zip
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            folder = 16  # torch takes a record that is marked so to be empty
            if archive.testzip() or any(record.external_attr & folder for record in archive.infolist()):
                raise zipfile.BadZipFile("a record is altered")  # torch does not check the CRCs
    with torch.serialization.safe_globals([(Placeholder, name) for name in HARMLESS]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise CheckpointError(f"holds no weights but a {type(content).__name__}; save a model's state_dict()")
    sha256 = hashlib.sha256(data).hexdigest()
    for key in KEYS:
        if isinstance(content.get(key), dict):
            settings = json.loads(json.dumps(content.get("settings"), default=str, skipkeys=True))
            return {**content, "state_dict": weights_in(content[key]), "sha256": sha256, "settings": settings}
    return {"state_dict": weights_in(content), "sha256": sha256}


def weights_in(state_dict: dict[Any, Any]) -> dict[str, torch.Tensor]:
    """Check the entries, and drop those that are no weights."""
    weights = {}
    for key, tensor in state_dict.items():
        if not (isinstance(key, str) and torch.is_tensor(tensor) and tensor.dtype in DTYPES and tensor.is_cpu):
            raise CheckpointError(f"{quote.repr(key)} is no weight; weights are looked for under {', '.join(KEYS)}")
        if key.rpartition(".")[2] not in NO_WEIGHTS:
            weights[key] = tensor
    if not weights:
        raise CheckpointError("holds no weights")
    return weights


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], arch: str) -> None:
    """Load all weights of the network `arch`, also those that another project named differently."""
    own = model.state_dict()
    if weights.keys() - own.keys():
        weights = unwrapped(weights)
    if weights.keys() - own.keys() and (renamed := rename_by_order(weights, own)):
        weights = renamed
        print(f"the weights have other names: loaded by order, all {len(weights)} entries agree with {arch} in shape")
    missing = [name for name in own if name not in weights and not name.endswith(COUNTER)]
    foreign = [name for name in weights if name not in own]
    reshaped = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    if missing or foreign or reshaped:
        names = f"missing {quote.repr(missing)}, foreign {quote.repr(foreign)}, of another shape {quote.repr(reshaped)}"
        raise CheckpointError(f"not the weights of {arch}: {names}")
    model.load_state_dict(weights, strict=False)
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{name} is not finite (nan or inf); take a checkpoint from before that happened")
        if name.endswith("running_var") and (tensor < 0).any():
            raise CheckpointError(f"{name} holds a variance below zero")


def unwrapped(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Remove the parts of names that wrappers added, at any depth."""
    renamed = {}
    for key, tensor in weights.items():
        name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
        if name in renamed:
            raise CheckpointError(f"holds two entries called {quote.repr(name)}")
        renamed[name] = tensor
    return renamed


def rename_by_order(weights: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """Give another project's weights our names, if both lists agree entry by entry in shape and in what names say."""
    if not any(name.endswith(COUNTER) for name in weights):
        own = {name: tensor for name, tensor in own.items() if not name.endswith(COUNTER)}
    if len(own) != len(weights):
        return None
    roles = {name.rpartition(".")[2] for name in own}  # weight, bias, running_mean, ...
    renamed = {}
    for theirs, ours in zip(weights, own):
        role = theirs.rpartition(".")[2]
        other_role = role in roles and role != ours.rpartition(".")[2]
        misplaced = theirs in own and theirs != ours
        if other_role or misplaced or weights[theirs].shape != own[ours].shape:
            return None
        renamed[ours] = weights[theirs]
    return renamed
