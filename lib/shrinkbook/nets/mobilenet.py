"""MobileNetV1 (Howard et al. 2017) and MobileNetV2 (Sandler et al. 2018), for ImageNet and for 32x32 images."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from shrinkbook.nets.coupling import Coupling

V1_WIDTHS = (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)
V1_STRIDES = (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
V2_WIDTHS = (32, 16, 24, 32, 64, 96, 160, 320)
V2_SUPERNET = (44, 22, 33, 44, 88, 132, 224, 448)  # Liu et al. 2019 search below a net about 1.4 times as wide
V2_REPEATS = (1, 2, 3, 4, 3, 3, 1)
V2_STRIDES = (2, 1, 2, 2, 2, 1, 2, 1)


class DepthwiseBlock(nn.Module):
    """A 3x3 depthwise and a 1x1 convolution, each with batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, 3, stride=stride, padding=1, groups=in_channels, bias=False
        )
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.depthwise(x)), inplace=True)
        return F.relu(self.bn2(self.pointwise(x)), inplace=True)


class MobileNetV1(nn.Module):
    """A 3x3 convolution, depthwise blocks, global average pooling, a linear layer.

    Input (batch, in_channels, height, width), output (batch, classes) logits.

    Args:
        widths: output channels of the stem and of every block.
        strides: of the stem and of every block.
        classes: number of classes.
        in_channels: channels of the input.

    Raises:
        ValueError: as many strides as widths are needed.
    """

    def __init__(
        self, widths: Sequence[int], strides: Sequence[int], classes: int = 1000, in_channels: int = 3
    ) -> None:
        super().__init__()
        if len(widths) != len(strides):
            raise ValueError(f"MobileNetV1: {len(widths)} widths and {len(strides)} strides; give one for each layer")
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, stride=strides[0], padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        pairs = zip(widths[:-1], widths[1:], strides[1:], strict=True)
        self.blocks = nn.Sequential(*[DepthwiseBlock(*pair) for pair in pairs])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn1(self.conv1(x)), inplace=True))
        return self.linear(self.pool(x).flatten(1))

    def free_widths(self) -> dict[str, Coupling]:
        """The maps between layers, ``layer_1`` (the stem's) and on; the last ones feed the classifier and stay."""
        found = {}
        for number in range(1, len(self.blocks) + 1):
            writer, norm = ("conv1", "bn1") if number == 1 else (f"blocks.{number - 2}.pointwise", _norm(number - 2, 2))
            reader = f"blocks.{number - 1}"
            found[f"layer_{number}"] = Coupling(
                producers=(writer, f"{reader}.depthwise"),
                norms=(norm, f"{reader}.bn1"),
                consumers=(f"{reader}.pointwise",),
                ranked_by=writer,
                stage=number,
            )
        return found


