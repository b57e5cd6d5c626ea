"""Tables 1 and 2 and the cost columns of table 3 without training: every named model at full size, exact."""

from torch import nn

from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.li2017.models import INPUTS, PRUNED
from shrinkbook.experiments.networks import NETS
from shrinkbook.measure.cost import Cost, cost
from shrinkbook.methods.filter_pruning import compress


def counted(net: str, model: nn.Module) -> Cost:
    """Cost by the paper's convention: multiply-accumulates of convolutions and linear layers, projections left out."""
    return cost(model, INPUTS[net]).without("shortcut")


def removed(before: float, after: float) -> float:
    """Share removed, in percent."""
    return 100 * (1 - after / before)


def costs(run: Context) -> None:
    """Count every base network and every pruned model of table 1, and VGG-16 layer by layer (table 2).

    Which filters go does not matter for the cost, so untrained networks are pruned.
    """
    models = {net: NETS[net]() for net in INPUTS}
    base = {net: counted(net, model) for net, model in models.items()}
    for net, found in base.items():
        run.cell(f"table1/{net}/flop", found.mac)
        run.cell(f"table1/{net}/params", found.weights)
        run.cell(f"table3/{net}/flop", found.mac)
    kept: dict[str, dict[str, int]] = {}
    for name, pruned in PRUNED.items():
        if pruned.net not in INPUTS:
            continue
        smaller, report = compress(models[pruned.net], pruned.ratios)
        kept[name] = report.filters_after
        found = counted(pruned.net, smaller)
        cells = {
            "flop": found.mac,
            "params": found.weights,
            "flop_pruned": removed(base[pruned.net].mac, found.mac),
            "params_pruned": removed(base[pruned.net].weights, found.weights),
        }
        for column, value in cells.items():
            run.cell(f"table1/{name}/{column}", value)
            if column.startswith("flop"):
                run.cell(f"table3/{name}/{column}", value)
        if name == "VGG-16-pruned-A":
            _table2(run, base[pruned.net], found)
    run.measurements["kept"] = kept


def _table2(run: Context, before: Cost, after: Cost) -> None:
    for one, other in zip(before.layers, after.layers, strict=True):
        row = one.name.rsplit(".", 1)[1].capitalize()
        cells = {
            "width": one.output[1] if len(one.output) == 3 else 1,
            "maps": one.output[0],
            "flop": one.mac,
            "params": one.weights,
            "maps_pruned": other.output[0],
            "flop_removed": removed(one.mac, other.mac),
        }
        for column, value in cells.items():
            run.cell(f"table2/{row}/{column}", value)
    total = {"flop": before.mac, "params": before.weights, "flop_removed": removed(before.mac, after.mac)}
    for column, value in total.items():
        run.cell(f"table2/total/{column}", value)
