"""The 25 CIFAR networks of the distillation literature, and reading their weights.

    from models import model_dict
    model = model_dict["wrn_40_2"](num_classes=100)

Parameter names are those of the teachers that the field has released since 2019, so those load with `strict=True`.
"""

from .checkpoint import CheckpointError, read_checkpoint
from .network import pooled_size
from .registry import load_model, model_dict
from .teachers import arch_from_name, find_checkpoint, teacher_name

__all__ = [
    "CheckpointError",
    "arch_from_name",
    "find_checkpoint",
    "load_model",
    "model_dict",
    "pooled_size",
    "read_checkpoint",
    "teacher_name",
]
