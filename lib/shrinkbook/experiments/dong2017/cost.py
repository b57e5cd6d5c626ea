"""What the printed savings leave of each network's multiply-accumulates, as published and in another reading."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from shrinkbook import nets
from shrinkbook.evidence import claims
from shrinkbook.experiments.experiment import Context
from shrinkbook.measure.cost import cost
from shrinkbook.methods.lccl_saving import share_removed

# The other reading, see deviation base_cost: projections on CIFAR, the stride in the 3x3 convolution.
OTHER: dict[str, Callable[[], nn.Module]] = {
    **{f"ResNet-{depth}": partial(nets.preact_resnet_cifar, depth, projection=True) for depth in (20, 32, 56, 110)},
    "ResNet-164": partial(nets.preact_resnet_bottleneck, stride_in_3x3=True),
    "ResNet-18": partial(nets.preact_resnet_imagenet, 18),
    "ResNet-34": partial(nets.preact_resnet_imagenet, 34),
}
AS_PUBLISHED: dict[str, Callable[[], nn.Module]] = {
    **{f"ResNet-{depth}": partial(nets.preact_resnet_cifar, depth) for depth in (20, 32, 44, 56, 110)},
    "ResNet-164": nets.preact_resnet_bottleneck,
    "ResNet-18": OTHER["ResNet-18"],
    "ResNet-34": OTHER["ResNet-34"],
}


SIDES = {"ResNet-18": 224, "ResNet-34": 224}  # of ImageNet's images; CIFAR's have 32


def counted(networks: Mapping[str, Callable[[], nn.Module]]) -> dict[str, int]:
    """Multiply-accumulates of each network for one image of three channels, on the meta device."""
    with torch.device("meta"):
        return {net: cost(build(), (3, SIDES.get(net, 32), SIDES.get(net, 32))).mac for net, build in networks.items()}


def costs(run: Context) -> None:
    """Cells that follow from the printed savings, and the costs of all networks with both readings of a saving."""
    paper = claims.load("dong2017")
    printed = {cell.address: cell.number for table in paper.tables.values() for cell in table.cells}
    savings = []
    as_published, other = counted(AS_PUBLISHED), counted(OTHER)
    base: dict[str, dict[str, float | None]] = {}
    for table in ("cifar10", "cifar100", "imagenet"):
        for net, mac in other.items():
            saved = printed.get(f"{table}/{net}-LCCL/saved")
            if saved is None:
                continue
            savings.append(saved)
            published, row = as_published[net], f"{table}/{net}-LCCL"
            if printed.get(f"{row}/flop") is not None:
                run.cell(f"{row}/flop", published * (1 - share_removed(saved, "removed")))
            base[row] = {
                "saved": saved,
                "printed, left": printed.get(f"{row}/flop"),
                "base, as published": published,
                "left if removed": published * (1 - share_removed(saved, "removed")),
                "left if faster": published * (1 - share_removed(saved, "faster")),
                "base, other reading": mac,
                "left, other reading": mac * (1 - share_removed(saved, "removed")),
            }
    run.cell("introduction/average/saved", sum(savings) / len(savings))
    run.measurements["readings"] = base
    run.measurements["networks"] = as_published
