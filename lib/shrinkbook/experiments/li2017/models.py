"""The named pruned models of Li et al. 2017 (section 4, table 1), and their twins on digits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from shrinkbook.experiments.networks import NETS
from shrinkbook.methods.filter_pruning import couplings_of

INPUTS = {"VGG-16": (3, 32, 32), "ResNet-56": (3, 32, 32), "ResNet-110": (3, 32, 32), "ResNet-34": (3, 224, 224)}


@dataclass(frozen=True)
class Pruned:
    """A named pruned model: which network, and how much of which layer goes.

    Args:
        given: what goes: ratios by layer, or the ratios of :func:`by_stage`.
        skip: numbers of the sensitive layers, of which nothing goes.
    """

    net: str
    given: Mapping[str, float] | Sequence[float]
    skip: Sequence[int] = ()

    @cached_property
    def ratios(self) -> dict[str, float]:
        """Of every layer that is pruned."""
        return dict(self.given) if isinstance(self.given, Mapping) else by_stage(self.net, self.given, self.skip)


def by_stage(net: str, ratios: Sequence[float], skip: Sequence[int] = ()) -> dict[str, float]:
    """One ratio per stage for the first convolutions of all residual blocks, without sensitive layers (section 3.3)."""
    with torch.device("meta"):  # only its shape is asked for
        couplings = couplings_of(NETS[net]())
    left_out = {f"conv_{number}" for number in skip}
    return {
        name: ratios[coupling.stage - 1]
        for name, coupling in couplings.items()
        if name.startswith("conv_") and name not in left_out and ratios[coupling.stage - 1] > 0
    }


RESNET34_SENSITIVE = (2, 8, 14, 16, 26, 28, 30, 32)
VGG_A = {f"conv_{number}": 0.5 for number in (1, 8, 9, 10, 11, 12, 13)}

PRUNED = {
    "VGG-16-pruned-A": Pruned("VGG-16", VGG_A),
    "ResNet-56-pruned-A": Pruned("ResNet-56", (0.1, 0.1, 0.1), (16, 20, 38, 54)),
    "ResNet-56-pruned-B": Pruned("ResNet-56", (0.6, 0.3, 0.1), (16, 18, 20, 34, 38, 54)),
    "ResNet-110-pruned-A": Pruned("ResNet-110", (0.5, 0.0, 0.0), (36,)),
    "ResNet-110-pruned-B": Pruned("ResNet-110", (0.5, 0.4, 0.3), (36, 38, 74)),
    "ResNet-34-pruned-A": Pruned("ResNet-34", (0.3, 0.3, 0.3, 0.0), RESNET34_SENSITIVE),
    "ResNet-34-pruned-B": Pruned("ResNet-34", (0.5, 0.6, 0.4, 0.0), RESNET34_SENSITIVE),
    "ResNet-34-pruned-C": Pruned("ResNet-34", {"stage_3": 0.2}),
    # The twins on digits keep the shape of the paper's choice: the first and the last, over-wide layers of a VGG;
    # of a ResNet the first convolutions at 60, 30, 10 %, without the blocks at the borders of stages.
    "digits VGG-pruned-A": Pruned("digits VGG", {"conv_1": 0.5, "conv_5": 0.5, "conv_6": 0.5, "conv_7": 0.5}),
    "digits ResNet-pruned-B": Pruned("digits ResNet", (0.6, 0.3, 0.1), (8, 14, 18)),
}
