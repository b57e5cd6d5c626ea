"""Seconds as the constraint of a search: from a look-up table of this machine, or of a phone (section 3.3)."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shrinkbook.evidence import store
from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.liu2019.spaces import SPACES, read, uniform_vector
from shrinkbook.measure.latency import latency
from shrinkbook.measure.lookup import LatencyTable, measure_table
from shrinkbook.measure.steady import NOISY, unsteady
from shrinkbook.methods.metapruning_space import SearchSpace
from shrinkbook.nets import initialize

Seconds = Callable[[Mapping[str, int]], float]
"""Of a network with these widths."""
LOOKUP, WHOLE = "phone.lookup", "phone.resnet20"
"""Parents with the table of a device, and with whole networks on the same device."""
WARMUP = 2


def seconds_of(run: Context, space: SearchSpace, net: str) -> Seconds:
    """Seconds at given widths: from the parents' device where the run has such parents, else from this machine.

    Raises:
        ValueError: the table lacks a layer or a width of the space, or its file is broken.
    """
    table, total = on_parents_device(run, space) if LOOKUP in run.parents else here(run, space, net)
    run.measurements["table"] = table.where
    return total


def here(run: Context, space: SearchSpace, net: str) -> tuple[LatencyTable, Seconds]:
    """Every convolution of the space at every width, timed on the run's device, and the error of the sums.

    Measured once: a search that goes on reads the table that it began with, or its budget would be another.
    """
    path = run.unit.checkpoint.with_suffix(".latency.json")
    if not path.exists():
        shapes = {path: space.possible_shapes(path) for path in space.convolutions}
        example = torch.randn(run.config["batch"], *SPACES[net].shape, device=run.device)
        model = initialize(SPACES[net].build(), run.seed).to(run.device)
        where = f"{run.device}, {run.config['threads']} threads, batch {run.config['batch']}"
        rounds = run.config["rounds"]
        table = measure_table(space.convolutions, shapes, model, example, where, rounds, WARMUP)
        every = [space.widths(uniform_vector(space, ratio)) for ratio in (*run.config["uniform"], 1.0)]
        errors = additivity(sums(table, space), space, every, example, rounds, WARMUP, run.seed)
        store.write_text(path, json.dumps({**table.plain(), "additivity": errors}) + "\n")
    content = read(path)
    try:
        table = LatencyTable.restored(content)
        run.measurements["additivity"] = content["additivity"]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: {error}; delete it, and the searches beside it, to measure again") from error
    return table, sums(table, space)


def sums(table: LatencyTable, space: SearchSpace) -> Seconds:
    """Seconds at given widths, of all convolutions of a space."""
    return lambda widths: table.total(space.shapes(widths))


def additivity(
    seconds: Seconds,
    space: SearchSpace,
    every: Sequence[Mapping[str, int]],
    example: Tensor,
    rounds: int,
    warmup: int,
    seed: int,
) -> dict[str, Any]:
    """The sum of a table's layers against whole networks of these widths, timed in turns; error in percent.

    Where a network's rounds are noisy, no error is stated.
    """
    plain = {
        str(n): initialize(space.network(widths).to_empty(device=example.device), seed)
        for n, widths in enumerate(every)
    }
    whole = latency(plain, example, rounds, warmup, seed)
    rows = [
        {"sum of layers, ms": 1000 * seconds(widths), "network, ms": 1000 * one.median}
        for widths, one in zip(every, whole.values(), strict=True)
    ]
    if any(unsteady(one.low, one.high) for one in whole.values()):
        noise = f"the slow tenth of a network's rounds takes over {NOISY:g} times the fast one: no error is stated"
        return {"rows": rows, "noise": noise}
    errors = [100 * (row["sum of layers, ms"] / row["network, ms"] - 1) for row in rows]
    return {"rows": rows, "mean": float(np.mean(errors)), "sd": float(np.std(errors, ddof=1))}


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
