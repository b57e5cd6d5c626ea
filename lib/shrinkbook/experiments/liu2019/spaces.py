"""Search spaces by the names that settings use, and the files of a search: what it has seen, the vector it found."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from shrinkbook import nets
from shrinkbook.evidence import store
from shrinkbook.methods.metapruning_candidates import Constraint, Search
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
        ValueError: no such file, one of another network, or one whose widths are not those of its genes.
    """
    content = read(path)
    if not isinstance(content, dict) or not {"net", "ratios", "genes", "widths"} <= set(content):
        raise ValueError(f"{path} is no width vector with net, ratios, genes and widths: search again")
    if content["net"] != net or content["ratios"] != list(space.ratios):
        raise ValueError(f"{path} holds widths of {content['net']} at its own ratios, not of {net}: search again")
    widths = space.widths(content["genes"])
    if widths != content["widths"]:
        raise ValueError(f"{path}: genes and widths disagree; search again")
    return widths


def load_search(path: Path, limit: Constraint) -> Search | None:
    """What an interrupted search had evaluated, None if it had not begun.

    Raises:
        ValueError: the file is broken, or its vectors cost something else by now.
    """
    if not path.exists():
        return None
    try:
        search = Search.restored(read(path))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no state of a search: delete it to search afresh") from error
    if any(limit.cost(one.genes) != one.cost for one in search.candidates):
        raise ValueError(f"{path} was searched by other costs: delete it to search afresh")
    return search


def saving(path: Path) -> Callable[[Search], None]:
    """Writes a search to its file, to be called after every generation."""

    def save(search: Search) -> None:
        store.write_text(path, json.dumps(search.plain()) + "\n")

    return save


def read(path: Path) -> Any:
    """The content of one of a search's files.

    Raises:
        ValueError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): search again") from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: delete it and search again") from error


def uniform_vector(space: SearchSpace, ratio: float) -> Genes:
    """Every width at the listed ratio that is nearest."""
    gene = min(range(len(space.ratios)), key=lambda gene: abs(space.ratios[gene] - ratio))
    return (gene,) * len(space.names)


def by_depth(space: SearchSpace) -> list[str]:
    """Free widths from the first layer to the last: in the order in which the network first writes such maps."""
    order = {path: index for index, path in enumerate(space.convolutions)}
    return sorted(space.names, key=lambda name: min(order[path] for path in space.couplings[name].producers))


def downsampling(space: SearchSpace) -> list[str]:
    """Free widths of the maps that a strided convolution within a block writes."""
    strided = [p for p, conv in space.convolutions.items() if "." in p and conv.kernel_size != (1, 1)]
    return sorted({
        axes.writes for path in strided
        if (axes := space.axes[path]).writes and space.convolutions[path].stride != (1, 1)
    }, key=space.names.index)  # fmt: skip
