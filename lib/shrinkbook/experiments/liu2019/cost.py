"""Cost cells of tables 1 to 4, the official count of a published vector, sizes of search spaces and PruningNets."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from shrinkbook import nets
from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.liu2019.spaces import IMAGENET, SPACES
from shrinkbook.measure.cost import cost, extras
from shrinkbook.methods.metapruning_space import MacCount, SearchSpace

# Width vectors in public places: an issue of the official repository and its evaluation script.
LOGGED_V2 = (
    *(18, 23, 18, 28, 27, 2, 12, 15),
    *(4, 12, 25, 23, 20, 14, 24, 8, 19, 26, 2, 10, 24, 16, 6, 26, 10),
)
RELEASED_V1 = (28, 18, 10, 23, 23, 22, 22, 13, 17, 28, 17, 25, 29)
V1_RATIOS = {"1x": 1.0, "0.75x": 0.75, "0.5x": 0.5, "0.25x": 0.25}
# Which family of uniform MobileNetV2 gives each printed baseline: width, and whether the last 1280 are scaled, too.
V2_BASELINES: dict[str, tuple[float, bool]] = {
    "313M": (1.0, False),
    "140M": (0.65, False),
    "127M": (0.62, False),
    "106M": (0.56, False),
    "87M": (0.5, True),
    "43M": (0.35, True),
}


def v2_uniform(width: float, scaled: bool) -> nn.Module:
    """Uniform MobileNetV2 in one of the two conventions."""
    return nets.mobilenet_v2(width, last=int(1280 * width) if scaled else 1280)


def r50_uniform(ratio: float) -> nn.Module:
    """ResNet-50 with every width scaled, that of the last stage included."""
    widths = [int(64 * ratio), int(128 * ratio), int(256 * ratio), int(512 * ratio)]
    return nets.ResNet(
        (3, 4, 6, 3), widths, classes=1000, projection=True, imagenet_stem=True, block=nets.resnet.BottleneckBlock
    )


def counted(build: Callable[[], nn.Module]) -> dict[str, int]:
    """Both conventions: plain multiply-accumulates, and with batch norms and pooling as the search code counts."""
    with torch.device("meta"):
        model = build()
    mac = cost(model, IMAGENET).mac
    return {"MAC": mac, "search code's count": mac + extras(model, IMAGENET)}


def generators(space: SearchSpace, hidden: int) -> int:
    """Weights and biases of both layers of every generator, in closed form."""
    return sum(
        hidden * (len(space.codes[path]) + 1) + (hidden + 1) * conv.weight.numel()
        for path, conv in space.convolutions.items()
    )


def costs(run: Context) -> None:
    """Every baseline whose shape is known, in both conventions; printed cells are judged in plain MAC."""
    rows: dict[str, dict[str, Any]] = {}
    for row, ratio in V1_RATIOS.items():
        rows[f"table1, MobileNetV1 {row}"] = found = counted(lambda ratio=ratio: nets.mobilenet_v1(ratio))  # type: ignore[misc]
        run.cell(f"table1/{row}/uniform_flops", found["MAC"] / 1e6)
    run.cell("table4/0.75x MobileNetV1/flops", rows["table1, MobileNetV1 0.75x"]["MAC"] / 1e6)
    for row, (width, scaled) in V2_BASELINES.items():
        for how in (False, True):
            name = f"table2, MobileNetV2 {width:g}, {1280 if not how else f'{int(1280 * width)} last'}"
            if how != scaled and width > 0.65:
                continue  # at width 1 both conventions are one
            rows[name] = found = counted(lambda width=width, how=how: v2_uniform(width, how))  # type: ignore[misc]
            if how == scaled:
                run.cell(f"table2/{row}/uniform_flops", found["MAC"] / 1e6)
    rows["table2, MobileNetV2 1.4"] = counted(lambda: v2_uniform(1.4, True))
    run.cell("table2/585M/uniform_flops", rows["table2, MobileNetV2 1.4"]["MAC"] / 1e6)
    rows["table4, MobileNetV2 0.75"] = counted(lambda: v2_uniform(0.75, False))
    rounded = [24, 16, 24, 24, 48, 72, 120, 240]  # to multiples of 8, as MobileNetV2's authors do; not judged
    rows["table4, MobileNetV2 0.75, multiples of 8"] = counted(lambda: nets.MobileNetV2(rounded))
    run.cell("table4/0.75x MobileNetV2/flops", rows["table4, MobileNetV2 0.75"]["MAC"] / 1e6)
    for row, ratio in {"uniform 1.0x": 1.0, "uniform 0.75x": 0.75, "uniform 0.5x": 0.5}.items():
        rows[f"table3, ResNet-50 {row}"] = found = counted(lambda ratio=ratio: r50_uniform(ratio))  # type: ignore[misc]
        run.cell(f"table3/{row}/flops", found["MAC"] / 1e9)
    spaces: dict[str, dict[str, Any]] = {}
    for name, vector, cell in (
        ("MobileNetV2", LOGGED_V2, "official/MobileNetV2, logged vector/flops"),
        ("MobileNetV1", RELEASED_V1, "official/MobileNetV1, released vector/flops"),
        ("ResNet-50", None, ""),
    ):
        with torch.device("meta"):
            space = SPACES[name].space()
        spaces[name] = {
            "genes": len(space.names), "networks": f"31^{len(space.names)}",
            "full network, MAC": MacCount(space, IMAGENET)((30,) * len(space.names)),
            "weights of its convolutions": sum(conv.weight.numel() for conv in space.convolutions.values()),
            "numbers in its generators": generators(space, SPACES[name].hidden),
        }  # fmt: skip
        if vector:
            rows[cell] = found = counted(lambda space=space, vector=vector: space.network(space.widths(vector)))  # type: ignore[misc]
            run.cell(cell, found["search code's count"] / 1e6)
    run.measurements["counted"] = rows
    run.measurements["spaces"] = spaces
