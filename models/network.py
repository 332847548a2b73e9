"""What all 25 networks share: one forward pass with two views of it, pooling, and the initial weights."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Network(nn.Module):
    """A classifier of (N, 3, H, W) float images.

    `model(x)` gives the logits, (N, num_classes). `model(x, is_feat=True)` gives `(features, logits)` of the same
    pass: the stem's output, each stage's output, and last the (N, D) pooled vector that enters the linear classifier.
    A family supplies `features(x)` and the attribute `classifier_name` (the name of its linear layer in released
    weights).
    """

    def forward(self, x, is_feat=False):
        features = self.features(x)
        logits = getattr(self, self.classifier_name)(features[-1])
        return (features, logits) if is_feat else logits


def pooled_size(model):
    """D, the length of the pooled vector that enters a network's classifier."""
    return getattr(model, model.classifier_name).in_features


def global_pool(x):
    """(N, C, H, W) -> (N, C), the mean over space."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def conv(in_channels, out_channels, kernel, stride=1, groups=1):
    """A convolution without bias that keeps the size at stride 1."""
    kind = DepthwiseConv2d if groups == in_channels else nn.Conv2d
    return kind(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)


class DepthwiseConv2d(nn.Conv2d):
    """One filter a channel. On a CPU its gradient takes torch several times as long in bf16 as in fp32, so under
    autocast to bf16 it is computed in fp32 there."""

    def forward(self, x):
        if x.device.type != "cpu" or x.dtype != torch.bfloat16 or not torch.is_grad_enabled():
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).bfloat16()


def init_kaiming(model):
    """Both resnet families: convolutions Kaiming normal over the fan out, batch norm at its default 1 and 0."""
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")


def init_normal(model, linear_std=None):
    """wrn, vgg, MobileNetV2: convolutions normal(0, sqrt(2 / (kh * kw * out_channels))), biases 0.

    Unlike Kaiming's fan out this does not divide by the groups. linear_std: standard deviation of the linear weights;
    None leaves them at torch's default.
    """
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            kh, kw = m.kernel_size
            nn.init.normal_(m.weight, 0, math.sqrt(2 / (kh * kw * m.out_channels)))
        elif isinstance(m, nn.Linear) and linear_std is not None:
            nn.init.normal_(m.weight, 0, linear_std)
        if isinstance(m, (nn.Conv2d, nn.Linear)) and m.bias is not None:
            nn.init.zeros_(m.bias)
