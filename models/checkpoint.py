"""Reading weights from disk: ours, and those that others released for the same networks, however they wrote them.

`read_checkpoint` takes a file to named tensors, `adapt` takes these to one network's own names.
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
WRAPPERS = ("module", "_orig_mod")  # parts of a name that DataParallel and torch.compile add
NO_WEIGHTS = ("total_ops", "total_params", "n_averaged")  # left by profilers and by weight averaging
COUNTER = "num_batches_tracked"  # missing in old files, without effect at a fixed momentum


class CheckpointError(OSError):
    """A file that does not hold the weights it should. The message is one line and says what to do."""


def read_checkpoint(path):
    """Read a checkpoint, whose weights lie under one of KEYS or are the file, without running any code in it.

    Returns a dict with at least `state_dict` (name -> CPU tensor, without WRAPPERS in the names); our own checkpoints
    also say `arch`, `epoch`, `acc` and the `settings` of their run. Raises CheckpointError, or OSError.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    content = unpickle(path.read_bytes(), path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no weights but a {type(content).__name__}; save a model's state_dict()")
    content.pop("checksum", None)  # earlier versions of this project wrote one
    key = next((key for key in KEYS if isinstance(content.get(key), dict)), None)
    state_dict, beside = (content, {}) if key is None else (content[key], content)
    others = [name for name, tensor in state_dict.items() if not is_weight(name, tensor)]
    if others or not state_dict:
        where = f"under {', '.join(KEYS)}" if key is None else f"alone under {key}"
        raise CheckpointError(f"{path}: holds no weights {where}; found {some(others) or 'nothing'}")
    return {**beside, "state_dict": unwrap(state_dict)}


class Placeholder:
    """Stands for an object beside the weights: keeps what it is made of, runs nothing."""

    def __init__(self, *args):
        self.args = args

    def __setstate__(self, state):
        self.state = state


def number(dtype, data):
    """Stands for numpy's `scalar`. dtype: a Placeholder; numpy's own believes a file's flags, up to a crash."""
    kind = dtype.state[1] + dtype.args[0]  # byte order and type, as in "<f8"
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
    """What torch.save wrote, from the bytes of a file. Raises CheckpointError."""
    if path.suffix == ".safetensors" or data[8:10] == b'{"':
        how = f"torch.save(safetensors.torch.load_file({path.name!r}), 'best.pth')"
        raise CheckpointError(f"{path}: a safetensors file, which is not read here; convert it with {how}")
    try:
        check_container(data)
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as e:  # zipfile and torch report damage as RuntimeError, EOFError, KeyError, ValueError and others
        what = f"not a checkpoint of torch.save, or a damaged one ({type(e).__name__}); copy or download it again"
        if isinstance(e, pickle.UnpicklingError) and (name := re.search(r"GLOBAL (\S+)", str(e))):
            what = f"holds {name[1]}, which would run code, so nothing is loaded; save a model's state_dict() alone"
        raise CheckpointError(f"{path}: {what}") from e


def check_container(data):
    """Raises where a CRC of a zip is wrong, at which torch does not look. Files of torch before 1.6 are no zip."""
    if data.startswith(b"PK\3\4"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            folder = 16  # a file so marked is empty to torch
            if any(info.external_attr & folder for info in archive.infolist()) or archive.testzip():
                raise zipfile.BadZipFile


def is_weight(name, tensor):
    if not isinstance(name, str) or not torch.is_tensor(tensor) or tensor.layout != torch.strided:
        return False
    real = tensor.is_floating_point() or tensor.dtype in (torch.int32, torch.int64)
    return real and not tensor.is_nested and not tensor.is_meta


def unwrap(state_dict):
    """Without the parts that wrappers add to names, at any depth, and without entries that are no weights."""
    named = (([part for part in name.split(".") if part not in WRAPPERS], state_dict[name]) for name in state_dict)
    return {".".join(parts): tensor for parts, tensor in named if parts and parts[-1] not in NO_WEIGHTS}


def num_classes(state_dict):
    """The class count of a network's state dict: the rows of its one matrix, the classifier (None without one)."""
    return next((tensor.shape[0] for tensor in state_dict.values() if tensor.ndim == 2), None)


def adapt(state_dict, model, arch, path):
    """The weights under the names of `model`, complete and finite. Raises CheckpointError."""
    own = model.state_dict()
    state = fold_biases(state_dict, own)
    if state.keys() - own.keys() and (renamed := by_order(state, own)):
        state = renamed
        print(f"{path}: not our names, so loaded by order: all {len(state)} entries agree with {arch} in shape")
    state = {name: torch.zeros_like(own[name]) for name in own if name.endswith(COUNTER)} | state

    misfits = {
        "without": [name for name in own if name not in state],
        "with foreign": [name for name in state if name not in own],
        "with another shape of": [name for name in own if name in state and own[name].shape != state[name].shape],
    }
    if told := ", ".join(f"{what} {some(names)}" for what, names in misfits.items() if names):
        raise CheckpointError(f"{path}: not the weights of {arch}, {told}; --teacher-arch names another network")
    if infinite := [name for name, tensor in state.items() if not tensor.float().isfinite().all()]:
        raise CheckpointError(f"{path}: not finite (nan or inf): {some(infinite)}; take a checkpoint from before")
    return state


def fold_biases(state_dict, own):
    """The same function, with the biases of convolutions, where ours have none, in the batch norms behind them."""
    state, names = dict(state_dict), [*state_dict, ""]
    for bias in conv_biases(state) if not conv_biases(own) else ():
        conv, norm = (name.rpartition(".")[0] for name in (bias, names[names.index(bias) + 1]))
        mean = f"{norm}.running_mean"
        siblings = conv.rpartition(".")[0] == norm.rpartition(".")[0]  # another block's would read a shortcut too
        if siblings and mean in state and state[mean].shape == state[bias].shape:
            state[mean] = state[mean].float() - state.pop(bias).float()
    return state


def conv_biases(state):
    weights = {name: state.get(name.removesuffix("bias") + "weight") for name in state if name.endswith(".bias")}
    return [name for name, weight in weights.items() if weight is not None and weight.ndim == 4]


def by_order(state, own):
    """Another project's weights under our names, {} where an entry differs in order, shape, or what its name tells."""
    counted = any(name.endswith(COUNTER) for name in state)
    ours = [name for name in own if counted or not name.endswith(COUNTER)]
    roles = {name.rpartition(".")[2] for name in own}

    def agree(theirs, name):
        told = {theirs.rpartition(".")[2]} & roles or {name.rpartition(".")[2]}
        named_alike = theirs == name or (theirs not in own and name.rpartition(".")[2] in told)
        return named_alike and state[theirs].shape == own[name].shape

    return dict(zip(ours, state.values())) if len(ours) == len(state) and all(map(agree, state, ours)) else {}


def some(names):
    return ", ".join(map(str, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
