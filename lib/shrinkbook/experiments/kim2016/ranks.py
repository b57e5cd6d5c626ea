"""What EVBMF estimates: ranks of trained layers as shares of the full ones, of public weights, of random kernels."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.kim2016.cost import ORIGINALS
from shrinkbook.methods import tucker
from shrinkbook.methods.tucker_layers import full_ranks
from shrinkbook.nets import initialize
from shrinkbook.training import weights

Layers = dict[str, dict[str, Any]]


def rank_shares(report: tucker.Report) -> dict[str, Any]:
    """Estimated ranks, 0 included, as shares of the full ones in percent, and the input ranks of convolutions by depth.

    Layers that stay whole because their estimate would not make them smaller count as all others; ``rank`` is what was
    used, empty for them.
    """
    layers = {
        row.name: {
            "kind": row.kind,
            "full": list(row.limits),
            "estimated": list(row.estimated),
            "rank": list(row.ranks),
        }
        for row in report.layers
        if row.estimated
    }
    return _shares(layers)


def imagenet_ranks(run: Context) -> None:
    """EVBMF ranks of trained ImageNet weights, layer by layer; the network itself is not needed, nor any image.

    The networks are torchvision's, which are not the paper's: AlexNet without groups, GoogLeNet with batch norm.
    """
    state = weights.load(run.config["weights"])
    kernels = {
        name.removesuffix(".weight"): kernel[:, :, None, None] if kernel.ndim == 2 else kernel
        for name, kernel in state.items()
        if kernel.ndim in (2, 4) and "aux" not in name
    }
    source = torch.Generator().manual_seed(run.seed)
    trained = _estimated(run, ((name, kernel, 1) for name, kernel in kernels.items()))
    noise = _estimated(run, ((n, torch.randn(kernel.shape, generator=source), 1) for n, kernel in kernels.items()))
    run.measurements["ranks"] = ranks = _shares(trained)
    share = float(np.mean(ranks["share"]))
    above = share - float(np.mean(_shares(noise)["share"]))
    run.measurements["gaps"] = {"mean_rank_below_60": 60 - share, "mean_rank_above_untrained": above}


def untrained_ranks(run: Context) -> None:
    """EVBMF ranks of the convolutions of a network of table 1 with random weights; no data, nothing is trained."""
    model = initialize(ORIGINALS[run.config["net"]][0](), run.seed)
    convs = [(name, one) for name, one in model.named_modules() if isinstance(one, nn.Conv2d)]
    layers = _estimated(run, ((name, conv.weight.detach(), conv.groups) for name, conv in convs))
    run.measurements["ranks"] = _shares(layers)
    run.measurements["gaps"] = {"one_over_untrained_rank": 1.0 - max(max(row["estimated"]) for row in layers.values())}


def _estimated(run: Context, kernels: Iterable[tuple[str, Tensor, int]]) -> Layers:
    """Estimates of (name, kernel, groups) from input to output; the first kernel keeps its input side (Tucker-1)."""
    layers: Layers = {}
    for name, kernel, groups in kernels:
        ranks = tucker.estimate(kernel, groups, tucker1=not layers)
        full = full_ranks(tuple(kernel.shape), groups, len(ranks))
        kind = tucker.kind_of(kernel, ranks)
        layers[name] = {"kind": kind, "full": list(full), "estimated": list(ranks), "rank": list(ranks)}
        run.progress(f"{name}: {list(ranks)} of {list(full)}")
    return layers


def _shares(layers: Layers) -> dict[str, Any]:
    deep = [row for row in layers.values() if len(row["full"]) == 2]  # Tucker-2: R3 over S is a share of the inputs
    return {
        "layers": layers,
        "share": [
            100 * rank / full
            for row in layers.values()
            for rank, full in zip(row["estimated"], row["full"], strict=True)
        ],
        "depth": list(range(1, len(deep) + 1)),
        "input_share": [100 * row["estimated"][0] / row["full"][0] for row in deep],
    }
