"""VGG networks (Simonyan and Zisserman, ICLR 2015) with batch norm, global average pooling and one linear layer."""

import torch.nn.functional as F
from torch import Tensor, nn

from .network import Network, global_pool, init_normal

PLANS = {
    8: ([64], [128], [256], [512], [512]),
    11: ([64], [128], [256, 256], [512, 512], [512, 512]),
    13: ([64, 64], [128, 128], [256, 256], [512, 512], [512, 512]),
    16: ([64, 64], [128, 128], [256] * 3, [512] * 3, [512] * 3),
    19: ([64, 64], [128, 128], [256] * 4, [512] * 4, [512] * 4),
}


class VGG(Network):
    """vgg<depth>: five stages. A max pool of 2 follows each of the first three, and the fourth for images of 64x64.

    A stage's feature is taken after its last ReLU and before its pool.
    """

    classifier_name = "classifier"

    def __init__(self, depth: int, num_classes: int = 100):
        super().__init__()
        channels = 3
        for stage, widths in enumerate(PLANS[depth]):
            layers = []
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            self.add_module(f"block{stage}", nn.Sequential(*layers))
        self.classifier = nn.Linear(channels, num_classes)
        init_normal(self, linear_std=0.01)

    def features(self, x: Tensor) -> list[Tensor]:
        pools = 4 if x.shape[-1] == 64 else 3
        features = []
        for stage in range(5):
            x = getattr(self, f"block{stage}")(x)
            features.append(x)
            if stage < pools:
                x = F.max_pool2d(x, 2)
        return [*features, global_pool(x)]
