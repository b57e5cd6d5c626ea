"""Latency on this machine: uniform MobileNets (tables 5 and 6), a look-up table and its additivity, a generator."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shrinkbook import nets
from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.liu2019.cost import V1_RATIOS, v2_uniform
from shrinkbook.experiments.liu2019.latency import additivity, sums
from shrinkbook.experiments.liu2019.spaces import IMAGENET, SPACES
from shrinkbook.measure.cost import cost
from shrinkbook.measure.latency import latency
from shrinkbook.measure.lookup import measure_table
from shrinkbook.measure.steady import unsteady
from shrinkbook.methods.metapruning import WeightGenerator
from shrinkbook.nets import initialize

# Table 6's rows: width of MobileNetV2, and whether the last 1280 are scaled, as for its FLOPs in table 2.
V2_ROWS = {"1.4x": (1.4, True), "1x": (1.0, False), "0.65x": (0.65, False), "0.35x": (0.35, True)}


def timed(run: Context) -> None:
    """Times of both families, a table of one space with its error, and generating narrow against full weights."""
    families(run)
    table_error(run)
    generating(run)


def families(run: Context) -> None:
    """Uniform networks in turns; time falls by less than multiply-accumulates do. Noisy rounds claim no gap."""
    config, random = run.config, torch.Generator().manual_seed(run.seed)
    image = torch.randn(config["batch"], *IMAGENET, generator=random).to(run.device)
    built: dict[str, dict[str, nn.Module]] = {
        "table5": {row: nets.mobilenet_v1(ratio) for row, ratio in V1_RATIOS.items()},
        "table6": {row: v2_uniform(*how) for row, how in V2_ROWS.items()},
    }
    gaps: list[float] = []
    noisy = False
    for table in config["tables"]:
        ready = {row: initialize(model, run.seed).to(run.device) for row, model in built[table].items()}
        found = latency(ready, image, config["rounds"], config["warmup"], run.seed)
        noisy |= any(unsteady(one.low, one.high) for one in found.values())
        mac = {row: cost(model, IMAGENET).mac for row, model in ready.items()}
        seconds = {row: one.median / config["batch"] for row, one in found.items()}
        widest, *others = seconds
        shares = {row: {"time": seconds[row] / seconds[widest], "MAC": mac[row] / mac[widest]} for row in seconds}
        run.measurements[table] = {row: {"ms": 1000 * seconds[row], **shares[row]} for row in seconds}
        for row in seconds:
            run.cell(f"{table}/{row}/uniform_latency", 1000 * seconds[row])
        gaps += [100 * (shares[row]["time"] - shares[row]["MAC"]) for row in others]
        run.progress(f"{table}: {', '.join(f'{row} {1000 * s:.1f} ms' for row, s in seconds.items())}")
    run.measurements["gaps"] = {} if noisy else {"time_over_mac": gaps}


def table_error(run: Context) -> None:
    """The sum of a table's layers against the whole network in percent, for random vectors of a space."""
    config, draws = run.config, np.random.default_rng(run.seed)
    searched = SPACES[config["space"]]
    space, model = searched.space(), initialize(searched.build(), run.seed).to(run.device)
    example = torch.randn(config["table_batch"], *searched.shape, device=run.device)
    every = [
        space.widths([int(gene) for gene in draws.integers(0, len(space.ratios), len(space.names))])
        for _ in range(config["vectors"])
    ]
    # Only what these vectors need: a table for a search holds every width.
    shapes = {path: sorted({space.shape(path, widths) for widths in every}) for path in space.convolutions}
    where = f"{run.device}, {config['threads']} threads, batch {config['table_batch']}"
    table = measure_table(space.convolutions, shapes, model, example, where, config["table_rounds"])
    rounds, warmup = config["table_rounds"], config["warmup"]
    found = additivity(sums(table, space), space, every, example, rounds, warmup, run.seed)
    run.measurements["additivity"] = {**found, "where": where}


def generating(run: Context) -> None:
    """Seconds to write a layer's weights: cropped before the product, against everything and then the crop."""
    channels = run.config["channels"]
    generator = WeightGenerator(3, nn.Conv2d(channels, channels, 3, bias=False), 32).to(run.device)
    code = torch.tensor([0.25, 0.25, 0.25], device=run.device)

    class Writing(nn.Module):
        def __init__(self, width: int, slow: bool) -> None:
            super().__init__()
            self.width, self.write = width, generator.in_full if slow else generator.forward

        def forward(self, _: Tensor) -> Tensor:
            return self.write(code, self.width, self.width)

    modules = {
        f"{'all, then crop' if slow else 'crop, then product'}, {width} of {channels}": Writing(width, slow)
        for width in (channels, channels // 2, channels // 4)
        for slow in (False, True)
    }
    found = latency(modules, code, run.config["table_rounds"], run.config["warmup"], run.seed)
    milliseconds: dict[str, Any] = {name: 1000 * one.median for name, one in found.items()}
    run.measurements["generating"] = milliseconds
    quarter, full = (milliseconds[f"crop, then product, {width} of {channels}"] for width in (channels // 4, channels))
    run.measurements["gaps"]["narrow_is_cheaper"] = 100 * (1 - quarter / full)
