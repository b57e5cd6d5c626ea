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

    def inputs(self, path: str, width: int, maps: int, chosen: Tensor) -> Tensor:
        """Indices of what chosen maps fill in a norm or consumer: an input each, or their pixels behind a flatten.

        Args:
            path: of the norm or consumer.
            width: its inputs.
            maps: how many maps there are in this coupling.
            chosen: (n,) indices of maps.
        """
        start, each = self.at.get(path, (0, width // maps))
        return (start + chosen[:, None] * each + torch.arange(each, device=chosen.device)).flatten()
