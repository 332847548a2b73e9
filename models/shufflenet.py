"""ShuffleNet V1 (Zhang et al., CVPR 2018) with 3 groups and V2 (Ma et al., ECCV 2018) of width 1, both for CIFAR.

As in the CIFAR versions that this field compares with, the stem is a 1x1 convolution, and V1 has a ReLU after its
depthwise convolution, which the paper does not have. The initial weights are torch's defaults.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .network import Network, conv, global_pool


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Compute F.channel_shuffle, but keep a channels-last tensor so on a GPU, where torch's own does not."""
    if x.device.type != "cuda" or not x.is_contiguous(memory_format=torch.channels_last):
        return F.channel_shuffle(x, groups)
    return x.permute(0, 2, 3, 1).unflatten(3, (groups, -1)).transpose(3, 4).flatten(3).permute(0, 3, 1, 2)


class ShuffleNet(Network):
    """What both have: a 1x1 stem of 24 channels, then three stages, whose first block halves the size."""

    classifier_name = "linear"

    def add_stem_and_stages(self, stages: list[list[nn.Module]]) -> None:
        self.conv1 = conv(3, 24, 1)
        self.bn1 = nn.BatchNorm2d(24)
        for i, blocks in enumerate(stages, start=1):
            self.add_module(f"layer{i}", nn.Sequential(*blocks))

    def stem_and_stages(self, x: Tensor) -> list[Tensor]:
        features = [F.relu(self.bn1(self.conv1(x)), inplace=True)]
        for stage in (self.layer1, self.layer2, self.layer3):
            features.append(stage(features[-1]))
        return features


class BottleneckV1(nn.Module):
    """A grouped 1x1 convolution, shuffle, a 3x3 depthwise convolution and another grouped 1x1.

    At stride 2 the average-pooled input is concatenated with the result, otherwise the input is added to it.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, first_groups: int, groups: int = 3):
        super().__init__()
        self.stride = stride
        self.first_groups = first_groups
        own = out_channels - in_channels if stride == 2 else out_channels
        mid = own // 4
        self.conv1 = conv(in_channels, mid, 1, groups=first_groups)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = conv(mid, mid, 3, stride, groups=mid)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = conv(mid, own, 1, groups=groups)
        self.bn3 = nn.BatchNorm2d(own)

    def forward(self, x: Tensor) -> Tensor:
        out = channel_shuffle(F.relu(self.bn1(self.conv1(x)), inplace=True), self.first_groups)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        if self.stride == 2:
            return F.relu(torch.cat([out, F.avg_pool2d(x, 3, 2, 1)], 1), inplace=True)
        return F.relu(out + x, inplace=True)


class ShuffleV1(ShuffleNet):
    def __init__(self, num_classes: int = 100):
        super().__init__()
        stages = []
        channels = 24
        for width, depth in ((240, 4), (480, 8), (960, 4)):
            down = BottleneckV1(channels, width, 2, first_groups=1 if channels == 24 else 3)
            stages.append([down] + [BottleneckV1(width, width, 1, first_groups=3) for _ in range(depth - 1)])
            channels = width
        self.add_stem_and_stages(stages)
        self.linear = nn.Linear(channels, num_classes)

    def features(self, x: Tensor) -> list[Tensor]:
        features = self.stem_and_stages(x)
        return [*features, global_pool(features[-1])]


class BasicBlockV2(nn.Module):
    """Half of the channels pass unchanged, half go through 1x1, 3x3 depthwise and 1x1; a shuffle follows."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.conv1 = conv(half, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        right = F.relu(self.bn1(self.conv1(right)), inplace=True)
        right = self.bn2(self.conv2(right))
        right = F.relu(self.bn3(self.conv3(right)), inplace=True)
        return channel_shuffle(torch.cat([left, right], 1), 2)


class DownBlockV2(nn.Module):
    """Two branches halve the size, and each gives half of the new channels; a shuffle follows."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        half = out_channels // 2
        self.conv1 = conv(in_channels, in_channels, 3, 2, groups=in_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = conv(in_channels, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(in_channels, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv(half, half, 3, 2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv(half, half, 1)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)), inplace=True)
        right = F.relu(self.bn3(self.conv3(x)), inplace=True)
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)), inplace=True)
        return channel_shuffle(torch.cat([left, right], 1), 2)


class ShuffleV2(ShuffleNet):
    def __init__(self, num_classes: int = 100):
        super().__init__()
        stages = []
        channels = 24
        for width, depth in ((116, 3), (232, 7), (464, 3)):
            stages.append([DownBlockV2(channels, width)] + [BasicBlockV2(width) for _ in range(depth)])
            channels = width
        self.add_stem_and_stages(stages)
        self.conv2 = conv(channels, 1024, 1)
        self.bn2 = nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, num_classes)

    def features(self, x: Tensor) -> list[Tensor]:
        features = self.stem_and_stages(x)
        return [*features, global_pool(F.relu(self.bn2(self.conv2(features[-1])), inplace=True))]
