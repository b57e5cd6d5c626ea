"""Latency of every form on this host: shapes of a finished comparison with random weights, timed in turns."""

import json

import torch
from torch import nn

from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.head_to_head.forms import untrained
from shrinkbook.experiments.networks import NETS
from shrinkbook.experiments.steps import close
from shrinkbook.measure.latency import latency, saved
from shrinkbook.methods.clustered_layers import clustered_layers, expand
from shrinkbook.methods.lccl import add_lccl
from shrinkbook.methods.lccl_skip import skipping
from shrinkbook.nets import initialize

DENSE = ", computed densely"


def timed(run: Context) -> None:
    """Time each arm of the parent's as a share of the original's time, round by round; equal shapes are timed once.

    Weights do not matter for time. Clustered kernels are written out as the dense ones they stand for. Gates are closed
    at the shares of positions that the parent measured, and both ways of running them are timed: skipping, and dense.
    """
    config, ((_, parent),) = run.config, run.parents.items()
    base = initialize(NETS[config["net"]](), run.seed).eval()
    shape = tuple(config["shape"])
    image = torch.randn(config["batch"], *shape, generator=torch.Generator().manual_seed(run.seed))
    forms: dict[str, nn.Module] = {}
    keys: dict[str, str] = {}
    for name, row in parent["measurements"]["arms"].items():
        key = json.dumps(row["steps"])
        if row.get("zeros"):
            ((_, place),) = row["steps"][0].items()
            gated = add_lccl(base, place, hard=True, seed=run.seed)  # hard: products of untrained gates may overflow
            close(gated, image, row["zeros"])
            keys[name], keys[f"{name}{DENSE}"] = name, f"{name}{DENSE}"
            forms |= {name: skipping(gated), f"{name}{DENSE}": gated}
        elif "zeros" not in row:  # else it diverged, and there is no share of zeros to time it at
            keys[name] = key
            if key not in forms:
                forms[key] = base
                for step in row["steps"]:
                    forms[key] = untrained(forms[key], step, shape, run.seed)
                if clustered_layers(forms[key]):
                    forms[key] = expand(forms[key])
    found = latency(
        {key: one.eval() for key, one in forms.items()}, image, config["rounds"], config["warmup"], run.seed
    )
    original = found[keys["original"]]
    run.measurements["latency"] = {}
    for name, key in keys.items():
        share = saved(original, found[key])
        run.measurements["latency"][name] = {
            "ratio": 1 - share.median / 100, "low": 1 - share.high / 100, "high": 1 - share.low / 100,
            "seconds": found[key].median, "runs": found[key].runs,
        }  # fmt: skip
    run.progress(f"{len(forms)} forms timed")
