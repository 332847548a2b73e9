"""MobileNetV2 (Sandler et al., CVPR 2018) at half width, with the strides that this field uses on CIFAR."""

from torch import Tensor, nn

from .network import Network, conv, global_pool, init_normal

PLAN = (  # expansion, channels at full width, blocks, stride of the first block
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
FEATURE_STAGES = (1, 2, 4, 6)


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        conv(in_channels, out_channels, kernel, stride, groups),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


class InvertedResidual(nn.Module):
    """A 1x1 expansion, also where it is 1, a 3x3 depthwise convolution and a linear 1x1 projection.

    A shortcut passes the input on where the shapes allow it.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int):
        super().__init__()
        hidden = in_channels * expansion
        self.has_shortcut = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            *conv_bn_relu(in_channels, hidden, 1),
            *conv_bn_relu(hidden, hidden, 3, stride, groups=hidden),
            conv(hidden, out_channels, 1),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class MobileNetV2(Network):
    classifier_name = "classifier"

    def __init__(self, width: float = 0.5, num_classes: int = 100):
        super().__init__()
        channels = int(32 * width)
        self.conv1 = nn.Sequential(*conv_bn_relu(3, channels, 3, stride=2))
        stages = []
        for expansion, full_width, depth, stride in PLAN:
            blocks = []
            for i in range(depth):
                blocks.append(InvertedResidual(channels, int(full_width * width), stride if i == 0 else 1, expansion))
                channels = int(full_width * width)
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv2 = nn.Sequential(*conv_bn_relu(channels, 1280, 1))
        self.classifier = nn.Linear(1280, num_classes)
        init_normal(self, linear_std=0.01)

    def features(self, x: Tensor) -> list[Tensor]:
        x = self.conv1(x)
        features = [x]
        for i, stage in enumerate(self.blocks):
            x = stage(x)
            if i in FEATURE_STAGES:
                features.append(x)
        return [*features, global_pool(self.conv2(x))]
