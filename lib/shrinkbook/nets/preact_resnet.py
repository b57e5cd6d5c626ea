"""Pre-activation residual networks (He et al. 2016, Identity Mappings), whose convolutions Dong et al. 2017 gate."""

from collections.abc import Callable, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from shrinkbook.nets.resnet import shortcut


def preact_shortcut(in_channels: int, out_channels: int, stride: int, projection: bool) -> nn.Module:
    """The way around a block: as `resnet.shortcut`, but a projection is a bare 1x1 convolution without batch norm."""
    if projection and (stride != 1 or in_channels != out_channels):
        return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    return shortcut(in_channels, out_channels, stride, projection=False)


class PreactBasicBlock(nn.Module):
    """Two 3x3 convolutions behind batch norm and ReLU: conv2(relu(bn2(conv1(a)))) + shortcut(x), a = relu(bn1(x)).

    Args:
        in_channels: channels of x.
        width: channels of both convolutions.
        stride: of the first convolution and of the shortcut.
        projection: where the shape changes the shortcut is a 1x1 convolution, else padding.
        shared: the shortcut starts from a instead of x; so do the first blocks of all stages.
    """

    def __init__(self, in_channels: int, width: int, stride: int, projection: bool, shared: bool) -> None:
        super().__init__()
        self.out_channels, self.shared = width, shared
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = preact_shortcut(in_channels, width, stride, projection)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(active)), inplace=True))
        return y + self.shortcut(active if self.shared else x)


class PreactBottleneckBlock(nn.Module):
    """A 3x3 convolution between two of 1x1, each behind batch norm and ReLU; the last one widens to 4 ``width`` maps.

    The stride is that of the first 1x1 convolution, as in the authors' code, or with ``stride_in_3x3`` that of the 3x3
    convolution. The other arguments are those of `PreactBasicBlock`.
    """

    def __init__(
        self, in_channels: int, width: int, stride: int, projection: bool, shared: bool, stride_in_3x3: bool = False
    ) -> None:
        super().__init__()
        self.out_channels, self.shared = 4 * width, shared
        outer, inner = (1, stride) if stride_in_3x3 else (stride, 1)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride=outer, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=inner, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.shortcut = preact_shortcut(in_channels, 4 * width, stride, projection)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(active)), inplace=True))
        y = self.conv3(F.relu(self.bn3(y), inplace=True))
        return y + self.shortcut(active if self.shared else x)


class PreactResNet(nn.Module):
    """A stem, stages of pre-activation blocks, a last batch norm and ReLU, global average pooling, a linear layer.

    Modules are ``stem``, ``layer1``, ``layer2``, ..., ``bn``, ``linear``. Each stage after the first halves the maps.
    Input (batch, in_channels, height, width), output (batch, classes) logits.

    Args:
        blocks: blocks of each stage.
        widths: channels of the 3x3 convolutions of each stage.
        classes: number of classes.
        in_channels: channels of the input.
        projection: where the shape changes, shortcuts are 1x1 convolutions (option B), not padding (A).
        imagenet_stem: 7x7 convolution of stride 2, batch norm, ReLU and 3x3 max pooling instead of one 3x3 convolution.
        block: what the stages are made of.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        classes: int = 10,
        in_channels: int = 3,
        projection: bool = False,
        imagenet_stem: bool = False,
        block: Callable[..., PreactBasicBlock | PreactBottleneckBlock] = PreactBasicBlock,
    ) -> None:
        super().__init__()
        self.blocks, channels = tuple(blocks), widths[0]
        if imagenet_stem:
            self.stem = nn.Sequential(
                nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(3, stride=2, padding=1),
            )
        else:
            self.stem = nn.Sequential(nn.Conv2d(in_channels, channels, 3, padding=1, bias=False))
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), start=1):
            layer = nn.Sequential()
            for index in range(count):
                stride = 2 if stage > 1 and index == 0 else 1
                unit = block(channels, width, stride, projection, shared=index == 0)
                layer.append(unit)
                channels = unit.out_channels
            if imagenet_stem and stage == 1:
                layer[0].bn1 = nn.Identity()  # the stem ends with batch norm and ReLU
            self.add_module(f"layer{stage}", layer)
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in range(1, len(self.blocks) + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.linear(F.adaptive_avg_pool2d(F.relu(self.bn(x), inplace=True), 1).flatten(1))


def preact_resnet_cifar(depth: int, classes: int = 10, projection: bool = False) -> PreactResNet:
    """Pre-activation ResNet of ``depth`` = 6n + 2 layers for 32x32 images, widths 16, 32, 64 (20, 32, 44, 56, 110).

    Shortcuts of option A are the default of the authors' code; the costs that later papers print of Dong et al. hold
    for ``projection``: 40,551,040 multiply-accumulates against 40,813,184 for ResNet-20.

    Raises:
        ValueError: the depth is not 6n + 2, or 164, which the paper builds of bottlenecks.
    """
    if depth < 8 or (depth - 2) % 6 or depth == 164:
        known = "20, 32, 44, 56, 110; ResNet-164 is preact_resnet_bottleneck(164)"
        raise ValueError(f"preact_resnet_cifar: depth {depth} is not 6n + 2 of basic blocks; the paper's are {known}")
    return PreactResNet([(depth - 2) // 6] * 3, (16, 32, 64), classes=classes, projection=projection)


def preact_resnet_bottleneck(depth: int = 164, classes: int = 10, stride_in_3x3: bool = False) -> PreactResNet:
    """Pre-activation ResNet of ``depth`` = 9n + 2 layers for 32x32 images, bottlenecks of 64, 128, 256 maps (164).

    Shortcuts are projections where the maps change. ResNet-164 has 244,500,992 multiply-accumulates, and 247,646,720
    with ``stride_in_3x3``, the reading that the printed costs fit.

    Raises:
        ValueError: the depth is not 9n + 2.
    """
    if depth < 11 or (depth - 2) % 9:
        raise ValueError(f"preact_resnet_bottleneck: depth {depth} is not 9n + 2; the paper's is 164")
    block = partial(PreactBottleneckBlock, stride_in_3x3=stride_in_3x3)
    return PreactResNet([(depth - 2) // 9] * 3, (16, 32, 64), classes=classes, projection=True, block=block)


def preact_resnet_imagenet(depth: int, classes: int = 1000) -> PreactResNet:
    """Pre-activation ResNet-18 or 34 for 224x224 images with projection shortcuts, as in the authors' code.

    The multiply-accumulates are those of `resnet18` and `resnet34`: 1,814,073,344 and 3,663,761,408.

    Raises:
        ValueError: the depth is neither 18 nor 34.
    """
    blocks = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}.get(depth)
    if blocks is None:
        raise ValueError(f"preact_resnet_imagenet: depth {depth} is not built; the paper's are 18 and 34")
    return PreactResNet(blocks, (64, 128, 256, 512), classes=classes, projection=True, imagenet_stem=True)
