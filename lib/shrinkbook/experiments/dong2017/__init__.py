"""Dong et al. 2017, low-cost collaborative layers: every experiment and its budgets.

`quick` counts, trains small gated networks on digits, and times skipping. `standard` has ResNet-20 for ten epochs (a
processor carries it), and ResNet-20, 32, 56 and 110 at the schedule of the authors' code (a GPU).
"""

from typing import Any

from shrinkbook.experiments.dong2017.cost import costs
from shrinkbook.experiments.dong2017.gated import gated
from shrinkbook.experiments.dong2017.skip import timed
from shrinkbook.experiments.dong2017.tables import arms_table, depth_picture, maps_picture, skip_table, speed_picture
from shrinkbook.experiments.run import Experiment, counting

__all__ = ["EXPERIMENTS", "arms_table", "depth_picture", "maps_picture", "skip_table", "speed_picture"]

# The plain schedule of the authors' code, for both arms: 0.1, divided by 10 at epochs 81 and 122 of 164.
PAPER = {
    "epochs": 164, "batch": 128, "lr": 0.1, "milestones": [81 / 164, 122 / 164], "nesterov": True, "augment": True
}  # fmt: skip
# The schedule of that code for gated networks: a tenth of the rate for the first 3 % of the steps.
GATED = {**PAPER, "milestones": [0.45, 0.7, 0.9], "warmup": 0.03}
TEN_EPOCHS = {**GATED, "epochs": 10}
DIGITS = {"epochs": 40, "batch": 50, "lr": 0.1, "milestones": [0.5, 0.75], "nesterov": True}  # see digits_budget
SHAPES = [[16, 32], [32, 16], [64, 8], [64, 32], [128, 16], [128, 28], [256, 14], [512, 7]]
ZEROS = [0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]


def _cifar(depth: int, schedule: str, recipe: dict[str, Any], arms: list[str]) -> dict[str, dict[str, Any]]:
    return {
        "standard": {
            "data": "cifar10", "net": f"pre-activation ResNet-{depth}", "dtype": "bfloat16", "schedule": schedule,
            "recipe": recipe, "arms": arms, "exact_images": 4, "row": f"ResNet-{depth}",
        }
    }  # fmt: skip


def _digits(arms: list[str]) -> dict[str, dict[str, Any]]:
    return {
        "quick": {
            "data": "digits", "net": "digits pre-activation ResNet", "schedule": "40 epochs", "recipe": DIGITS,
            "arms": arms, "exact_images": 16, "row": "",
        }
    }  # fmt: skip


DEPTHS = {20: ["lccl", "pointwise", "relu", "first", "second", "hard", "after_relu", "published"]}

_ALL = [
    counting("dong2017.cost", costs, seconds=2, version=2),
    Experiment("dong2017.digits", gated, _digits(["lccl", "pointwise", "relu"]), version=2, seconds={"quick": 12}),
    Experiment(
        "dong2017.digits_ablation", gated, _digits(["lccl", "first", "second", "hard", "after_relu", "published"]),
        version=2, seeds={"quick": 1}, seconds={"quick": 20},
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
        version=2, seconds={"quick": 3, "standard": 40}, alone=True,
    ),
    Experiment(  # float32 and one thread: the same on every processor, and one run a core
        "dong2017.resnet20_10ep", gated,
        {"standard": {
            **_cifar(20, "10 epochs", TEN_EPOCHS, ["lccl"])["standard"], "dtype": "float32", "threads": 1,
        }},
        seeds={"standard": 3}, seconds={"standard": 6000},
    ),
    *[
        Experiment(
            f"dong2017.resnet{depth}", gated,
            _cifar(depth, "paper", PAPER, DEPTHS.get(depth, ["lccl"])),
            seconds={"standard": 60.0 * depth * (9 if depth == 20 else 2)}, gpu=True,
        )
        for depth in (20, 32, 56, 110)
    ],
]  # fmt: skip

EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}
