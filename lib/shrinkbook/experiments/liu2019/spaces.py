"""Search spaces by the names that settings use, and the file that takes a width vector from search to training."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from shrinkbook import nets
from shrinkbook.evidence import store
from shrinkbook.methods.metapruning_space import RATIOS, Genes, SearchSpace, free_widths_of

EIGHTHS = tuple(n / 8 for n in range(1, 9))
QUARTERS = (0.25, 0.5, 0.75, 1.0)  # the widths of a device's look-up table, which takes time to measure


@dataclass(frozen=True)
class Searched:
    """A full network, the ratios of its widths, units of its generators, (channels, height, width) of its images."""

    build: Callable[[], nn.Module]
    ratios: Sequence[float]
    hidden: int
    shape: tuple[int, int, int]

    def space(self) -> SearchSpace:
        """The space below the network."""
        model = self.build()
        return SearchSpace(model, free_widths_of(model), self.ratios)


def digits_three_blocks() -> nets.ResNet:
    """Three residual blocks with projection shortcuts for 8x8 digits: two stage widths and three inner ones."""
    return nets.ResNet((1, 1, 1), (8, 16, 32), in_channels=1, projection=True)


IMAGENET, CIFAR = (3, 224, 224), (3, 32, 32)
SPACES = {
    "digits ResNet of three blocks": Searched(digits_three_blocks, EIGHTHS, 32, (1, 8, 8)),
    "ResNet-20 with projections": Searched(lambda: nets.resnet_cifar(20, projection=True), RATIOS, 32, CIFAR),
    "ResNet-20, inner widths": Searched(lambda: nets.resnet_cifar(20), QUARTERS, 32, CIFAR),
    "ResNet-56 with projections": Searched(lambda: nets.resnet_cifar(56, projection=True), RATIOS, 32, CIFAR),
    "MobileNetV1 for CIFAR": Searched(nets.mobilenet_v1_cifar, RATIOS, 32, CIFAR),
    "MobileNetV2 for CIFAR": Searched(nets.mobilenet_v2_cifar, RATIOS, 64, CIFAR),
    "MobileNetV1": Searched(nets.mobilenet_v1, RATIOS, 32, IMAGENET),
    "MobileNetV2": Searched(nets.mobilenet_v2_supernet, RATIOS, 64, IMAGENET),
    "ResNet-50": Searched(nets.resnet50, RATIOS, 32, IMAGENET),
}


def save_vector(path: Path, net: str, space: SearchSpace, genes: Genes) -> Path:
    """Write what training needs to build the network that a search found."""
    content = {"net": net, "ratios": space.ratios, "genes": genes, "widths": space.widths(genes)}
    return store.write_text(path, json.dumps(content, indent=1) + "\n")


def load_vector(path: Path, net: str, space: SearchSpace) -> dict[str, int]:
    """The widths of a vector file.

    Raises:
        ValueError: the file is of another network, or its widths are not those of its genes.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["net"] != net or tuple(content["ratios"]) != space.ratios:
        raise ValueError(f"{path} holds widths of {content['net']} at its own ratios, not of {net}: search again")
    widths = space.widths(content["genes"])
    if widths != content["widths"]:
        raise ValueError(f"{path}: genes and widths disagree; search again")
    return widths


def downsampling(space: SearchSpace) -> list[str]:
    """Free widths of the maps that a strided convolution within a block writes."""
    strided = [p for p, conv in space.convolutions.items() if "." in p and conv.kernel_size != (1, 1)]
    return sorted({
        axes.writes for path in strided
        if (axes := space.axes[path]).writes and space.convolutions[path].stride != (1, 1)
    }, key=space.names.index)  # fmt: skip
