"""VGG-16 for CIFAR-10: Zagoruyko's network (torch.ch blog, 2015) without dropout, with two linear layers or one."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from shrinkbook.nets.coupling import Coupling

VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """Stages of 3x3 convolutions with batch norm and ReLU, each closed by 2x2 max pooling, then linear layers.

    Layers carry the names of Li et al. 2017: ``features.conv_1`` to ``features.conv_13``, ``classifier.linear_1``,
    ``classifier.linear_2``. Input (batch, in_channels, side, side), output (batch, classes) logits.

    Args:
        stages: filters of every convolution, stage by stage.
        hidden: units of the first of two linear layers, None for one linear layer only.
        classes: number of classes.
        in_channels: channels of the input.
        side: height and width of the input; halved once per stage, must not vanish.

    Raises:
        ValueError: the input is too small for the number of poolings.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[int]],
        hidden: int | None,
        classes: int = 10,
        in_channels: int = 3,
        side: int = 32,
    ) -> None:
        super().__init__()
        last_side = side >> len(stages)
        if last_side < 1:
            raise ValueError(f"VGG: an input of side {side} vanishes after {len(stages)} poolings; use fewer stages")
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        self._stage_of: list[int] = []
        channels, number = in_channels, 0
        for stage, widths in enumerate(stages, start=1):
            for width in widths:
                number += 1
                self._stage_of.append(stage)
                layers[f"conv_{number}"] = nn.Conv2d(channels, width, 3, padding=1)
                layers[f"bn_{number}"] = nn.BatchNorm2d(width)
                layers[f"relu_{number}"] = nn.ReLU(inplace=True)
                channels = width
            layers[f"pool_{stage}"] = nn.MaxPool2d(2)
        self.features = nn.Sequential(layers)
        features = channels * last_side**2
        classifier: OrderedDict[str, nn.Module] = OrderedDict(
            linear_1=nn.Linear(features, classes if hidden is None else hidden)
        )
        if hidden is not None:
            classifier["bn_linear_1"] = nn.BatchNorm1d(hidden)
            classifier["relu_linear_1"] = nn.ReLU(inplace=True)
            classifier["linear_2"] = nn.Linear(hidden, classes)
        self.classifier = nn.Sequential(classifier)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))

    def chain(self) -> list[nn.Module]:
        """The same network as a chain of modules, each fed by the one before; it shares their weights."""
        return [*self.features, nn.Flatten(1), self.classifier]

    def couplings(self) -> dict[str, Coupling]:
        """Every set of maps that can be pruned, by the paper's layer name, from input to output."""
        convs = [f"conv_{number}" for number in range(1, len(self._stage_of) + 1)]
        readers = [f"features.{name}" for name in convs[1:]] + ["classifier.linear_1"]
        return {
            name: Coupling(
                (f"features.{name}",), (f"features.{name.replace('conv', 'bn')}",), (reader,), f"features.{name}", stage
            )
            for name, reader, stage in zip(convs, readers, self._stage_of, strict=True)
        }


def vgg16(classes: int = 10) -> VGG:
    """VGG-16 on 32x32 colour images: 313,463,808 multiply-accumulates, 14,991,946 parameters (Li et al., table 2)."""
    return VGG(VGG16_STAGES, hidden=512, classes=classes)


def vgg16_one_linear(classes: int = 10) -> VGG:
    """VGG-16 of Son et al. 2018: one linear layer behind 13 convolutions of 313,196,544 multiply-accumulates.

    1,634,496 kernels of 3x3; the convolutions have biases in addition to batch norm.
    """
    return VGG(VGG16_STAGES, hidden=None, classes=classes)
