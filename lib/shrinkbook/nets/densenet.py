"""DenseNets for 32x32 images (Huang et al. 2017) in the two shapes that Son et al. 2018 compress."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseLayer(nn.Module):
    """``growth`` new maps behind all earlier ones: cat(x, conv(relu(bn(x)))), the convolution 3x3.

    With a bottleneck, a 1x1 convolution to 4 ``growth`` maps comes first: conv2(relu(bn2(conv1(relu(bn1(x)))))).
    """

    def __init__(self, in_channels: int, growth: int, bottleneck: bool) -> None:
        super().__init__()
        width = 4 * growth if bottleneck else in_channels
        self.bn1 = nn.BatchNorm2d(in_channels)
        if bottleneck:
            self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, growth, 3, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(width, growth, 3, padding=1, bias=False)
        self.bottleneck = bottleneck

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(F.relu(self.bn1(x), inplace=True))
        if self.bottleneck:
            new = self.conv2(F.relu(self.bn2(new), inplace=True))
        return torch.cat((x, new), 1)


class Transition(nn.Module):
    """Between two dense blocks: batch norm, ReLU, 1x1 convolution, 2x2 average pooling."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(x), inplace=True)), 2)


class DenseNet(nn.Module):
    """A 3x3 convolution to 2 ``growth`` maps, three dense blocks with transitions between, pooling, a linear layer.

    Modules are ``conv1``, ``block1`` to ``block3``, ``transition1``, ``transition2``, ``bn``, ``linear``. Input
    (batch, in_channels, side, side), output (batch, classes) logits.

    Args:
        layers: dense layers of each block.
        growth: maps that each layer adds, k in the paper.
        bc: bottlenecks in the layers and transitions that halve the maps (DenseNet-BC); else they keep them.
        classes: number of classes.
        in_channels: channels of the input.
    """

    def __init__(self, layers: int, growth: int, bc: bool = False, classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        channels = 2 * growth
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        for number in (1, 2, 3):
            block = nn.Sequential()
            for _ in range(layers):
                block.append(DenseLayer(channels, growth, bc))
                channels += growth
            self.add_module(f"block{number}", block)
            if number < 3:
                narrower = channels // 2 if bc else channels
                self.add_module(f"transition{number}", Transition(channels, narrower))
                channels = narrower
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for name in ("block1", "transition1", "block2", "transition2", "block3"):
            x = self.get_submodule(name)(x)
        return self.linear(F.adaptive_avg_pool2d(F.relu(self.bn(x), inplace=True), 1).flatten(1))


def densenet_12_40(classes: int = 10) -> DenseNet:
    """DenseNet-12-40: growth 12, 40 layers, 101,160 3x3 kernels with the 24 first maps that Son et al. 2018 give it.

    Huang et al. start with 16 maps where there is no bottleneck.
    """
    return DenseNet(layers=12, growth=12, classes=classes)


def densenet_bc_100_12(classes: int = 10) -> DenseNet:
    """DenseNet-BC, growth 12, 100 layers: 27,720 3x3 kernels."""
    return DenseNet(layers=16, growth=12, bc=True, classes=classes)
