"""The 25 networks by name, and the network that a checkpoint holds."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .checkpoint import CheckpointError, load_weights, read_checkpoint
from .mobilenetv2 import MobileNetV2
from .network import Network
from .resnet import BasicBlock, Bottleneck, cifar_resnet, imagenet_resnet
from .shufflenet import ShuffleV1, ShuffleV2
from .vgg import PLANS, VGG
from .wrn import WideResNet

model_dict: dict[str, Callable[..., Network]] = {
    **{f"resnet{depth}": partial(cifar_resnet, depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(cifar_resnet, depth, wide=True) for depth in (8, 14, 32)},
    "ResNet18": partial(imagenet_resnet, BasicBlock, (2, 2, 2, 2)),
    "ResNet34": partial(imagenet_resnet, BasicBlock, (3, 4, 6, 3)),
    "ResNet50": partial(imagenet_resnet, Bottleneck, (3, 4, 6, 3)),
    **{f"wrn_{depth}_{width}": partial(WideResNet, depth, width) for depth in (16, 40) for width in (1, 2)},
    **{f"vgg{depth}": partial(VGG, depth) for depth in PLANS},
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleV1,
    "ShuffleV2": ShuffleV2,
}
MAX_CLASSES = 100_000  # a file cannot make us build a network of any size


def load_model(path: Path | str, arch: str | None = None) -> tuple[Network, dict[str, Any]]:
    """Build the network that a checkpoint holds, on the CPU and in eval mode. Returns it and the checkpoint.

    arch: a name of model_dict, for a checkpoint that does not say one. The weights say the number of classes.
    The checkpoint is that of read_checkpoint with "num_classes"; its "settings" are plain JSON.
    Raises CheckpointError also where the file does not hold all weights of this network.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.get("arch") in list(model_dict):  # a list, because what a file says may be unhashable
        arch = checkpoint["arch"]
    if arch not in model_dict:
        raise CheckpointError(f"{path}: does not say which network it holds")
    weights = checkpoint["state_dict"]
    num_classes = [0, *(len(tensor) for tensor in weights.values() if tensor.ndim == 2)][-1]  # the classifier is last
    if not 1 <= num_classes <= MAX_CLASSES:
        raise CheckpointError(f"{path}: holds no linear classifier of 1 to {MAX_CLASSES:,} classes")
    model = model_dict[arch](num_classes=num_classes).eval()
    try:
        load_weights(model, weights, arch)
    except CheckpointError as e:
        raise CheckpointError(f"{path}: {e}") from e
    return model, checkpoint | {"arch": arch, "num_classes": num_classes, "state_dict": model.state_dict()}
