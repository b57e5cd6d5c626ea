"""Son et al. 2018, clustering convolutional kernels: every experiment and its budgets.

`quick` counts every model at full size, clusters small networks on digits and times shared computation on small layers.
`standard` clusters public ResNets on CIFAR-10 (a processor carries it) and VGG-16 at the paper's schedule (a GPU).
"""

from collections.abc import Mapping

from shrinkbook.experiments.experiment import Experiment, counting
from shrinkbook.experiments.son2018.cluster import public_network, trained_network, vgg16
from shrinkbook.experiments.son2018.cost import costs
from shrinkbook.experiments.son2018.sharing import as_matrices, sharing_map
from shrinkbook.experiments.steps import baseline

__all__ = ["EXPERIMENTS", "as_matrices"]

LLOYD = 4500  # iterations at most, as in the authors' code; nearly always no label changes long before
JUDGED = ["C256", "C128", "C64", "C128-TIC2", "C64-TIC4", "C64-M", "C64N"]
# Fine-tuning at a twentieth of the first rate, divided by 10 after one half and three quarters (authors' code).
PAPER = {"epochs": 300, "batch": 256, "lr": 0.1, "milestones": [0.5, 0.75], "weight_decay": 5e-4, "augment": True}
PAPER_FINETUNE = {**PAPER, "lr": 0.005}
DIGITS_FINETUNE = {"epochs": 10, "batch": 32, "lr": 0.02, "milestones": [0.5, 0.75]}  # see deviation digits_finetune
ONE_EPOCH = {"epochs": 1, "batch": 64, "lr": 0.005, "augment": True}


def _public(net: str, schedule: str, models: list[str], recipe: Mapping[str, object]) -> dict[str, dict[str, object]]:
    return {
        "standard": {
            "data": "cifar10", "net": net, "dtype": "bfloat16", "threads": 1, "schedule": f"public weights, {schedule}",
            "models": models, "pictured": "C64", "iterations": LLOYD, "finetune": recipe,
        }
    }  # fmt: skip


_ALL = [
    counting("son2018.cost", costs, seconds=4),
    Experiment(
        "son2018.digits", trained_network,
        {
            "quick": {
                "data": "digits", "net": "digits VGG", "schedule": "10 epochs",
                "models": [*JUDGED, "C16", "C32-TIC8"], "pictured": "C64", "iterations": LLOYD,
                "finetune": DIGITS_FINETUNE,
                "joint_centroids": 64, "filter_pruning": "digits VGG-pruned-A",
            }
        },
        parents=("li2017.digits_vgg",), seconds={"quick": 10}, version=2,  # 1 had one random draw as the control
    ),
    Experiment(
        "son2018.sharing", sharing_map,
        {
            "quick": {
                "channels": [64, 128, 256], "centroids": [8, 32], "sides": [8, 16], "rounds": 5, "warmup": 1,
                "schedule": "batch 1, one thread",
            },
            "standard": {
                "channels": [64, 128, 256, 512], "centroids": [4, 8, 16, 32, 64, 128], "sides": [4, 8, 16, 32],
                "rounds": 9, "warmup": 2, "schedule": "batch 1",
            },
        },
        seeds={"quick": 1, "standard": 3}, seconds={"quick": 4, "standard": 60}, alone=True,
    ),
    Experiment(
        "son2018.resnet20_public", public_network,
        _public("ResNet-20", "1 epoch", [*JUDGED, "C32", "C16", "C32-TIC8"], ONE_EPOCH),
        seeds={"standard": 1}, seconds={"standard": 2400},
    ),
    Experiment(
        "son2018.resnet56_public", public_network, _public("ResNet-56", "1 epoch", JUDGED, ONE_EPOCH),
        seeds={"standard": 1}, seconds={"standard": 3000},
    ),
    Experiment(
        "son2018.vgg16_baseline", baseline,
        {
            "standard": {
                "data": "cifar10", "net": "VGG-16 with one linear layer", "schedule": "paper", "dtype": "bfloat16",
                "recipe": PAPER,
            }
        },
        seconds={"standard": 2400}, gpu=True,
    ),
    Experiment(
        "son2018.vgg16", vgg16,
        {
            "standard": {
                "data": "cifar10", "net": "VGG-16 with one linear layer", "schedule": "paper", "dtype": "bfloat16",
                "models": [*JUDGED, "C512", "C32", "C32-TIC8", "C64-M2"], "pictured": "C64", "iterations": LLOYD,
                "finetune": PAPER_FINETUNE,
                "joint_centroids": 512, "filter_pruning": "VGG-16-pruned-A",
            }
        },
        parents=("son2018.vgg16_baseline",), seconds={"standard": 3600 * 10}, gpu=True,
    ),
]  # fmt: skip

EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}
