"""Reading weights from disk: ours, and those that others released for the same networks, however they wrote them.

`read_checkpoint` takes a file to named tensors, `fit` takes these to one network's own names.
"""

import io
import pickle
import re
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch

KEYS = ("state_dict", "model", "net", "model_state_dict", "model_state")  # where a file may hold its weights
WRAPPERS = ("module", "_orig_mod")  # parts of names that DataParallel and torch.compile add
NO_WEIGHTS = ("total_ops", "total_params", "n_averaged")  # left by profilers and by weight averaging
COUNTER = "num_batches_tracked"  # missing in old files, without effect at a fixed momentum


class CheckpointError(OSError):
    """A file that does not hold the weights it should. The message is one line and says what to do."""


# ---------------------------------------------------------------------------------------------------- file -> tensors


def read_checkpoint(path):
    """Read a checkpoint without running any code in it.

    Returns a dict with at least `state_dict` (name -> CPU tensor, without WRAPPERS in the names). Our own checkpoints
    also say `arch`, `epoch`, `acc` and the `settings` of their run. Weights lie under one of KEYS or are the whole file.
    Raises CheckpointError, or OSError where the file cannot be read at all.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    content = unpickle(path.read_bytes(), path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no weights but a {type(content).__name__}; save a model's state_dict()")
    content.pop("checksum", None)  # earlier versions of this project wrote one
    key = next((key for key in KEYS if isinstance(content.get(key), dict)), None)
    state_dict = content if key is None else content[key]
    others = [name for name, tensor in state_dict.items() if not is_weight(name, tensor)]
    if others or not state_dict:
        where = f"under {', '.join(KEYS)}" if key is None else f"alone under {key}"
        found = ", ".join(map(str, others[:8])) or "nothing"
        raise CheckpointError(f"{path}: holds no weights {where}; found {found}")
    return {**({} if key is None else content), "state_dict": unwrap(state_dict)}


class Placeholder:
    """Stands for an object beside the weights: keeps what it is made of, runs nothing."""

    def __init__(self, *args):
        self.args = args

    def __setstate__(self, state):
        self.state = state


def number(dtype, data):
    """Stands for numpy's `scalar`; dtype is a Placeholder, as numpy's own believes a file's flags, to a crash."""
    kind = dtype.state[1] + dtype.args[0]  # byte order and type, "<f8"
    return np.frombuffer(data, kind)[0] if kind[1] in "biufc" else Placeholder(kind, data)


HARMLESS = [
    *((Placeholder, f"datetime.{name}") for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *((Placeholder, f"pathlib.{local}{pure}{system}Path")
      for local in ("", "_local.") for pure in ("", "Pure") for system in ("", "Posix", "Windows")),
    *((Placeholder, name) for name in ("argparse.Namespace", "builtins.bytes", "numpy.dtype", "numpy.ndarray")),
    *((Placeholder, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]  # fmt: skip


def unpickle(data, path):
    """What torch.save wrote into a file with these bytes. Raises CheckpointError."""
    if path.suffix == ".safetensors" or data[8:10] == b'{"':
        how = f"torch.save(safetensors.torch.load_file({path.name!r}), 'best.pth')"
        raise CheckpointError(f"{path}: a safetensors file, which is not read here; convert it with {how}")
    try:
        # torch does not look at the CRCs itself. Files of torch before 1.6 are no zip.
        if data.startswith(b"PK\3\4") and zipfile.ZipFile(io.BytesIO(data)).testzip():
            raise zipfile.BadZipFile("CRC")
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as e:  # zipfile and torch report damage as RuntimeError, EOFError, KeyError, ValueError and others
        name = re.search(r"GLOBAL (\S+)", str(e)) if isinstance(e, pickle.UnpicklingError) else None
        what = f"not a checkpoint, or a damaged one ({type(e).__name__}); copy or download it again"
        if name:
            what = f"holds {name[1]}, which would run code, so nothing is loaded; save a model's state_dict() alone"
        raise CheckpointError(f"{path}: {what}") from e


def is_weight(name, tensor):
    dense = torch.is_tensor(tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
    return isinstance(name, str) and dense and not (tensor.is_quantized or tensor.is_nested)


def unwrap(state_dict):
    """Without the parts that wrappers add to names, at any depth, and without entries that are no weights."""
    plain = {}
    for name, tensor in state_dict.items():
        parts = [part for part in name.split(".") if part not in WRAPPERS]
        if parts and parts[-1] not in NO_WEIGHTS:
            plain[".".join(parts)] = tensor.detach()
    return plain


# -------------------------------------------------------------------------------------------------- tensors -> network


def num_classes(state_dict):
    """The class count of a network's state dict: the rows of its one matrix, the classifier (None without one)."""
    return next((tensor.shape[0] for tensor in state_dict.values() if tensor.ndim == 2), None)


def fit(state_dict, model, arch, path):
    """The weights under the names of `model`, complete and finite, as its load_state_dict takes them.

    Raises CheckpointError where they are not the weights of this network.
    """
    own = model.state_dict()
    state = fold_biases(state_dict, own)
    renamed = {} if state.keys() <= own.keys() else by_order(state, own)
    if renamed:
        print(f"{path}: other names than ours, but all {len(renamed)} entries agree with {arch} in order and shape")
    counters = {name: torch.zeros_like(tensor) for name, tensor in own.items() if role(name) == COUNTER}
    state = counters | (renamed or state)

    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    reshaped = [name for name in own if name in state and own[name].shape != state[name].shape]
    infinite = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    misfits = {"without": missing, "with a foreign": unknown, "with another shape of": reshaped}
    if misfits := [f"{what} {some(names)}" for what, names in misfits.items() if names]:
        raise CheckpointError(f"{path}: not the weights of {arch}, {', '.join(misfits)}; --teacher-arch names another")
    if infinite:
        raise CheckpointError(f"{path}: {some(infinite)} not finite (nan or inf); take a checkpoint from before")
    return state


def fold_biases(state_dict, own):
    """Where our convolutions have no bias: theirs, out of the mean of the batch norm that is registered right behind.

    The same function, for a batch norm that reads the convolution; so one beside it, not in another block.
    """
    state, names = dict(state_dict), [*state_dict, ""]
    for bias in conv_biases(state) if not conv_biases(own) else ():
        norm = module(names[names.index(bias) + 1])
        mean = f"{norm}.running_mean"
        if mean in state and module(norm) == module(module(bias)) and state[mean].shape == state[bias].shape:
            state[mean] = state[mean].float() - state.pop(bias).float()
    return state


def by_order(state, own):
    """Another project's weights under our names, {} where an entry differs in order, shape, or what its name tells."""
    counted = any(role(name) == COUNTER for name in state)
    ours = [name for name in own if counted or role(name) != COUNTER]
    roles = set(map(role, own))

    def agree(theirs, name):
        foreign = theirs not in own and (role(theirs) == role(name) or role(theirs) not in roles)
        return (theirs == name or foreign) and state[theirs].shape == own[name].shape

    return dict(zip(ours, state.values())) if len(ours) == len(state) and all(map(agree, state, ours)) else {}


def conv_biases(state):
    weights = ((name, state.get(f"{module(name)}.weight")) for name in state if role(name) == "bias")
    return [name for name, weight in weights if weight is not None and weight.ndim == 4]


def module(name):
    return name.rpartition(".")[0]


def role(name):
    return name.rpartition(".")[2]


def some(names):
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
