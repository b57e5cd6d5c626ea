"""Seconds as the constraint of a search: from a look-up table of this machine, or of a phone (section 3.3)."""

import json
from collections.abc import Callable, Mapping

import torch

from shrinkbook.evidence import store
from shrinkbook.experiments.liu2019.spaces import SPACES
from shrinkbook.experiments.run import Context
from shrinkbook.measure.lookup import LatencyTable, measure_table
from shrinkbook.methods.metapruning_space import Genes, SearchSpace
from shrinkbook.nets import initialize

Seconds = Callable[[Mapping[str, int]], float]
"""Of a network with these widths."""
LOOKUP, WHOLE = "phone.lookup", "phone.resnet20"
"""Parents with the table of a device, and with whole networks on the same device."""


def seconds_of(run: Context, space: SearchSpace, net: str) -> Callable[[Genes], float]:
    """Seconds of a vector: from the parents' device where the run has such parents, else from a table measured now.

    Raises:
        ValueError: the parent's table lacks a layer or a width of the space.
    """
    table, total = on_parents_device(run, space) if LOOKUP in run.parents else here(run, space, net)
    run.measurements["table"] = table.where
    store.write_text(run.unit.checkpoint.with_suffix(".latency.json"), json.dumps(table.plain()) + "\n")
    return lambda genes: total(space.widths(genes))


def here(run: Context, space: SearchSpace, net: str) -> tuple[LatencyTable, Seconds]:
    """Every convolution of the space at every width, timed on the run's device."""
    shapes = {path: space.possible_shapes(path) for path in space.convolutions}
    example = torch.randn(run.config["batch"], *SPACES[net].shape, device=run.device)
    model = initialize(SPACES[net].build(), run.seed).to(run.device)
    where = f"{run.device}, {run.config['threads']} threads, batch {run.config['batch']}"
    table = measure_table(space.convolutions, shapes, model, example, where, run.config["rounds"])
    return table, lambda widths: table.total(space.shapes(widths))


def on_parents_device(run: Context, space: SearchSpace) -> tuple[LatencyTable, Seconds]:
    """The table of the device that the parents were measured on; notes how far its sums are from whole networks.

    It has what a width changes; the stem is in its rest.
    """
    table = LatencyTable.restored(run.parents[LOOKUP]["measurements"]["table"])
    free = [path for path, axes in space.axes.items() if axes.writes or axes.reads]

    def total(widths: Mapping[str, int]) -> float:
        return table.total({path: space.shape(path, widths) for path in free})

    rows = [row for row in run.parents[WHOLE]["measurements"]["rows"] if row["precision"] == "fp32"]
    run.measurements["additivity"] = {  # in percent; the second network has half of each first convolution
        row["model"]: 100 * (1e3 * total(space.uniform(ratio)) / row["ms"]["median"] - 1)
        for row, ratio in zip(rows, (1.0, 0.5), strict=True)
    }
    return table, total
