"""Wide residual networks (Zagoruyko and Komodakis, BMVC 2016), without dropout."""

import torch.nn.functional as F
from torch import nn

from .network import Network, conv, global_pool, init_normal


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each 3x3 convolution; where the width changes, the first pair also feeds the 1x1
    shortcut."""

    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, out_channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3)
        self.convShortcut = None if in_channels == out_channels else conv(in_channels, out_channels, 1, stride)

    def forward(self, x):
        out = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.convShortcut is None else self.convShortcut(out)
        out = F.relu(self.bn2(self.conv1(out)), inplace=True)
        return self.conv2(out) + shortcut


class Stage(nn.Module):
    def __init__(self, depth, in_channels, out_channels, stride):
        super().__init__()
        rest = [PreActivationBlock(out_channels, out_channels, 1) for _ in range(depth - 1)]
        self.layer = nn.Sequential(PreActivationBlock(in_channels, out_channels, stride), *rest)

    def forward(self, x):
        return self.layer(x)


class WideResNet(Network):
    """wrn_<depth>_<width>: stem 16, stages 16, 32 and 64 times the width, (depth - 4) / 6 blocks each.

    The stem's and the stages' features are what leaves the last convolution; their ReLU opens the next block.
    """

    classifier_name = "fc"

    def __init__(self, depth, width, num_classes=100):
        super().__init__()
        n = (depth - 4) // 6
        self.conv1 = conv(3, 16, 3)
        self.block1 = Stage(n, 16, 16 * width, stride=1)
        self.block2 = Stage(n, 16 * width, 32 * width, stride=2)
        self.block3 = Stage(n, 32 * width, 64 * width, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        init_normal(self)

    def features(self, x):
        features = [self.conv1(x)]
        for stage in (self.block1, self.block2, self.block3):
            features.append(stage(features[-1]))
        return [*features, global_pool(F.relu(self.bn1(features[-1]), inplace=True))]
