"""What tables 1 to 3 print of each searched network: its accuracy, its FLOPs, and the uniform network beside it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

from torch import nn

from shrinkbook import nets
from shrinkbook.evidence import claims
from shrinkbook.evidence.paper import Paper
from shrinkbook.experiments.liu2019.cost import V1_RATIOS, V2_BASELINES, r50_uniform, v2_uniform

UNITS = {"MFLOP": 1e6, "GFLOP": 1e9, "gene": 1}


@dataclass(frozen=True)
class Uniform:
    """A printed uniform network: the address of its accuracy, and how to build it."""

    accuracy: str
    build: Callable[[], nn.Module]


@dataclass(frozen=True)
class Printed:
    """A printed searched network: addresses of its accuracy and FLOPs; uniform is None where the table has none."""

    accuracy: str
    flops: str
    uniform: Uniform | None


def _beside(table: str, row: str, build: Callable[[], nn.Module]) -> Printed:
    cell = f"{table}/{row}"
    return Printed(f"{cell}/metapruning_top1", f"{cell}/metapruning_flops", Uniform(f"{cell}/uniform_top1", build))


def _resnet50(row: str, uniform: Uniform | None) -> Printed:
    return Printed(f"table3/MetaPruning {row}/top1", f"table3/MetaPruning {row}/flops", uniform)


PRINTED: dict[str, dict[str, Printed]] = {
    "MobileNetV1": {
        row: _beside("table1", row, partial(nets.mobilenet_v1, ratio)) for row, ratio in V1_RATIOS.items() if ratio < 1
    },
    "MobileNetV2": {row: _beside("table2", row, partial(v2_uniform, *how)) for row, how in V2_BASELINES.items()},
    "ResNet-50": {
        "0.85x": _resnet50("0.85x", None),
        "0.75x": _resnet50("0.75x", Uniform("table3/uniform 0.75x/top1", partial(r50_uniform, 0.75))),
        "0.5x": _resnet50("0.5x", Uniform("table3/uniform 0.5x/top1", partial(r50_uniform, 0.5))),
    },
}


@cache
def _paper() -> Paper:
    return claims.load("liu2019")


def value(address: str) -> float:
    """The number in a printed cell, in FLOPs where it is printed in millions or billions of them."""
    cell = _paper().cell(address)
    assert cell.number is not None, address
    return cell.number * UNITS[cell.unit]


def targets(net: str) -> dict[str, dict[str, float | None]]:
    """For each searched network of a table the bounds of its cost, and of random genes, as settings.

    MobileNets are searched below the printed FLOPs. ResNet-50 within a band around them: the authors' for 2G, which
    they publish with a range of genes, and one as wide for the others, whose genes are not restricted.
    """
    found: dict[str, dict[str, float | None]] = {}
    for row, one in PRINTED[net].items():
        most = value(one.flops)
        found[row] = {"least": 0.0, "most": most, "lowest": 0, "highest": None}
        if net == "ResNet-50":
            least, most_of_band = (value(f"official/ResNet-50, search/{key}") for key in ("least_flops", "most_flops"))
            half = (most_of_band - least) / 2
            found[row] |= {"least": most - half, "most": most + half}
            if least < most < most_of_band:
                genes = (value(f"official/ResNet-50, search/{key}") for key in ("lowest_gene", "highest_gene"))
                found[row] |= dict(zip(("lowest", "highest"), map(int, genes), strict=True))
    return found
