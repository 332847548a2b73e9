"""Residual networks (He et al., CVPR 2016) in the two forms that this field uses on CIFAR.

`cifar_resnet` is that of the paper's section 4.2: depth 6n + 2, three stages. A "x4" network has four times as wide
stages and a stem twice as wide. `imagenet_resnet` has the block plans of ResNet18/34/50, four stages, behind a 3x3
stem without max pool. The two differ in their plan and in two names of the state dict, so one class serves both.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .network import Network, conv, global_pool, init_kaiming


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside the shortcut, which is a 1x1 convolution where the width or the size changes."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, shortcut_name: str):
        super().__init__()
        self.conv1 = conv(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut_name = add_shortcut(self, shortcut_name, in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + getattr(self, self.shortcut_name)(x), inplace=True)


class Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3 and 1x1 beside the shortcut. The last is four times as wide; the 3x3 has the stride."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, shortcut_name: str):
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut_name = add_shortcut(self, shortcut_name, in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        return F.relu(out + getattr(self, self.shortcut_name)(x), inplace=True)


def add_shortcut(block: nn.Module, name: str, in_channels: int, out_channels: int, stride: int) -> str:
    """Add the shortcut to a block under `name`, which is returned."""
    if in_channels == out_channels and stride == 1:
        shortcut = nn.Identity()
    else:
        shortcut = nn.Sequential(conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))
    setattr(block, name, shortcut)
    return name


class ResNet(Network):
    """A stem of width `stem`, then stages; stage i has `depths[i]` blocks of width `widths[i]`.

    Every stage but the first halves the size.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        depths: Sequence[int],
        stem: int,
        widths: Sequence[int],
        num_classes: int,
        shortcut_name: str,
        classifier_name: str,
    ):
        super().__init__()
        self.classifier_name = classifier_name
        self.num_stages = len(depths)
        self.conv1 = conv(3, stem, 3)
        self.bn1 = nn.BatchNorm2d(stem)
        channels = stem
        for stage, (depth, width) in enumerate(zip(depths, widths), start=1):
            blocks = []
            for i in range(depth):
                stride = 2 if stage > 1 and i == 0 else 1
                blocks.append(block(channels, width, stride, shortcut_name))
                channels = width * block.expansion
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.add_module(classifier_name, nn.Linear(channels, num_classes))
        init_kaiming(self)

    def features(self, x: Tensor) -> list[Tensor]:
        features = [F.relu(self.bn1(self.conv1(x)), inplace=True)]
        for stage in range(1, self.num_stages + 1):
            features.append(getattr(self, f"layer{stage}")(features[-1]))
        return [*features, global_pool(features[-1])]


def cifar_resnet(depth: int, wide: bool = False, num_classes: int = 100) -> ResNet:
    """Make resnet<depth>, or resnet<depth>x4 with wide=True. The depth is 6n + 2."""
    stem, *widths = (32, 64, 128, 256) if wide else (16, 16, 32, 64)
    return ResNet(BasicBlock, [(depth - 2) // 6] * 3, stem, widths, num_classes, "downsample", "fc")


def imagenet_resnet(block: type[BasicBlock | Bottleneck], depths: Sequence[int], num_classes: int = 100) -> ResNet:
    """Make ResNet18 or ResNet34 (of BasicBlock), or ResNet50 (of Bottleneck)."""
    return ResNet(block, depths, 64, (64, 128, 256, 512), num_classes, "shortcut", "linear")
