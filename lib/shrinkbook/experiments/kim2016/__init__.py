"""Kim et al. 2016, Tucker decomposition with EVBMF ranks: every experiment and its budgets.

`quick` counts the full-size networks and tells the story of figure 3 on digits. `standard` times the four networks on
this machine, AlexNet and VGG-16 at the printed ranks, and compresses public ResNets. ImageNet is not attempted.
"""

from collections.abc import Mapping
from typing import Any

from shrinkbook.experiments.experiment import Experiment, counting
from shrinkbook.experiments.kim2016.cost import additions, by_shapes, common_share, costs, printed_ranks
from shrinkbook.experiments.kim2016.finetune import finetune, public_finetune
from shrinkbook.experiments.kim2016.ranks import imagenet_ranks, untrained_ranks
from shrinkbook.experiments.kim2016.timing import layer_by_layer, whole_network

__all__ = ["EXPERIMENTS", "additions", "by_shapes", "common_share", "printed_ranks"]

# A tenth of the public networks' own rate, divided by 10 half-way (see deviation `recipe`).
PAPER_LIKE = {"epochs": 10, "batch": 128, "lr": 0.01, "milestones": [0.5], "augment": True}
TWO_EPOCHS = {"epochs": 2, "batch": 128, "lr": 0.01, "milestones": [0.5], "augment": True}


def _public(net: str, schedule: str, recipe: Mapping[str, Any], **more: Any) -> dict[str, dict[str, Any]]:
    return {
        "standard": {
            "data": "cifar10", "net": net, "dtype": "bfloat16", "schedule": f"public weights, {schedule}",
            "keep_out": ["linear"], "finetune": recipe, **more,
        }
    }  # fmt: skip


def _timed(net: str, batch: int, rounds: int) -> dict[str, dict[str, Any]]:
    ranks = "printed" if net in ("AlexNet", "VGG-16") else "common share"
    budget = {"batch": batch, "rounds": rounds, "warmup": 2, "schedule": f"batch {batch}"}
    return {"standard": {"net": net, "ranks": ranks, **budget}}


TIMED_SEEDS = 5  # what an order claim needs
_TIMED = {"alexnet": "AlexNet", "vgg_s": "VGG-S", "googlenet": "GoogLeNet", "vgg16": "VGG-16"}

_ALL = [
    counting("kim2016.cost", costs, seconds=4),
    Experiment(
        "kim2016.digits_finetune", finetune,
        {
            "quick": {
                "data": "digits", "net": "digits VGG", "schedule": "30 epochs",
                # Their ranks are estimated as 0: nine pixels, and the ten classes themselves.
                "keep_out": ["features.conv_1", "classifier.linear_2"],
                "finetune": {"epochs": 30, "batch": 32, "lr": 0.01, "milestones": [0.5]}, "control_lr": 0.1,
            }
        },
        version=3, parents=("li2017.digits_vgg",), seconds={"quick": 10},
    ),
    Experiment(
        "kim2016.untrained_ranks", untrained_ranks,
        {profile: {"net": "AlexNet", "threads": 1} for profile in ("quick", "standard")},
        seconds={"quick": 3, "standard": 3},
    ),
    *[
        Experiment(
            f"kim2016.{key}_latency", whole_network, _timed(net, 1, 15),
            version=2, seeds={"standard": TIMED_SEEDS}, seconds={"standard": 45}, alone=True,
        )
        for key, net in _TIMED.items()
    ],
    *[
        Experiment(
            f"kim2016.{key}_latency_batch32", whole_network, _timed(net, 32, 3),
            seeds={"standard": 1}, seconds={"standard": 90}, alone=True,
        )
        for key, net in _TIMED.items()
    ],
    *[
        Experiment(f"kim2016.{key}_layers", layer_by_layer, _timed(net, 1, 15),
            seeds={"standard": TIMED_SEEDS}, seconds={"standard": 20}, alone=True)
        for key, net in _TIMED.items()
        if key != "googlenet"
    ],
    Experiment(
        "kim2016.resnet20_finetune_10ep", public_finetune,
        _public("ResNet-20", "10 epochs", PAPER_LIKE, threads=1, looks=[0.125, 0.25, 0.5]),
        seeds={"standard": 1}, seconds={"standard": 1500},
    ),
    Experiment(
        "kim2016.resnet56_finetune_2ep", public_finetune, _public("ResNet-56", "2 epochs", TWO_EPOCHS),
        seeds={"standard": 1}, seconds={"standard": 900},
    ),
    *[
        Experiment(
            f"kim2016.{key}_imagenet_ranks", imagenet_ranks,
            {"standard": {"weights": f"{key}-public", "net": _TIMED[key], "schedule": "public weights"}},
            needs=(f"{key}-public",), seeds={"standard": 1}, seconds={"standard": 120},
        )
        for key in ("alexnet", "vgg16", "googlenet")
    ],
]  # fmt: skip

EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}
