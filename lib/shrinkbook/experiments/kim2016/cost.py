"""Tables 1 and 2 without weights: the four networks counted, and their compressed forms as shapes."""

import math
from collections.abc import Callable

import torch
from torch import nn

from shrinkbook import nets
from shrinkbook.evidence import claims
from shrinkbook.experiments.experiment import Context
from shrinkbook.measure.cost import Cost, cost
from shrinkbook.methods import tucker

ORIGINALS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "AlexNet": (nets.alexnet, 227),
    "VGG-S": (nets.vgg_s, 224),
    "GoogLeNet": (nets.googlenet, 224),
    "VGG-16": (nets.vgg16_imagenet, 224),
}
FC6 = {"AlexNet": {"fc6": (256, 6, 6)}}  # decomposed as a convolution over the last map

Ranks = dict[str, int | tuple[int, ...]]


def printed_ranks(net: str) -> Ranks:
    """The ranks that the paper prints for AlexNet (table 2) or VGG-16 (appendix), layer by layer, as far as known."""
    paper = claims.load("kim2016")
    table, columns = {
        "AlexNet": ("table2", ("input_side", "output_side")),
        "VGG-16": ("appendix_vgg16", ("r3", "r4")),
    }[net]
    ranks: dict[str, list[int]] = {}
    for cell in paper.tables[table].cells:
        if cell.unit == "rank" and cell.column in columns and cell.value:
            ranks.setdefault(cell.row.removesuffix("*"), []).append(int(cell.value))
    return {layer: tuple(values) if len(values) > 1 else values[0] for layer, values in ranks.items()}


def common_share(net: str) -> Ranks:
    """Ranks for VGG-S or GoogLeNet, whose printed ones are not known: one share of the full ranks for all convolutions
    larger than 1x1, chosen so that the multiply-accumulates come out as table 1 prints them; in VGG-S, one share for
    the linear layers, chosen by the printed weights. They serve to measure time, not as the paper's rows.
    """
    found = claims.load("kim2016")
    printed = {c.column: c.number for c in found.tables["table1"].cells if c.row == f"{net}*"}
    model = on_meta(net)
    convs, linear = [], []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
            convs.append(name)
        elif isinstance(module, nn.Linear) and net == "VGG-S":
            linear.append(name)

    def ranks(conv_share: float, linear_share: float) -> Ranks:
        chosen: Ranks = {}
        for name in convs:
            conv = model.get_submodule(name)
            assert isinstance(conv, nn.Conv2d)
            first = conv.in_channels == 3  # Tucker-1
            full = (conv.out_channels,) if first else (conv.in_channels, conv.out_channels)
            pair = tuple(max(1, round(conv_share * rank)) for rank in full)
            chosen[name] = pair[0] if first else pair
        for name in linear:
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            chosen[name] = max(1, round(linear_share * min(layer.in_features, layer.out_features)))
        return chosen

    shares = [0.5, 0.5]
    for _ in range(3 if linear else 1):  # each total depends a little on the other share
        for index, column in ((0, "mac_after"), (1, "weights_after"))[: 2 if linear else 1]:
            low, high = 0.0, 1.0
            for _ in range(12):
                shares[index] = (low + high) / 2
                total = compressed(net, ranks(*shares))[2].total(column)  # type: ignore[arg-type]
                wanted = printed["flop" if index == 0 else "weights"]
                assert wanted is not None
                low, high = (low, shares[index]) if total > wanted else (shares[index], high)
    return ranks(*shares)


RANKS: dict[str, Callable[[str], Ranks]] = {"printed": printed_ranks, "common share": common_share}


def on_meta(net: str) -> nn.Module:
    """One of the four networks, shapes without weights."""
    with torch.device("meta"):
        return ORIGINALS[net][0]()


def compressed(net: str, ranks: Ranks) -> tuple[nn.Module, nn.Module, tucker.Report]:
    """A network and its compressed form on the meta device, and the report."""
    model, side = on_meta(net), ORIGINALS[net][1]
    smaller, report = tucker.compress(model, ranks, input_shape=(3, side, side), as_convolution=FC6.get(net))
    return model, smaller, report


def by_shapes(net: str) -> tuple[nn.Module, nn.Module, tucker.Report]:
    """As :func:`compressed`, at the printed ranks."""
    return compressed(net, printed_ranks(net))


def additions(found: Cost) -> int:
    """The paper's FLOP of an original network: multiply-accumulates and one addition an output for the bias."""
    return found.mac + sum(math.prod(layer.output) for layer in found.layers)


def costs(run: Context) -> None:
    """Table 1 and 2 without weights: the originals, and AlexNet* and VGG-16* at the printed ranks."""
    for name, (_, side) in ORIGINALS.items():
        found = cost(on_meta(name), (3, side, side))
        run.cell(f"table1/{name}/weights", found.weights)
        run.cell(f"table1/{name}/flop", additions(found))
    for name in ("AlexNet", "VGG-16"):
        report = by_shapes(name)[2]
        run.cell(f"table1/{name}*/weights", report.total("weights_after"))
        run.cell(f"table1/{name}*/flop", report.total("mac_after"))
        run.cell(f"table1/{name} change/weights", report.compression or math.nan)
        run.cell(f"table1/{name} change/flop", report.speedup or math.nan)
        if name == "AlexNet":
            _table2(run, report)


def _table2(run: Context, report: tucker.Report) -> None:
    for row in report.layers:
        cells: dict[str, float | None] = {
            f"{row.name}/weights": row.weights,
            f"{row.name}/flop": row.mac,
            f"{row.name}*/weights": row.weights_after,
            f"{row.name}*/flop": row.mac_after,
            f"{row.name} change/weights": row.compression,
            f"{row.name} change/flop": row.speedup,
            **{f"{row.name}*/flop_{part.name.rsplit('.', 1)[1]}": part.mac for part in row.parts},
        }
        for place, value in cells.items():
            if value is not None:
                run.cell(f"table2/{place}", value)
