"""Which tensors of a network share one axis of feature maps."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Coupling:
    """One set of feature maps: whoever removes a map from it must touch every module named here.

    All names are module paths as in ``model.get_submodule``.

    Args:
        producers: convolutions that write the maps (their output axis); more than one where shortcuts add them up. A
            depthwise convolution over the maps writes them too, for it has one filter for each.
        norms: batch norms over the maps.
        consumers: convolutions or linear layers that read the maps (their input axis).
        ranked_by: the producer whose filters decide which maps go; the paper's choice where there are several.
        stage: 1-based index of the group of layers with this size of feature map.
        at: norms and consumers that see other maps too, behind a concatenation: where these maps begin, and how many
            inputs each of them fills.
    """

    producers: tuple[str, ...]
    norms: tuple[str, ...]
    consumers: tuple[str, ...]
    ranked_by: str
    stage: int
    at: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def place(self, path: str, width: int, maps: int) -> tuple[int, int]:
        """Where these ``maps`` begin among the ``width`` inputs of a norm or consumer, and how many each of them fills:
        one, or its pixels behind a flatten."""
        return self.at.get(path, (0, width // maps))

    def inputs(self, path: str, width: int, maps: int, chosen: Tensor) -> Tensor:
        """Indices of the inputs of a norm or consumer that ``chosen`` maps, (n,) indices, fill; the rest as above."""
        start, each = self.place(path, width, maps)
        return (start + chosen[:, None] * each + torch.arange(each, device=chosen.device)).flatten()
