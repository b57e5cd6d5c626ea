"""The networks of Li et al. 2017, their small twins on digits, and the named pruned models (section 4, table 1)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from shrinkbook import nets
from shrinkbook.methods.filter_pruning import couplings_of


def digits_vgg() -> nets.VGG:
    """A narrow VGG for 8x8 digits: seven convolutions in three stages."""
    return nets.VGG(((16, 16), (16, 16), (32, 32, 32)), hidden=32, in_channels=1, side=8)


def digits_resnet() -> nets.ResNet:
    """ResNet-20 at half width for digits, option-A shortcuts as in the paper's CIFAR networks."""
    return nets.ResNet((3, 3, 3), (8, 16, 32), in_channels=1)


def digits_projection() -> nets.ResNet:
    """ResNet-14 at half width for digits with projection shortcuts, as the paper's ResNet-34 has them."""
    return nets.ResNet((2, 2, 2), (8, 16, 32), in_channels=1, projection=True)


NETS: dict[str, Callable[[], nn.Module]] = {
    "VGG-16": nets.vgg16,
    "ResNet-56": lambda: nets.resnet_cifar(56),
    "ResNet-110": lambda: nets.resnet_cifar(110),
    "ResNet-34": nets.resnet34,
    "digits VGG": digits_vgg,
    "digits ResNet": digits_resnet,
    "digits ResNet with projections": digits_projection,
}

INPUTS = {"VGG-16": (3, 32, 32), "ResNet-56": (3, 32, 32), "ResNet-110": (3, 32, 32), "ResNet-34": (3, 224, 224)}


@dataclass(frozen=True)
class Pruned:
    """A named pruned model: which network, and how much of which layer goes."""

    net: str
    ratios: dict[str, float]


def by_stage(net: str, ratios: Sequence[float], skip: Sequence[int] = ()) -> dict[str, float]:
    """One ratio per stage for the first convolutions of all residual blocks, without sensitive layers (section 3.3)."""
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
    "ResNet-56-pruned-A": Pruned("ResNet-56", by_stage("ResNet-56", (0.1, 0.1, 0.1), (16, 20, 38, 54))),
    "ResNet-56-pruned-B": Pruned("ResNet-56", by_stage("ResNet-56", (0.6, 0.3, 0.1), (16, 18, 20, 34, 38, 54))),
    "ResNet-110-pruned-A": Pruned("ResNet-110", by_stage("ResNet-110", (0.5, 0.0, 0.0), (36,))),
    "ResNet-110-pruned-B": Pruned("ResNet-110", by_stage("ResNet-110", (0.5, 0.4, 0.3), (36, 38, 74))),
    "ResNet-34-pruned-A": Pruned("ResNet-34", by_stage("ResNet-34", (0.3, 0.3, 0.3, 0.0), RESNET34_SENSITIVE)),
    "ResNet-34-pruned-B": Pruned("ResNet-34", by_stage("ResNet-34", (0.5, 0.6, 0.4, 0.0), RESNET34_SENSITIVE)),
    "ResNet-34-pruned-C": Pruned("ResNet-34", {"stage_3": 0.2}),
    # The twins on digits keep the shape of the paper's choice: the first and the last, over-wide layers of a VGG;
    # of a ResNet the first convolutions at 60, 30, 10 %, without the blocks at the borders of stages.
    "digits VGG-pruned-A": Pruned("digits VGG", {"conv_1": 0.5, "conv_5": 0.5, "conv_6": 0.5, "conv_7": 0.5}),
    "digits ResNet-pruned-B": Pruned("digits ResNet", by_stage("digits ResNet", (0.6, 0.3, 0.1), (8, 14, 18))),
}
