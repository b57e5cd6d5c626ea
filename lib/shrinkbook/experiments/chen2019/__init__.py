"""Chen et al. 2019, data-free learning of student networks: every experiment and its budgets.

On every data set one experiment trains the teacher and the students that have its data, its children those that have
none. `quick` counts, and runs every arm on digits. `standard` has MNIST at a processor's budget and at the authors'
schedule (a GPU), and CIFAR-10 at the shorter schedule that mmrazor published (a GPU). `paper` has CIFAR at their own.
"""

from typing import Any

from shrinkbook.experiments.chen2019.arms import LOSSES, with_data, without_data
from shrinkbook.experiments.chen2019.cost import costs
from shrinkbook.experiments.experiment import Experiment, counting

__all__ = ["EXPERIMENTS"]

COMBINATIONS = [name for name in LOSSES if name not in ("two stages", "untrained")]


def adam(epochs: int, batch: int, lr: float, **more: Any) -> dict[str, Any]:
    """A recipe for Adam without weight decay."""
    return {"epochs": epochs, "batch": batch, "lr": lr, "weight_decay": 0, "optimiser": "adam", **more}


# Rates, epochs and iterations on digits were chosen on the arms that have data, see deviation digits_budget.
DIGITS: dict[str, Any] = {
    "data": "digits", "normalise": None, "side": 8, "net": "digits LeNet", "student": "digits LeNet, half",
    "features": "fc1", "temperature": 1, "fills": {},
}  # fmt: skip
DIGITS_DAFL: dict[str, Any] = {
    **DIGITS, "schedule": "120 iterations", "iterations": 12, "latent": 100, "width": 16, "alternative": "typeset",
    "student_recipe": adam(10, 128, 1e-2), "generator_recipe": adam(10, 128, 0.2),
    "loss_weights": {"one_hot": 1, "entropy": 5, "activation": 0.1},
}  # fmt: skip

MNIST = {"data": "mnist", "normalise": [[0.1307], [0.3081]], "temperature": 1, "threads": 1}
LENET: dict[str, Any] = {
    **MNIST, "side": 32, "net": "LeNet-5", "student": "LeNet-5-Half", "features": "fc1",
    "fills": {"table1": "LeNet-5 accuracy"},
}  # fmt: skip
HINTON: dict[str, Any] = {
    **MNIST, "side": 28, "net": "Hinton-784-1200-1200-10", "student": "Hinton-784-800-800-10", "features": "5",
    "fills": {"table1": "HintonNet accuracy"},
}  # fmt: skip
CIFAR: dict[str, Any] = {
    "normalise": [[0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]],
    "side": 32, "features": "linear", "temperature": 1,
}  # fmt: skip
CIFAR10: dict[str, Any] = {
    **CIFAR, "data": "cifar10", "net": "ResNet-34 for CIFAR", "student": "ResNet-18 for CIFAR",
    "fills": {"table3": "CIFAR-10 accuracy"},
}  # fmt: skip
CIFAR100: dict[str, Any] = {
    **CIFAR, "data": "cifar100", "net": "ResNet-34 for CIFAR-100", "student": "ResNet-18 for CIFAR-100",
    "fills": {"table3": "CIFAR-100 accuracy"},
}  # fmt: skip
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
TEACHERS = {**SGD, "epochs": 199, "batch": 128, "milestones": [80 / 199, 120 / 199], "augment": True}


def mnist(iterations: int, epochs: int, arms: list[str], schedule: str) -> dict[str, Any]:
    """The authors' settings on MNIST, cut to so many iterations in so many looks at the student."""
    return {
        "schedule": schedule, "iterations": iterations // epochs, "latent": 100, "width": 128, "alternative": "digits",
        "arms": arms, "student_recipe": adam(epochs, 512, 2e-3), "generator_recipe": adam(epochs, 512, 0.2),
        "loss_weights": {"one_hot": 1, "entropy": 5, "activation": 0.1},
    }  # fmt: skip


def cifar(one_hot: float, entropy: float, activation: float, alternative: str) -> dict[str, Any]:
    """The authors' settings on CIFAR: 2000 epochs of 120 iterations."""
    return {
        "schedule": "paper", "iterations": 120, "latent": 1000, "width": 128, "alternative": alternative,
        "arms": ["dafl", "noise", "alternative"],
        "student_recipe": {**SGD, "epochs": 2000, "batch": 1024, "milestones": [0.4, 0.8]},
        "generator_recipe": adam(2000, 1024, 0.02),
        "loss_weights": {"one_hot": one_hot, "entropy": entropy, "activation": activation},
    }  # fmt: skip


# As mmrazor trains: AdamW for both networks, its default weight decay, 500 iterations of warm-up, temperature 6.
ADAMW = {"epochs": 250, "batch": 2048, "weight_decay": 0.01, "optimiser": "adamw", "warmup": 500 / 30_000}
MMRAZOR: dict[str, Any] = {
    **cifar(0.05, 5, 0.01, "cifar100"), "schedule": "30,000 iterations", "temperature": 6,
    "student_recipe": {**ADAMW, "lr": 0.1, "milestones": [0.4, 0.8]}, "generator_recipe": {**ADAMW, "lr": 1e-3},
}  # fmt: skip
WHOLE = adam(9, 256, 1e-3)
PLAIN = ["noise", "alternative"]

