"""Wide residual networks (Zagoruyko and Komodakis, BMVC 2016), without dropout."""

import torch.nn.functional as F
from torch import Tensor, nn

from .network import Network, conv, global_pool, init_normal


class PreActivationBlock(nn.Module):
    """Two 3x3 convolutions, each after a batch norm and a ReLU.

    Where the width changes, the first batch norm and ReLU also feed the shortcut, a 1x1 convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, out_channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3)
        self.convShortcut = None if in_channels == out_channels else conv(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.convShortcut is None else self.convShortcut(out)
        out = F.relu(self.bn2(self.conv1(out)), inplace=True)
        return self.conv2(out) + shortcut


class Stage(nn.Module):
    def __init__(self, depth: int, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        rest = [PreActivationBlock(out_channels, out_channels, 1) for _ in range(depth - 1)]
        self.layer = nn.Sequential(PreActivationBlock(in_channels, out_channels, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(Network):
    """wrn_<depth>_<width>: a stem of 16, then stages of 16, 32 and 64 times the width, (depth - 4) / 6 blocks each.

    The features of stem and stages are taken before their ReLU, which is in the block that follows.
    """

    classifier_name = "fc"

    def __init__(self, depth: int, width: int, num_classes: int = 100):
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = conv(3, 16, 3)
        self.block1 = Stage(blocks, 16, 16 * width, stride=1)
        self.block2 = Stage(blocks, 16 * width, 32 * width, stride=2)
        self.block3 = Stage(blocks, 32 * width, 64 * width, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        init_normal(self)

    def features(self, x: Tensor) -> list[Tensor]:
        features = [self.conv1(x)]
        for stage in (self.block1, self.block2, self.block3):
            features.append(stage(features[-1]))
        return [*features, global_pool(F.relu(self.bn1(features[-1]), inplace=True))]
