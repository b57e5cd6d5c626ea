"""Figure 3: ranks by EVBMF, every layer decomposed at once, one fine-tuning; the same shape from random weights."""

import copy
import math
from typing import Any

import numpy as np
from torch import nn

from shrinkbook.experiments.public import loaded
from shrinkbook.experiments.run import Context
from shrinkbook.experiments.steps import note_images, original, rounded, trained
from shrinkbook.methods import tucker
from shrinkbook.methods.tucker_layers import full_ranks
from shrinkbook.nets import initialize
from shrinkbook.training import weights
from shrinkbook.training.evaluate import Evaluation


def finetune(run: Context) -> None:
    """Figure 3 on a network trained here."""
    one_shot(run, trained(run))


def public_finetune(run: Context) -> None:
    """Figure 3 on a public ResNet."""
    one_shot(run, loaded(run))


def one_shot(run: Context, model: nn.Module) -> None:
    """Compress, fine-tune, and train the control; test accuracy is noted on the way, nothing is chosen by it."""
    assert run.data is not None
    shape, keep_out = tuple(run.data.x_test.shape[1:]), run.config["keep_out"]
    smaller, report = tucker.compress(model, input_shape=shape, keep_out=keep_out)
    run.measurements["ranks"] = rank_shares(report)
    run.measurements["cost"] = {"compression": report.compression, "speedup": report.speedup}
    found = {"original": original(run), "decomposed": run.stage("decomposed", smaller)}
    control = initialize(copy.deepcopy(smaller), run.seed + 1000)
    curves: dict[str, dict[float, Evaluation]] = {"tuned": {}, "scratch": {}}
    for name, network in (("tuned", smaller), ("scratch", control)):
        run.train(network, run.recipe(run.config["finetune"]), name, curve=curves[name])
        found[name] = run.stage(name, network)
    found["one_epoch"] = curves["tuned"][1].accuracy
    own_rate = run.config.get("control_lr")
    if own_rate is not None:  # a network from random weights may want its own rate, not that of fine-tuning
        fresh = initialize(copy.deepcopy(smaller), run.seed + 1000)
        run.train(fresh, run.recipe({**run.config["finetune"], "lr": own_rate}), "scratch at its own rate")
        found["scratch_own_rate"] = run.stage("scratch_own_rate", fresh)
    run.measurements["finetune"] = found
    run.measurements["curve"] = {
        "epochs": list(curves["tuned"]),
        **{name: rounded([one.accuracy for one in curve.values()]) for name, curve in curves.items()},
    }
    if run.fixed_network:
        right = {**run.evaluations, "one_epoch": curves["tuned"][1]}
        for name in found:
            note_images(run, f"finetune.{name}", [right[name].correct])
    untrained = tucker.compress(initialize(copy.deepcopy(model), run.seed), input_shape=shape)[1]
    largest = max((max(row.estimated) for row in untrained.layers if row.estimated), default=math.nan)
    run.measurements["gaps"] = {
        "mean_rank_below_60": 60 - float(np.mean(run.measurements["ranks"]["share"])),
        "one_over_untrained_rank": 1.0 - largest,
        "tuned_over_scratch": [found["tuned"] - value for name, value in found.items() if name.startswith("scratch")],
    }


def rank_shares(report: tucker.Report) -> dict[str, Any]:
    """Estimated ranks as a share of the full ones, in percent, and the input ranks of convolutions by depth."""
    estimated = [row for row in report.layers if row.estimated]
    layers = {row.name: {"kind": row.kind, "full": list(row.limits), "rank": list(row.ranks)} for row in estimated}
    shares = [100 * r / full for row in estimated for r, full in zip(row.estimated or (), row.limits, strict=True)]
    return _with_depth(layers, shares)


def _with_depth(layers: dict[str, dict[str, Any]], shares: list[float]) -> dict[str, Any]:
    deep = [row for row in layers.values() if row["kind"] == "tucker2"]
    return {
        "layers": layers,
        "share": shares,
        "depth": list(range(1, len(deep) + 1)),
        "input_share": [100 * row["rank"][0] / row["full"][0] for row in deep],
    }


def imagenet_ranks(run: Context) -> None:
    """EVBMF ranks of trained ImageNet weights, layer by layer; the network itself is not needed, nor any image.

    The networks are torchvision's, which are not the paper's: AlexNet without groups, GoogLeNet with batch norm.
    """
    state = weights.load(run.config["weights"])
    layers: dict[str, dict[str, Any]] = {}
    kernels = {
        name.removesuffix(".weight"): kernel[:, :, None, None] if kernel.ndim == 2 else kernel
        for name, kernel in state.items()
        if kernel.ndim in (2, 4) and "aux" not in name
    }
    for name, kernel in kernels.items():
        ranks = tucker.estimate(kernel, tucker1=not layers)
        full = full_ranks(tuple(kernel.shape), 1, len(ranks))
        layers[name] = {"kind": tucker.kind_of(kernel, ranks), "full": list(full), "rank": list(ranks)}
        run.progress(f"{name}: {list(ranks)} of {list(full)}")
    shares = [100 * r / full for row in layers.values() for r, full in zip(row["rank"], row["full"], strict=True)]
    run.measurements["ranks"] = _with_depth(layers, shares)
    run.measurements["gaps"] = {"mean_rank_below_60": 60 - float(np.mean(shares))}
