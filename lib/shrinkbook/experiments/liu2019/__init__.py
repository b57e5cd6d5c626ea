"""Liu et al. 2019, MetaPruning: every experiment and its budgets.

`quick` counts, searches a small network for digits from end to end, and times. `standard` does the same with ResNet-20
on CIFAR-10 on a processor at a budget of its own, and with MobileNets and ResNets on a GPU. `paper` is ImageNet.
"""

from typing import Any

from shrinkbook.experiments.experiment import Experiment, counting
from shrinkbook.experiments.liu2019.cost import costs
from shrinkbook.experiments.liu2019.imagenet import on_imagenet
from shrinkbook.experiments.liu2019.printed import targets
from shrinkbook.experiments.liu2019.prune import searched
from shrinkbook.experiments.liu2019.timing import timed

__all__ = ["EXPERIMENTS"]

STEPS = [0.25, 0.5, 0.75]
# The shape of the paper's schedules (section 4), shortened. On CIFAR-10 a PruningNet gets a quarter of the epochs of a
# network, as there; on digits four times as many (paper.toml, digits_budget).
GPU_NET = {"epochs": 40, "batch": 128, "lr": 0.1, "milestones": STEPS, "augment": True}
GPU_FINAL = {**GPU_NET, "epochs": 160}
CPU_NET = {"epochs": 2, "batch": 128, "lr": 0.1, "milestones": STEPS, "augment": True}
CPU_FINAL = {**CPU_NET, "epochs": 8}
DIGITS_NET = {"epochs": 24, "batch": 40, "lr": 0.1, "milestones": STEPS}
DIGITS_FINAL = {"epochs": 6, "batch": 50, "lr": 0.1, "milestones": [0.5, 0.75]}
AUTHORS: dict[str, Any] = {}  # the search at its own defaults: 50 x 20 = 1000 evaluations
TWO_HUNDRED = {"population": 20, "mutations": 10, "crossovers": 10, "generations": 10, "parents": 5}
FORTY_EIGHT = {"population": 12, "mutations": 5, "crossovers": 5, "generations": 4, "parents": 4}


def _cifar(net: str, schedule: str, **settings: Any) -> dict[str, dict[str, Any]]:
    common: dict[str, Any] = {
        "data": "cifar10", "net": net, "dtype": "bfloat16", "schedule": schedule, "recipe": GPU_NET, "final": GPU_FINAL,
        "uniform": [0.25, 0.49, 0.76], "constraints": ["mac"], "evolution": AUTHORS, "val_fraction": 0.1,
        "val_images": 5000, "images": 20000, "step": 3, "structures": 20, "random_widths": 20, "reseeds": 5,
        "batch": 128, "rounds": 10,
    }  # fmt: skip
    return {"standard": {**common, **settings}}


def _gpu(name: str, net: str, hours: float, **settings: Any) -> Experiment:
    return Experiment(
        f"liu2019.{name}", searched, _cifar(net, "40 and 160 epochs", **settings), version=2,
        seconds={"standard": 3600 * hours}, gpu=True,
    )  # fmt: skip


def _imagenet(name: str, net: str, hours: float, **recipe: Any) -> Experiment:
    config = {
        "data": "imagenet", "net": net, "schedule": "paper", "dtype": "bfloat16", "targets": targets(net),
        "evolution": AUTHORS, "images": 20000, "val_per_class": 50, **recipe,
    }  # fmt: skip
    return Experiment(
        f"liu2019.imagenet_{name}", on_imagenet, {"paper": config}, version=2, seeds={"paper": 1},
        seconds={"paper": 3600 * hours}, gpu=True,
    )  # fmt: skip


V1_RECIPE = {
    "recipe": {"epochs": 64, "batch": 512, "lr": 0.25, "weight_decay": 4e-5},
    "final": {"epochs": 256, "batch": 1024, "lr": 0.5, "weight_decay": 4e-5},
}
V2_RECIPE = {**V1_RECIPE, "recipe": {**V1_RECIPE["recipe"], "weight_decay": 0.0}}
R50_RECIPE = {
    "recipe": {"epochs": 32, "batch": 256, "lr": 0.1, "weight_decay": 1e-4, "milestones": STEPS},
    "final": {"epochs": 128, "batch": 512, "lr": 0.2, "weight_decay": 1e-4, "milestones": STEPS},
}

_ALL = [
    counting("liu2019.cost", costs, seconds=8),
    Experiment(
        "liu2019.digits", searched,
        {"quick": {
            "data": "digits", "net": "digits ResNet of three blocks", "schedule": "24 and 6 epochs",
            "recipe": DIGITS_NET, "final": DIGITS_FINAL, "uniform": [0.375, 0.625], "constraints": ["mac"],
            "evolution": FORTY_EIGHT, "val_fraction": 0.4, "val_images": 160, "images": 128, "step": 2,
            "structures": 10, "random_widths": 12, "reseeds": 4, "batch": 0, "rounds": 0,
        }},
        version=2, seconds={"quick": 15},
    ),
    Experiment(
        "liu2019.latency", timed,
        {
            "quick": {
                "tables": ["table5"], "batch": 1, "rounds": 3, "warmup": 1, "schedule": "batch 1, one thread",
                "space": "digits ResNet of three blocks", "vectors": 6, "table_batch": 32, "table_rounds": 5,
                "channels": 128,
            },
            "standard": {
                "threads": 1, "tables": ["table5", "table6"], "batch": 8, "rounds": 10, "warmup": 2,
                "schedule": "batch 8, one thread", "space": "MobileNetV1 for CIFAR", "vectors": 10, "table_batch": 32,
                "table_rounds": 10, "channels": 512,
            },
        },
        seconds={"quick": 2, "standard": 90}, alone=True,
    ),
    Experiment(  # float32 and one thread: the same on every processor, and one run a core
        "liu2019.resnet20_200eval", searched,
        _cifar("ResNet-20 with projections", "2 and 8 epochs", dtype="float32", threads=1, recipe=CPU_NET,
               final=CPU_FINAL, uniform=[0.25, 0.49], evolution=TWO_HUNDRED, val_fraction=0.04, val_images=2000,
               images=2000, step=5, random_widths=12, reseeds=3),
        version=2, seconds={"standard": 3600 * 5.5},
    ),
    Experiment(  # the table and the whole networks are of this host, or of a phone: shrinkbook run ... --phone NAME
        "liu2019.resnet20_lookup", searched,
        _cifar("ResNet-20, inner widths", "2 and 8 epochs", dtype="float32", threads=1, recipe=CPU_NET,
               final=CPU_FINAL, uniform=[0.5, 0.75], constraints=["mac", "latency"], evolution=TWO_HUNDRED,
               val_fraction=0.04, val_images=2000, images=2000, step=1, random_widths=4, reseeds=3),
        version=2, parents=("phone.lookup", "phone.resnet20"), seeds={"standard": 1},
        seconds={"standard": 3600 * 6.5}, packages=("ncnn", "pnnx"),
    ),
    _gpu("resnet20", "ResNet-20 with projections", 4),
    _gpu("resnet56", "ResNet-56 with projections", 10),
    _gpu("mobilenet_v1", "MobileNetV1 for CIFAR", 6, constraints=["mac", "latency"]),
    _gpu("mobilenet_v2", "MobileNetV2 for CIFAR", 12),
    _imagenet("v1", "MobileNetV1", 24 * 6, **V1_RECIPE),
    _imagenet("v2", "MobileNetV2", 24 * 24, **V2_RECIPE),
    _imagenet("r50", "ResNet-50", 24 * 12, **R50_RECIPE),
]  # fmt: skip

EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}
