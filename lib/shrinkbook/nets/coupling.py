"""Which tensors of a network share one axis of feature maps."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Coupling:
    """One set of feature maps: whoever removes a map from it must touch every module named here.

    All names are module paths as in ``model.get_submodule``.

    Args:
        producers: convolutions that write the maps (their output axis); more than one where shortcuts add them up.
        norms: batch norms over the maps.
        consumers: convolutions or linear layers that read the maps (their input axis).
        ranked_by: the producer whose filters decide which maps go; the paper's choice where there are several.
        stage: 1-based index of the group of layers with this size of feature map.
    """

    producers: tuple[str, ...]
    norms: tuple[str, ...]
    consumers: tuple[str, ...]
    ranked_by: str
    stage: int
