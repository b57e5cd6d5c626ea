"""The clustered models by the paper's names: C64, C64N, C128-TIC2, C64-M (a codebook a layer), C64-M2 (two)."""

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from shrinkbook.methods import kernel_clustering, kernel_sizes

NAME = re.compile(r"C(?P<k>\d+)(?P<plain>N?)(-TIC(?P<transforms>[248]))?(-(?P<books>M|M2))?")
TWO_GROUPS = 10  # convolutions of VGG-16 that share the first of two codebooks (section on multiple codebooks)


def settings(name: str, model: nn.Module) -> dict[str, Any]:
    """Arguments of :func:`~shrinkbook.methods.kernel_clustering.compress` for a name, on this network.

    Raises:
        ValueError: a name of another form.
    """
    found = NAME.fullmatch(name)
    if not found:
        raise ValueError(f"clustered model {name!r}: write C64, C64N, C64-TIC4, C64-M or C64-M2")
    codebooks: str | Sequence[Sequence[str]] = "one"
    if found["books"]:
        layers = list(kernel_clustering.spatial_layers(model))
        codebooks = "per layer" if found["books"] == "M" else (layers[:TWO_GROUPS], layers[TWO_GROUPS:])
    return {
        "k": int(found["k"]),
        "transforms": int(found["transforms"] or 1),
        "scaled": not found["plain"],
        "codebooks": codebooks,
    }


def is_plain(name: str) -> bool:
    """One codebook, no transforms, with scales: the models that differ in the number of centroids only."""
    return re.fullmatch(r"C\d+", name) is not None


def index_bits(name: str) -> int:
    """Bits of index and transform of a kernel."""
    found = NAME.fullmatch(name)
    assert found
    return kernel_sizes.index_bits(int(found["k"]), int(found["transforms"] or 1))
