"""Residual networks: the CIFAR family of He et al. 2016, section 4.2, and ResNet-18, 34 and 50 for ImageNet."""

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


def shortcut(in_channels: int, out_channels: int, stride: int, projection: bool) -> nn.Module:
    """The way around a block: the identity, or where the shape changes a projection (option B) or padding (A)."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if projection:
        return nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
        )
    return PaddedShortcut(in_channels, out_channels, stride)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))."""

    convolutions, expansion = 2, 1

    def __init__(self, in_channels: int, width: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut(in_channels, width, stride, projection)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x), inplace=True)


class BottleneckBlock(nn.Module):
    """A 3x3 convolution between two of 1x1 beside a shortcut; the last one widens to 4 ``width`` maps.

    The stride is that of the 3x3 convolution, as in torchvision's weights; He et al. 2016 give it to the first one.
    """

    convolutions, expansion = 3, 4

    def __init__(self, in_channels: int, width: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = shortcut(in_channels, 4 * width, stride, projection)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """A stem, stages of residual blocks (each after the first halves the maps), global average pooling, a linear layer.

    Args:
        blocks: blocks of each stage.
        widths: channels of the 3x3 convolutions of each stage.
        classes: number of classes.
        in_channels: channels of the input.
        projection: where the shape changes, shortcuts are 1x1 convolutions with batch norm (option B), not padding (A).
        imagenet_stem: 7x7 convolution of stride 2 and 3x3 max pooling instead of one 3x3 convolution.
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
        block: type[BasicBlock] | type[BottleneckBlock] = BasicBlock,
    ) -> None:
        super().__init__()
        self.blocks, self._convolutions = tuple(blocks), block.convolutions
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
                layer.append(block(channels, width, stride, projection))
                channels = width * block.expansion
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

        ``conv_2, conv_4, ...`` are the first convolutions of basic blocks (of bottleneck blocks the first two:
        ``conv_2, conv_3, conv_5, ...``), numbered over all convolutions but the shortcuts' with the stem as 1.
        ``stage_2, ...`` are the maps that the last convolutions of the blocks and the projection of a stage add up,
        ranked by the projection; they exist only with projection shortcuts, for padding cannot choose maps.
        """
        couplings: dict[str, Coupling] = {}
        number = 2
        for stage, count in enumerate(self.blocks, start=1):
            block_paths = [f"layer{stage}.{index}" for index in range(count)]
            for path in block_paths:
                for inner in range(1, self._convolutions):
                    conv, norm, reader = f"{path}.conv{inner}", f"{path}.bn{inner}", f"{path}.conv{inner + 1}"
                    couplings[f"conv_{number + inner - 1}"] = Coupling((conv,), (norm,), (reader,), conv, stage)
                number += self._convolutions
                projected = isinstance(self.get_submodule(f"{path}.shortcut"), nn.Sequential)
                if path == block_paths[0] and projected:  # before the blocks that read these maps
                    couplings[f"stage_{stage}"] = self._stage(stage, block_paths)
        return couplings

    def _stage(self, stage: int, block_paths: Sequence[str]) -> Coupling:
        """The maps that the blocks of a stage with a projection add up."""
        last, projection, following = self._convolutions, f"{block_paths[0]}.shortcut.0", f"layer{stage + 1}.0"
        readers = (f"{following}.conv1", f"{following}.shortcut.0") if stage < len(self.blocks) else ("linear",)
        return Coupling(
            producers=(projection, *(f"{path}.conv{last}" for path in block_paths)),
            norms=(f"{block_paths[0]}.shortcut.1", *(f"{path}.bn{last}" for path in block_paths)),
            consumers=(*(f"{path}.conv1" for path in block_paths[1:]), *readers),
            ranked_by=projection,
            stage=stage,
        )

    def free_widths(self) -> dict[str, Coupling]:
        """Maps whose number is free for a search (Liu et al. 2019): outer ones a stage, inner ones a block.

        ``stem`` where the first block has a projection, else the stem's maps are those of ``stage_1``; then ``stage_1``
        and on without the last, which feeds the classifier, and ``mid_1`` and on: in a bottleneck the maps of its first
        two convolutions. With padded shortcuts only inner maps are free.
        """
        outer = {name: one for name, one in self.couplings().items() if name.startswith("stage_")}
        last = self._convolutions
        found: dict[str, Coupling] = {}
        if "stage_1" in outer:
            found["stem"] = Coupling(("conv1",), ("bn1",), ("layer1.0.conv1", "layer1.0.shortcut.0"), "conv1", 1)
        elif outer:
            paths = [f"layer1.{index}" for index in range(self.blocks[0])]
            found["stage_1"] = Coupling(
                producers=("conv1", *(f"{path}.conv{last}" for path in paths)),
                norms=("bn1", *(f"{path}.bn{last}" for path in paths)),
                consumers=(*(f"{path}.conv1" for path in paths), "layer2.0.conv1", "layer2.0.shortcut.0"),
                ranked_by="conv1",
                stage=1,
            )
        found |= {name: one for name, one in outer.items() if name != f"stage_{len(self.blocks)}"}
        every = [(stage, f"layer{stage}.{i}") for stage, count in enumerate(self.blocks, 1) for i in range(count)]
        for number, (stage, path) in enumerate(every, start=1):
            inner = range(1, last)
            found[f"mid_{number}"] = Coupling(
                producers=tuple(f"{path}.conv{i}" for i in inner),
                norms=tuple(f"{path}.bn{i}" for i in inner),
                consumers=tuple(f"{path}.conv{i + 1}" for i in inner),
                ranked_by=f"{path}.conv1",
                stage=stage,
            )
        return found


def resnet_cifar(depth: int, classes: int = 10, projection: bool = False) -> ResNet:
    """ResNet of ``depth`` = 6n + 2 layers for 32x32 images, widths 16, 32, 64, option A (20, 32, 44, 56, 110).

    Liu et al. 2019 can search the widths of stages only with ``projection`` shortcuts (option B).

    Raises:
        ValueError: the depth is not 6n + 2.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"resnet_cifar: depth {depth} is not 6n + 2; the paper's are 20, 32, 44, 56, 110")
    return ResNet([(depth - 2) // 6] * 3, (16, 32, 64), classes=classes, projection=projection)


def resnet18(classes: int = 1000) -> ResNet:
    """ResNet-18 for 224x224 images with projection shortcuts, as He et al. 2016, table 1: 1,220,608 3x3 kernels."""
    return ResNet((2, 2, 2, 2), (64, 128, 256, 512), classes=classes, projection=True, imagenet_stem=True)


def resnet34(classes: int = 1000) -> ResNet:
    """ResNet-34 for 224x224 images with projection shortcuts, as He et al. 2016, table 1."""
    return ResNet((3, 4, 6, 3), (64, 128, 256, 512), classes=classes, projection=True, imagenet_stem=True)


def resnet50(classes: int = 1000) -> ResNet:
    """ResNet-50 for 224x224 images: 25,557,032 parameters, of which 11,317,248 in 3x3 convolutions."""
    return ResNet(
        (3, 4, 6, 3), (64, 128, 256, 512), classes=classes, projection=True, imagenet_stem=True, block=BottleneckBlock
    )


def resnet18_cifar(classes: int = 10) -> ResNet:
    """ResNet-18 with a stem of one 3x3 convolution for 32x32 images: 11,173,962 parameters with 10 classes."""
    return ResNet((2, 2, 2, 2), (64, 128, 256, 512), classes=classes, projection=True)


def resnet34_cifar(classes: int = 10) -> ResNet:
    """ResNet-34 with a stem of one 3x3 convolution for 32x32 images: 21,282,122 parameters with 10 classes."""
    return ResNet((3, 4, 6, 3), (64, 128, 256, 512), classes=classes, projection=True)
