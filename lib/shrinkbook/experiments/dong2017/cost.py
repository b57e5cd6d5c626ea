"""What the printed savings leave of each network's multiply-accumulates, by the count of the network that they fit."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from shrinkbook import nets
from shrinkbook.evidence import claims
from shrinkbook.experiments.run import Context
from shrinkbook.measure.cost import Cost, cost
from shrinkbook.methods.lccl_saving import share_removed

# The reading whose digits come out, see deviation base_cost: projections on CIFAR, the stride in the 3x3 convolution.
FITTING: dict[str, Callable[[], nn.Module]] = {
    **{f"ResNet-{depth}": partial(nets.preact_resnet_cifar, depth, projection=True) for depth in (20, 32, 56, 110)},
    "ResNet-164": partial(nets.preact_resnet_bottleneck, stride_in_3x3=True),
    "ResNet-18": partial(nets.preact_resnet_imagenet, 18),
    "ResNet-34": partial(nets.preact_resnet_imagenet, 34),
}
AS_PUBLISHED: dict[str, Callable[[], nn.Module]] = {
    **{f"ResNet-{depth}": partial(nets.preact_resnet_cifar, depth) for depth in (20, 32, 44, 56, 110)},
    "ResNet-164": nets.preact_resnet_bottleneck,
    "ResNet-18": FITTING["ResNet-18"],
    "ResNet-34": FITTING["ResNet-34"],
}


def counted(build: Callable[[], nn.Module], side: int) -> Cost:
    """Cost of one image of three channels, on the meta device."""
    with torch.device("meta"):
        return cost(build(), (3, side, side))


def costs(run: Context) -> None:
    """Cells that follow from the printed savings, and the costs of all networks with both readings of a saving."""
    paper = claims.load("dong2017")
    printed = {cell.address: cell.number for table in paper.tables.values() for cell in table.cells}
    savings = []
    base: dict[str, dict[str, float]] = {}
    for table, side in (("cifar10", 32), ("cifar100", 32), ("imagenet", 224)):
        for net, build in FITTING.items():
            saved = printed.get(f"{table}/{net}-LCCL/saved")
            if saved is None:
                continue
            savings.append(saved)
            mac = counted(build, side).mac
            row = f"{table}/{net}-LCCL"
            if printed.get(f"{row}/flop") is not None:
                run.cell(f"{row}/flop", mac * (1 - share_removed(saved, "removed")))
            base[row] = {
                "saved": saved,
                "base, fitting": mac,
                "base, as published": counted(AS_PUBLISHED[net], side).mac,
                "left if removed": mac * (1 - share_removed(saved, "removed")),
                "left if faster": mac * (1 - share_removed(saved, "faster")),
            }
    for net, source in (("ResNet-20", "ResNet-20-LCCL, second row"), ("ResNet-32", "ResNet-32-LCCL")):
        blocks = counted(AS_PUBLISHED[net], 32).without("stem").without("linear").mac
        saved = printed[f"cifar10/{source}/saved"]
        assert saved is not None
        run.cell(f"cifar10/{net}-LCCL, second row/flop", blocks * (1 - share_removed(saved, "removed")))
    run.cell("introduction/average/saved", sum(savings) / len(savings))
    run.measurements["readings"] = base
    run.measurements["networks"] = {
        net: counted(build, 224 if net in ("ResNet-18", "ResNet-34") else 32).mac for net, build in AS_PUBLISHED.items()
    }
