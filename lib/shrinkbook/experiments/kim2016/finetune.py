"""Figure 3: ranks by EVBMF, every layer decomposed at once, one fine-tuning; the same shape from random weights."""

import copy

import numpy as np
from torch import nn

from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.kim2016.ranks import rank_shares
from shrinkbook.experiments.public import loaded
from shrinkbook.experiments.steps import note_images, original, rounded, trained
from shrinkbook.methods import tucker
from shrinkbook.nets import initialize
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
    untrained = rank_shares(tucker.compress(initialize(copy.deepcopy(model), run.seed), input_shape=shape)[1])
    share = float(np.mean(run.measurements["ranks"]["share"]))
    run.measurements["gaps"] = {
        "mean_rank_below_60": 60 - share,
        "mean_rank_above_untrained": share - float(np.mean(untrained["share"])),
        "one_over_untrained_rank": 1.0 - max(max(row["estimated"]) for row in untrained["layers"].values()),
        "tuned_over_scratch": [found["tuned"] - value for name, value in found.items() if name.startswith("scratch")],
    }
