"""Residual networks of basic blocks: the CIFAR family of He et al. 2016, section 4.2, and ResNet-34 for ImageNet."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from shrinkbook.nets.coupling import Coupling


class PaddedShortcut(nn.Module):
    """Option A of He et al. 2016: take every ``stride``-th pixel and fill new channels with zeros, half on each side.

    It has no weights. Pooling with a 1x1 window is strided slicing written so that phone converters accept it.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        extra = out_channels - in_channels
        self.before, self.after = extra // 2, extra - extra // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(F.max_pool2d(x, 1, self.stride), (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = (
                nn.Sequential(
                    nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
                )
                if projection
                else PaddedShortcut(in_channels, out_channels, stride)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """A stem, stages of basic blocks (each after the first halves the maps), global average pooling, a linear layer.

    Args:
        blocks: blocks of each stage.
        widths: channels of each stage.
        classes: number of classes.
        in_channels: channels of the input.
        projection: where the shape changes, shortcuts are 1x1 convolutions with batch norm (option B), not padding (A).
        imagenet_stem: 7x7 convolution of stride 2 and 3x3 max pooling instead of one 3x3 convolution.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        classes: int = 10,
        in_channels: int = 3,
        projection: bool = False,
        imagenet_stem: bool = False,
    ) -> None:
        super().__init__()
        self.blocks, self.projection = tuple(blocks), projection
        if imagenet_stem:
            self.conv1 = nn.Conv2d(in_channels, widths[0], 7, stride=2, padding=3, bias=False)
            self.pool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
            self.pool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(widths[0])
        channels = widths[0]
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), start=1):
            strides = [1 if stage == 1 else 2] + [1] * (count - 1)
            layer = nn.Sequential()
            for stride in strides:
                layer.append(BasicBlock(channels, width, stride, projection))
                channels = width
            self.add_module(f"layer{stage}", layer)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        for stage in range(1, len(self.blocks) + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def chain(self) -> list[nn.Module]:
        """The same network as a chain of modules, each fed by the one before; it shares their weights."""
        stem = nn.Sequential(self.conv1, self.bn1, nn.ReLU(inplace=True), self.pool)
        layers = [self.get_submodule(f"layer{stage}") for stage in range(1, len(self.blocks) + 1)]
        blocks = [block for layer in layers for block in layer.children()]
        return [stem, *blocks, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), self.linear)]

    def couplings(self) -> dict[str, Coupling]:
        """Every set of maps that can be pruned, from input to output (Li et al. 2017, section 3.3).

        ``conv_2, conv_4, ...`` are the first convolutions of the blocks, numbered over all 3x3 (and 7x7) convolutions
        with the stem as 1. ``stage_2, ...`` are the maps that the second convolutions and the projection of a stage
        add up, ranked by the projection; they exist only with projection shortcuts, for padding cannot choose maps.
        """
        couplings: dict[str, Coupling] = {}
        number = 2
        for stage, count in enumerate(self.blocks, start=1):
            block_paths = [f"layer{stage}.{index}" for index in range(count)]
            for path in block_paths:
                first = f"{path}.conv1"
                couplings[f"conv_{number}"] = Coupling((first,), (f"{path}.bn1",), (f"{path}.conv2",), first, stage)
                number += 2
            if self.projection and stage > 1:
                projection = f"layer{stage}.0.shortcut.0"
                following = f"layer{stage + 1}.0"
                readers = (f"{following}.conv1", f"{following}.shortcut.0") if stage < len(self.blocks) else ("linear",)
                couplings[f"stage_{stage}"] = Coupling(
                    producers=(projection, *(f"{path}.conv2" for path in block_paths)),
                    norms=(f"layer{stage}.0.shortcut.1", *(f"{path}.bn2" for path in block_paths)),
                    consumers=(*(f"{path}.conv1" for path in block_paths[1:]), *readers),
                    ranked_by=projection,
                    stage=stage,
                )
        return couplings


def resnet_cifar(depth: int, classes: int = 10) -> ResNet:
    """ResNet of ``depth`` = 6n + 2 layers for 32x32 images, widths 16, 32, 64, option A (20, 32, 44, 56, 110).

    Raises:
        ValueError: the depth is not 6n + 2.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"resnet_cifar: depth {depth} is not 6n + 2; the paper's are 20, 32, 44, 56, 110")
    return ResNet([(depth - 2) // 6] * 3, (16, 32, 64), classes=classes)


def resnet34(classes: int = 1000) -> ResNet:
    """ResNet-34 for 224x224 images with projection shortcuts, as He et al. 2016, table 1."""
    return ResNet((3, 4, 6, 3), (64, 128, 256, 512), classes=classes, projection=True, imagenet_stem=True)
