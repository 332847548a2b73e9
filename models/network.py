"""What all 25 networks share: the forward pass, which can also return the features, pooling, and initial weights."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Network(nn.Module):
    """A classifier of images, (N, 3, H, W) floats.

    `model(x)` returns the logits, (N, num_classes). `model(x, is_feat=True)` returns `(features, logits)` of the same
    pass. The features are the stem's output, each stage's output, and last the (N, D) pooled vector that enters the
    linear classifier. A family supplies `features(x)` and the attribute `classifier_name`, the name of its linear
    layer in released weights.
    """

    classifier_name: str

    def features(self, x: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def forward(self, x: Tensor, is_feat: bool = False) -> Tensor | tuple[list[Tensor], Tensor]:
        features = self.features(x)
        logits = getattr(self, self.classifier_name)(features[-1])
        return (features, logits) if is_feat else logits


def pooled_size(model: Network) -> int:
    """Return D, the length of the pooled vector that enters the network's classifier."""
    return getattr(model, model.classifier_name).in_features


def global_pool(x: Tensor) -> Tensor:
    """Average over space: (N, C, H, W) -> (N, C)."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Make a convolution without bias, which keeps the size at stride 1."""
    kind = DepthwiseConv2d if groups == in_channels else nn.Conv2d
    return kind(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)


class DepthwiseConv2d(nn.Conv2d):
    """A convolution with one filter a channel.

    On a CPU torch needs several times as long for its gradient in bf16 as in fp32. Under autocast to bf16 it is
    therefore computed in fp32 there.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.dtype != torch.bfloat16 or not torch.is_grad_enabled():
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).bfloat16()


def init_kaiming(model: nn.Module) -> None:
    """Give both resnet families their initial weights: convolutions Kaiming normal over the fan out."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def init_normal(model: nn.Module, linear_std: float | None = None) -> None:
    """Give wrn, vgg and MobileNetV2 their initial weights: biases 0, convolutions normal around 0.

    The standard deviation of a convolution is sqrt(2 / (kh * kw * out_channels)), which, unlike Kaiming's fan out, is
    not divided by the groups. linear_std is that of the linear weights; None leaves them at torch's default.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            nn.init.normal_(module.weight, 0, math.sqrt(2 / (height * width * module.out_channels)))
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, 0, linear_std)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)
