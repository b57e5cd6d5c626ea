"""Networks as people write them, without a word on which maps belong together; the first three as torchvision does."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """torchvision's BasicBlock, or with ``expansion`` 4 its Bottleneck: ``downsample`` is None or a projection."""

    def __init__(self, inputs: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        outer = width * expansion
        shapes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        if expansion > 1:
            shapes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outer, 1, 1)]
        self.depth = len(shapes)
        for number, (read, wrote, side, step) in enumerate(shapes, 1):
            setattr(self, f"conv{number}", nn.Conv2d(read, wrote, side, step, side // 2, bias=False))
            setattr(self, f"bn{number}", nn.BatchNorm2d(wrote))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outer:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        identity, out = x, x
        for number in range(1, self.depth + 1):
            out = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(out))
            if number < self.depth:
                out = self.relu(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class PlainResNet(nn.Module):
    """torchvision's ResNet: names, stem, ``downsample``, ``torch.flatten`` before ``fc``."""

    def __init__(self, blocks=(2, 2, 2, 2), widths=(64, 128, 256, 512), classes=1000, expansion=1, channels=3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.stages = len(blocks)
        inputs = widths[0]
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), 1):
            layer = nn.Sequential()
            for index in range(count):
                layer.append(Block(inputs, width, 2 if stage > 1 and not index else 1, expansion))
                inputs = width * expansion
            setattr(self, f"layer{stage}", layer)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


class PlainVGG(nn.Module):
    """torchvision's VGG: numbered features without batch norm, pooling to a fixed size, a classifier with dropout."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for read, wrote in ((3, 8), (8, 10), (10, 12)):
            layers += [nn.Conv2d(read, wrote, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((3, 3))
        self.classifier = nn.Sequential(nn.Linear(12 * 9, 20), nn.ReLU(True), nn.Dropout(), nn.Linear(20, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class ConvNormReLU6(nn.Sequential):
    """A convolution, batch norm and ReLU6 in one."""

    def __init__(self, read: int, wrote: int, side: int = 3, stride: int = 1, groups: int = 1) -> None:
        conv = nn.Conv2d(read, wrote, side, stride, (side - 1) // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(wrote), nn.ReLU6(inplace=True))


class Inverted(nn.Module):
    """torchvision's InvertedResidual: everything in one Sequential, no expansion at ratio 1."""

    def __init__(self, read: int, wrote: int, stride: int, ratio: int) -> None:
        super().__init__()
        hidden = read * ratio
        layers: list[nn.Module] = [ConvNormReLU6(read, hidden, 1)] if ratio > 1 else []
        layers += [ConvNormReLU6(hidden, hidden, 3, stride, hidden), nn.Conv2d(hidden, wrote, 1, bias=False)]
        self.conv = nn.Sequential(*layers, nn.BatchNorm2d(wrote))
        self.use_res_connect = stride == 1 and read == wrote

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class PlainMobileNetV2(nn.Module):
    """torchvision's MobileNetV2, small."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        blocks = [Inverted(12, 10, 1, 1), Inverted(10, 14, 2, 3), Inverted(14, 14, 1, 3), ConvNormReLU6(14, 20, 1)]
        self.features = nn.Sequential(ConvNormReLU6(3, 12, 3, 2), *blocks)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(20, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(torch.flatten(x, 1))


class Squeezed(nn.Module):
    """Two convolutions with a squeeze-and-excitation gate made of 1x1 convolutions, as in EfficientNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.fc1, self.fc2 = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.conv2, self.linear = nn.Conv2d(8, 6, 3), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.bn1(self.conv1(x)))
        scale = torch.sigmoid(self.fc2(F.silu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))
        return self.linear(self.conv2(scale * x).mean([2, 3]))


class Dense(nn.Module):
    """Layers that read a list of all earlier maps side by side, as torchvision's DenseNet; a transition; flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6 + 4 * i) for i in range(3)])
        self.convs = nn.ModuleList([nn.Conv2d(6 + 4 * i, 4, 3, padding=1, bias=False) for i in range(3)])
        self.norm = nn.BatchNorm2d(18)
        self.transition = nn.Conv2d(18, 9, 1)
        self.after = nn.BatchNorm1d(9 * 16)
        self.linear = nn.Linear(9 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        x = self.transition(F.relu(self.norm(torch.cat(features, 1))))
        x = F.max_pool2d(x, 2)
        return self.linear(F.relu(self.after(x.view(x.size(0), -1))))


class Fires(nn.Module):
    """Two fire modules of SqueezeNet, whose concatenation goes into a linear layer, flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        for number, read in ((1, 6), (2, 9)):
            setattr(self, f"squeeze{number}", nn.Conv2d(read, 4, 1))
            setattr(self, f"expand{number}_1", nn.Conv2d(4, 4, 1))
            setattr(self, f"expand{number}_3", nn.Conv2d(4, 5, 3, padding=1))
        self.linear = nn.Linear(9 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        for number in (1, 2):
            few = F.relu(getattr(self, f"squeeze{number}")(x))
            sides = getattr(self, f"expand{number}_1")(few), getattr(self, f"expand{number}_3")(few)
            x = F.avg_pool2d(F.relu(torch.cat(sides, dim=1)), 2 if number == 2 else 1)
        return self.linear(x.reshape(x.shape[0], -1))


class Sampled(nn.Module):
    """A ResNet for 32x32 images whose shortcut takes every second pixel and fills with zeros, as a slice and a pad."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv1, self.bn1 = nn.Conv2d(4, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 6, 1)
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        x = F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return self.linear(self.conv3(x[:, :, 1:, 1:]).mean(dim=(-2, -1)))