_ALL = [
    counting("chen2019.cost", costs, seconds=2),
    Experiment(
        "chen2019.digits", with_data,
        {"quick": {**DIGITS, "schedule": "30 epochs", "recipe": adam(30, 50, 1e-2, milestones=[0.7])}},
        seconds={"quick": 4},
    ),
    Experiment(
        "chen2019.digits_dafl", without_data, {"quick": {**DIGITS_DAFL, "arms": [*PLAIN, *COMBINATIONS]}},
        parents=("chen2019.digits",), seconds={"quick": 11},
    ),
    Experiment(
        "chen2019.digits_variants", without_data, {"quick": {**DIGITS_DAFL, "arms": ["two stages", "untrained"]}},
        parents=("chen2019.digits",), seeds={"quick": 1}, seconds={"quick": 4},
    ),
    Experiment(
        "chen2019.mnist", with_data, {"standard": {**LENET, "schedule": "paper", "recipe": WHOLE}},
        seconds={"standard": 200},
    ),
    Experiment(
        "chen2019.mnist_noise", without_data, {"standard": {**LENET, **mnist(24_000, 200, PLAIN, "paper")}},
        parents=("chen2019.mnist",), seeds={"standard": 3}, seconds={"standard": 4800},
    ),
    Experiment(
        "chen2019.mnist_600it", without_data,
        {"standard": {**LENET, **mnist(600, 20, ["dafl", *PLAIN], "600 iterations")}},
        parents=("chen2019.mnist",), seconds={"standard": 2600},
    ),
    Experiment(
        "chen2019.mnist_ablation_240it", without_data,
        {"standard": {
            **LENET, **mnist(240, 8, ["noise", *COMBINATIONS, "two stages"], "240 iterations"),
            "fills": {"table2": "accuracy"},
        }},
        parents=("chen2019.mnist",), seconds={"standard": 9000},
    ),
    Experiment(
        "chen2019.mnist_dafl", without_data, {"standard": {**LENET, **mnist(24_000, 200, ["dafl", *PLAIN], "paper")}},
        parents=("chen2019.mnist",), seconds={"standard": 600}, gpu=True,
    ),
    Experiment(
        "chen2019.mnist_ablation", without_data,
        {"standard": {
            **LENET, **mnist(24_000, 200, ["noise", *LOSSES], "paper"), "fills": {"table2": "accuracy"},
        }},
        parents=("chen2019.mnist",), seconds={"standard": 2400}, gpu=True,
    ),
    Experiment(
        "chen2019.mnist_hinton", with_data, {"standard": {**HINTON, "schedule": "paper", "recipe": WHOLE}},
        seeds={"standard": 3}, seconds={"standard": 150},
    ),
    Experiment(
        "chen2019.mnist_hinton_600it", without_data,
        {"standard": {**HINTON, **mnist(600, 20, ["dafl", *PLAIN], "600 iterations")}},
        parents=("chen2019.mnist_hinton",), seeds={"standard": 3}, seconds={"standard": 1500},
    ),
    Experiment(
        "chen2019.mnist_hinton_dafl", without_data,
        {"standard": {**HINTON, **mnist(24_000, 200, ["dafl", *PLAIN], "paper")}},
        parents=("chen2019.mnist_hinton",), seeds={"standard": 3}, seconds={"standard": 1000}, gpu=True,
    ),
    Experiment(
        "chen2019.cifar10", with_data,
        dict.fromkeys(
            ("standard", "paper"), {**CIFAR10, "dtype": "bfloat16", "schedule": "paper", "recipe": TEACHERS}
        ),
        seeds={"standard": 3}, seconds={"standard": 8000, "paper": 8000}, gpu=True,
    ),
    Experiment(
        "chen2019.cifar10_30k", without_data, {"standard": {**CIFAR10, **MMRAZOR}},
        parents=("chen2019.cifar10",), seeds={"standard": 3}, seconds={"standard": 15_000}, gpu=True,
    ),
    Experiment(
        "chen2019.cifar10_dafl", without_data, {"paper": {**CIFAR10, **cifar(0.05, 5, 0.01, "cifar100")}},
        parents=("chen2019.cifar10",), seconds={"paper": 60_000}, gpu=True,
    ),
    Experiment(
        "chen2019.cifar100", with_data,
        {"paper": {**CIFAR100, "dtype": "bfloat16", "schedule": "paper", "recipe": TEACHERS}},
        seconds={"paper": 8000}, gpu=True,
    ),
    Experiment(
        "chen2019.cifar100_dafl", without_data, {"paper": {**CIFAR100, **cifar(0.5, 20, 0.1, "cifar10")}},
        parents=("chen2019.cifar100",), seconds={"paper": 60_000}, gpu=True,
    ),
]  # fmt: skip

EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}