class InvertedBottleneck(nn.Module):
    """1x1 to ``mid`` maps, 3x3 depthwise, 1x1 to the output without ReLU, beside an identity if ``shortcut`` is set.

    The first 1x1 is always there, also where ``mid`` is the number of input maps, as in the code of Liu et al. 2019.
    """

    def __init__(self, in_channels: int, mid: int, out_channels: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        self.expand = nn.Conv2d(in_channels, mid, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.depthwise = nn.Conv2d(mid, mid, 3, stride=stride, padding=1, groups=mid, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.project = nn.Conv2d(mid, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.bn1(self.expand(x)), inplace=True)
        y = F.relu6(self.bn2(self.depthwise(y)), inplace=True)
        y = self.bn3(self.project(y))
        return y + x if self.shortcut else y


class MobileNetV2(nn.Module):
    """A 3x3 convolution, stages of inverted bottlenecks, a 1x1 convolution, global average pooling, a linear layer.

    Input (batch, in_channels, height, width), output (batch, classes) logits.

    Args:
        widths: output channels of the stem and of every stage.
        strides: of the stem and of the first block of every stage.
        repeats: blocks of every stage.
        last: channels of the last 1x1 convolution.
        classes: number of classes.
        in_channels: channels of the input.
    """

    def __init__(
        self,
        widths: Sequence[int],
        strides: Sequence[int] = V2_STRIDES,
        repeats: Sequence[int] = V2_REPEATS,
        last: int = 1280,
        classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.repeats = tuple(repeats)
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, stride=strides[0], padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.blocks = nn.Sequential()
        channels = widths[0]
        for count, width, stride in zip(repeats, widths[1:], strides[1:], strict=True):
            for index in range(count):
                mid = channels * (6 if len(self.blocks) else 1)
                self.blocks.append(InvertedBottleneck(channels, mid, width, 1 if index else stride, shortcut=index > 0))
                channels = width
        self.head = nn.Conv2d(channels, last, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(last)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu6(self.bn1(self.conv1(x)), inplace=True))
        x = F.relu6(self.bn2(self.head(x)), inplace=True)
        return self.linear(self.pool(x).flatten(1))

    def free_widths(self) -> dict[str, Coupling]:
        """Maps added up by shortcuts, ``stage_1`` (the stem's) and on, then those inside blocks, ``mid_1`` and on."""
        found, first = {}, 0
        writers, norms = ["conv1"], ["bn1"]
        for stage, count in enumerate((*self.repeats, 0), start=1):
            readers = [f"blocks.{first}.expand"] if count else ["head"]
            if stage > 1:
                inside = range(first - self.repeats[stage - 2], first)
                writers, norms = [f"blocks.{i}.project" for i in inside], [_norm(i, 3) for i in inside]
                readers += [f"blocks.{i}.expand" for i in inside[1:]]
            found[f"stage_{stage}"] = Coupling(tuple(writers), tuple(norms), tuple(readers), writers[0], stage)
            first += count
        for i in range(len(self.blocks)):
            found[f"mid_{i + 1}"] = Coupling(
                producers=(f"blocks.{i}.expand", f"blocks.{i}.depthwise"),
                norms=(_norm(i, 1), _norm(i, 2)),
                consumers=(f"blocks.{i}.project",),
                ranked_by=f"blocks.{i}.expand",
                stage=i + 1,
            )
        return found


def _norm(block: int, number: int) -> str:
    return f"blocks.{block}.bn{number}"


def mobilenet_v1(width: float = 1.0, classes: int = 1000) -> MobileNetV1:
    """MobileNetV1 for 224x224 images: 568,740,352 multiply-accumulates at width 1. Channels are int(base * width)."""
    return MobileNetV1([int(base * width) for base in V1_WIDTHS], V1_STRIDES, classes)


def mobilenet_v1_cifar(classes: int = 10) -> MobileNetV1:
    """MobileNetV1 for 32x32 images: the stem keeps the size of the maps."""
    return MobileNetV1(V1_WIDTHS, (1, *V1_STRIDES[1:]), classes)


def mobilenet_v2(width: float = 1.0, last: int = 1280, classes: int = 1000) -> MobileNetV2:
    """MobileNetV2 for 224x224 images: 313,619,328 multiply-accumulates at width 1, of which 12,845,056 are the first
    block's 1x1 convolution. Channels are int(base * width), blocks widen to six times that; the last 1280 are kept."""
    return MobileNetV2([int(base * width) for base in V2_WIDTHS], last=last, classes=classes)


def mobilenet_v2_supernet(classes: int = 1000) -> MobileNetV2:
    """The network whose widths Liu et al. 2019 search: 569.5 million multiply-accumulates."""
    return MobileNetV2(V2_SUPERNET, classes=classes)


def mobilenet_v2_cifar(classes: int = 10) -> MobileNetV2:
    """MobileNetV2 for 32x32 images: stem and second stage keep the size of the maps."""
    return MobileNetV2(V2_WIDTHS, strides=(1, 1, 1, *V2_STRIDES[3:]), classes=classes)
