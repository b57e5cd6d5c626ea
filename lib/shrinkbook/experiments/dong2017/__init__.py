"""Dong et al. 2017, low-cost collaborative layers: every experiment and its budgets.

`quick` counts, trains small gated networks on digits, and times skipping. `standard` has ResNet-20 for ten epochs (a
processor carries it), whole networks timed, and all of CIFAR-10's and CIFAR-100's rows at the schedule of the authors'
code (a GPU).
"""

from typing import Any

from shrinkbook.experiments.dong2017.collapse import counted
from shrinkbook.experiments.dong2017.cost import costs
from shrinkbook.experiments.dong2017.gated import data_sets, depths, gated
from shrinkbook.experiments.dong2017.skip import AT, WIDE, network_speed, timed
from shrinkbook.experiments.experiment import Experiment, counting

__all__ = ["EXPERIMENTS", "counted"]

# The plain schedule of the authors' code, for both arms: 0.1, divided by 10 at epochs 81 and 122 of 164.
PAPER = {
    "epochs": 164, "batch": 128, "lr": 0.1, "milestones": [81 / 164, 122 / 164], "nesterov": True, "augment": True
}  # fmt: skip
# The schedule of that code for gated networks: a tenth of the rate for the first 3 % of the steps.
GATED = {**PAPER, "milestones": [0.45, 0.7, 0.9], "warmup": 0.03}
TEN_EPOCHS = {**GATED, "epochs": 10}
DIGITS = {"epochs": 40, "batch": 50, "lr": 0.1, "milestones": [0.5, 0.75], "nesterov": True}  # see digits_budget
SHAPES = [[16, 32], [32, 16], [64, 8], [64, 32], [64, 56], [128, 16], [128, 28], [256, 14], [512, 7]]
ZEROS = [0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]


def _cifar(
    depth: int, schedule: str, recipe: dict[str, Any], arms: list[str], data: str = "cifar10", **other: Any
) -> dict[str, dict[str, Any]]:
    return {
        "standard": {
            "data": data, "net": f"pre-activation ResNet-{depth}" + " for 100 classes" * (data == "cifar100"),
            "dtype": "bfloat16", "schedule": schedule, "recipe": recipe, "arms": arms, "exact_images": 4,
            "row": f"ResNet-{depth}", **other,
        }
    }  # fmt: skip


def _digits(arms: list[str]) -> dict[str, dict[str, Any]]:
    return {
        "quick": {
            "data": "digits", "net": "digits pre-activation ResNet", "schedule": "40 epochs", "recipe": DIGITS,
            "arms": arms, "exact_images": 16, "row": "",
        }
    }  # fmt: skip


DEPTHS = (20, 32, 56, 110)  # of the claims about depth
ABLATION = ["pointwise", "relu", "first", "second", "hard", "after_relu", "published", "grid"]

_ALL = [
    counting("dong2017.cost", costs, seconds=2, version=3, schedule="arithmetic"),
    Experiment("dong2017.digits", gated, _digits(["lccl", "pointwise", "relu"]), version=2, seconds={"quick": 12}),
    Experiment(
        "dong2017.digits_ablation", gated,
        _digits(["lccl", "first", "second", "hard", "after_relu", "published", "grid"]),
        version=3, seeds={"quick": 1}, seconds={"quick": 23},
    ),
    Experiment(
        "dong2017.skip", timed,
        {
            "quick": {
                "shapes": [[32, 16], [64, 16], [128, 8]], "zeros": [0.0, 0.3, 0.6, 0.9], "batch": 4, "rounds": 5,
                "warmup": 2, "schedule": "batch 4, one thread",
            },
            "standard": {
                "threads": 1, "shapes": SHAPES, "zeros": ZEROS, "batch": 1, "rounds": 15, "warmup": 3,
                "schedule": "batch 1, one thread",
            },
        },
        version=3, seconds={"quick": 3, "standard": 60}, alone=True,
    ),
    Experiment(
        "dong2017.skip_batch8", timed,
        {"standard": {
            "threads": 1, "shapes": [shape for shape in SHAPES if shape[0] >= WIDE], "zeros": [0.0, AT], "batch": 8,
            "rounds": 15, "warmup": 3, "schedule": "batch 8, one thread",
        }},
        seeds={"standard": 3}, seconds={"standard": 40}, alone=True,
    ),
    Experiment(
        "dong2017.network_speed", network_speed,
        {"standard": {
            "threads": 1, "batch": 1, "side": 224, "rounds": 9, "warmup": 2, "schedule": "batch 1, one thread",
        }},
        seeds={"standard": 3}, seconds={"standard": 40}, alone=True,
    ),
    Experiment(  # float32 and one thread: the same on every processor, and one run a core
        "dong2017.resnet20_10ep", gated,
        _cifar(20, "10 epochs", TEN_EPOCHS, ["lccl"], dtype="float32", threads=1),
        seeds={"standard": 3}, seconds={"standard": 6000},
    ),
    Experiment(
        "dong2017.resnet20_relu_10ep", gated,
        _cifar(20, "10 epochs", TEN_EPOCHS, ["relu"], dtype="float32", threads=1, row=""),
        parents=("dong2017.resnet20_10ep",), seeds={"standard": 3}, seconds={"standard": 3000},
    ),
    *[
        Experiment(
            f"dong2017.resnet{depth}{suffix}", gated,
            _cifar(depth, "paper", GATED, ["lccl"], data, **{"plain recipe": PAPER}),
            seconds={"standard": 120.0 * depth}, gpu=True,
        )
        for data, suffix in (("cifar10", ""), ("cifar100", "_cifar100"))
        for depth in (20, 32, 44, 56, 110, 164)
    ],
    Experiment(
        "dong2017.resnet20_ablation", gated,
        _cifar(20, "paper", GATED, ABLATION, "cifar10", row="", **{"plain recipe": PAPER}),
        parents=("dong2017.resnet20",), seconds={"standard": 9600}, gpu=True,
    ),
    Experiment(
        "dong2017.depths", depths, {"standard": {"data": "cifar10", "schedule": "paper"}},
        parents=tuple(f"dong2017.resnet{depth}" for depth in DEPTHS), seconds={"standard": 1}, gpu=True,
    ),
    Experiment(
        "dong2017.data_sets", data_sets, {"standard": {"schedule": "paper"}},
        parents=tuple(f"dong2017.resnet{depth}{suffix}" for suffix in ("", "_cifar100") for depth in DEPTHS),
        seconds={"standard": 1}, gpu=True,
    ),
]  # fmt: skip

EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}
