"""GoogLeNet for ImageNet in the form distributed with Caffe, without the auxiliary classifiers."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

# channels of 1x1; of 3x3 and the 1x1 that reduces before it; of 5x5 and its 1x1; of the 1x1 behind the pooling
MODULES = {
    "inception_3a": (64, 96, 128, 16, 32, 32),
    "inception_3b": (128, 128, 192, 32, 96, 64),
    "inception_4a": (192, 96, 208, 16, 48, 64),
    "inception_4b": (160, 112, 224, 24, 64, 64),
    "inception_4c": (128, 128, 256, 24, 64, 64),
    "inception_4d": (112, 144, 288, 32, 64, 64),
    "inception_4e": (256, 160, 320, 32, 128, 128),
    "inception_5a": (256, 160, 320, 32, 128, 128),
    "inception_5b": (384, 192, 384, 48, 128, 128),
}


class Inception(nn.Module):
    """Four branches side by side, each with ReLU: 1x1; 1x1 then 3x3; 1x1 then 5x5; 3x3 max pooling then 1x1."""

    def __init__(self, channels: int, one: int, reduce3: int, three: int, reduce5: int, five: int, pooled: int) -> None:
        super().__init__()
        self.conv1x1 = nn.Conv2d(channels, one, 1)
        self.reduce3x3 = nn.Conv2d(channels, reduce3, 1)
        self.conv3x3 = nn.Conv2d(reduce3, three, 3, padding=1)
        self.reduce5x5 = nn.Conv2d(channels, reduce5, 1)
        self.conv5x5 = nn.Conv2d(reduce5, five, 5, padding=2)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.pool_proj = nn.Conv2d(channels, pooled, 1)
        self.relu = nn.ReLU(inplace=True)
        self.out_channels = one + three + five + pooled

    def forward(self, x: Tensor) -> Tensor:
        branches = [
            self.conv1x1(x),
            self.conv3x3(self.relu(self.reduce3x3(x))),
            self.conv5x5(self.relu(self.reduce5x5(x))),
            self.pool_proj(self.pool(x)),
        ]
        return self.relu(torch.cat(branches, dim=1))


def googlenet(classes: int = 1000) -> nn.Sequential:
    """Szegedy et al. 2015: 1,582,671,872 multiply-accumulates and 6,990,272 weights at (3, 224, 224)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 64, 7, stride=2, padding=3),
        relu1=nn.ReLU(inplace=True),
        pool1=nn.MaxPool2d(3, stride=2, ceil_mode=True),
        norm1=nn.LocalResponseNorm(5),
        conv2_reduce=nn.Conv2d(64, 64, 1),
        relu2_reduce=nn.ReLU(inplace=True),
        conv2=nn.Conv2d(64, 192, 3, padding=1),
        relu2=nn.ReLU(inplace=True),
        norm2=nn.LocalResponseNorm(5),
        pool2=nn.MaxPool2d(3, stride=2, ceil_mode=True),
    )
    channels = 192
    for name, widths in MODULES.items():
        inception = Inception(channels, *widths)
        layers[name] = inception
        channels = inception.out_channels
        if name in ("inception_3b", "inception_4e"):
            layers[f"pool{name[10]}"] = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    layers["pool5"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten(1)
    layers["drop5"] = nn.Dropout(0.4)
    layers["fc"] = nn.Linear(channels, classes)
    return nn.Sequential(layers)
