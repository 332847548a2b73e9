"""The 25 CIFAR networks of the distillation literature, and reading their weights.

    from models import model_dict
    model = model_dict["wrn_40_2"](num_classes=100)

Parameter names are those of the teachers that the field has released since 2019, so those load with `strict=True`.
"""

from functools import partial

from .checkpoint import CheckpointError, adapt, num_classes, read_checkpoint, some
from .mobilenetv2 import MobileNetV2
from .network import pooled_size
from .resnet import BasicBlock, Bottleneck, cifar_resnet, imagenet_resnet
from .shufflenet import ShuffleV1, ShuffleV2
from .vgg import PLANS, VGG
from .wrn import WideResNet

__all__ = ["CheckpointError", "load_model", "model_dict", "pooled_size", "read_checkpoint"]

model_dict = {
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


def load_model(path, arch=None):
    """The network that a checkpoint holds, in eval mode on the CPU, and the checkpoint itself.

    arch: a name of model_dict, for checkpoints that do not say one; the class count is read from the weights.
    Raises CheckpointError where the file holds no weights, or those of another network than it says.
    """
    checkpoint = read_checkpoint(path)
    names = list(model_dict)  # a list: what a file says may be unhashable
    if checkpoint.get("arch") in names:
        arch = checkpoint["arch"]
    if arch not in names:
        raise CheckpointError(f"{path}: does not say which network it holds; name it (--teacher-arch)")
    classes = num_classes(checkpoint["state_dict"])
    if classes is None:
        raise CheckpointError(
            f"{path}: not the weights of {arch}, no linear classifier in {some(list(checkpoint['state_dict']))}"
        )
    model = model_dict[arch](num_classes=classes)
    model.load_state_dict(adapt(checkpoint["state_dict"], model, arch, path))
    return model.eval(), {**checkpoint, "arch": arch, "num_classes": classes, "state_dict": model.state_dict()}
