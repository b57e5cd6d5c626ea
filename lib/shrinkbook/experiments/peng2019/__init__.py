"""Peng et al. 2019, correlation congruence: every experiment and its budgets.

`quick` distils small networks on digits with every kernel, sampler and order. `standard` does the same on MNIST and,
for one kernel, from the public ResNet-56 on CIFAR-10, at budgets that a processor carries; CIFAR-100 takes a GPU.
"""

from typing import Any

from shrinkbook.experiments.experiment import Experiment, counting
from shrinkbook.experiments.peng2019.cost import costs
from shrinkbook.experiments.peng2019.kernels import by_kernel
from shrinkbook.experiments.peng2019.overhead import timed
from shrinkbook.experiments.peng2019.samplers import by_sampler
from shrinkbook.experiments.steps import baseline

__all__ = ["EXPERIMENTS"]

# The paper's schedule is not known; this is the one of the benchmark that took the authors' loss up (RepDistiller).
BENCHMARK = {
    "epochs": 240, "batch": 64, "lr": 0.05, "weight_decay": 5e-4, "milestones": [150 / 240, 180 / 240, 210 / 240],
    "augment": True,
}  # fmt: skip
TUNING = {**BENCHMARK, "epochs": 60, "val_fraction": 0.1}
FIVE_EPOCHS = {**BENCHMARK, "epochs": 5, "milestones": [0.6, 0.8]}
MNIST = {"epochs": 2, "batch": 40, "lr": 0.1, "milestones": [0.5, 0.75], "val_fraction": 0.3}
DIGITS = {"epochs": 15, "batch": 40, "lr": 0.1, "milestones": [0.5, 0.75], "val_fraction": 0.25}  # see digits_budget
# Three values a decade apart for each kernel, in the middle where its loss weighs about as much as the others'.
BETAS = {
    "mmd": [30.0, 300.0, 3000.0], "bilinear": [1.0, 10.0, 100.0], "rbf2": [3.0, 30.0, 300.0], "rbf3": [3.0, 30.0, 300.0]
}  # fmt: skip


def _student(
    data: str, net: str, teacher: str, teacher_from: str, schedule: str, recipe: dict[str, Any]
) -> dict[str, Any]:
    """Settings that every comparison has: alpha and temperature are the benchmark's for distillation."""
    return {
        "data": data, "net": net, "teacher": teacher, "teacher_from": teacher_from, "schedule": schedule,
        "recipe": recipe, "alpha": 0.1, "temperature": 4.0,
    }  # fmt: skip


def _kernels(student: dict[str, Any], betas: dict[str, list[float]], **more: Any) -> dict[str, Any]:
    """Settings of :func:`by_kernel`; ``betas`` names the kernels, ``betas_from`` a parent that chose for them."""
    unless: dict[str, Any] = {"sampler": None, "consecutive": True, "betas_from": None, "ends": [], "common_beta": None}
    unless["cells"] = {}
    return {**student, **unless, "betas": betas, **more}


def _samplers(
    student: dict[str, Any],
    betas_from: str,
    classes: list[int],
    superclasses: dict[int, int],
    uniform: bool = False,
) -> dict[str, Any]:
    """Settings of :func:`by_sampler`: k of class-uniform batches, k -> number of superclasses of the others.

    Args:
        uniform: train with uniform batches, too, because the parent's were others.
    """
    kinds: dict[str, Any] = {"uniform": None} if uniform else {}
    kinds |= {f"class, k = {k}": {"per_class": k} for k in classes}
    kinds |= {f"superclass, k = {k}": {"per_class": k, "superclasses": n} for k, n in superclasses.items()}
    return {**student, "betas_from": betas_from, "samplers": kinds}


def _teacher(name: str, settings: dict[str, Any], profile: str, seconds: float, **more: Any) -> Experiment:
    return Experiment(name, baseline, {profile: settings}, seconds={profile: seconds}, **more)


_DIGITS = _student("digits", "digits student", "digits teacher", "peng2019.digits_teacher", "15 epochs", DIGITS)
_MNIST = _student("mnist", "MNIST student", "MNIST teacher", "peng2019.mnist_teacher", "2 epochs", MNIST)
_CIFAR10 = _student("cifar10", "ResNet-14 with projections", "ResNet-56", "public", "5 epochs", FIVE_EPOCHS)
_EVERYTHING = {"ends": [0.003, 3000.0], "common_beta": 30.0}
_PER_CLASS = {"per_class": 4}


def _cifar100(depth: int, teacher: int, schedule: str, recipe: dict[str, Any]) -> dict[str, Any]:
    student, guide = (f"ResNet-{one} with projections, 100 classes" for one in (depth, teacher))
    settings = _student("cifar100", student, guide, f"peng2019.resnet{teacher}_cifar100", schedule, recipe)
    return {**settings, "dtype": "bfloat16"}


def _cells(depth: int) -> dict[str, str]:
    return {name: f"table1/ResNet-{depth}/{column}" for name, column in (("ce", "CE"), ("kd", "KD"), ("rbf2", "CCKD"))}


def _main(depth: int, hours: float) -> Experiment:
    """Table 1: what the paper's method is, class-uniform batches and congruence, against distillation and CE."""
    settings = _cifar100(depth, 110, "240 epochs", BENCHMARK)
    return Experiment(
        f"peng2019.resnet110_to_resnet{depth}", by_kernel,
        {"standard": _kernels(settings, dict.fromkeys(BETAS, []), sampler=_PER_CLASS, consecutive=False,
                              betas_from="peng2019.resnet20_beta", cells=_cells(depth))},
        parents=("peng2019.resnet110_cifar100", "peng2019.resnet20_beta"),
        seconds={"standard": 3600 * hours}, gpu=True,
    )  # fmt: skip


def _benchmark(teacher: int, hours: float) -> Experiment:
    """The benchmark's columns: cross entropy, distillation, and the loss it calls CC, with uniform batches."""
    settings = _cifar100(20, teacher, "240 epochs", BENCHMARK)
    column = f"resnet{teacher} to resnet20"
    rows = {"ce": "student", "kd": "KD", "consecutive": "CC"}
    return Experiment(
        f"peng2019.resnet{teacher}_to_resnet20_benchmark", by_kernel,
        {"standard": _kernels(settings, {}, cells={arm: f"benchmark/{row}/{column}" for arm, row in rows.items()})},
        parents=(f"peng2019.resnet{teacher}_cifar100",),
        seconds={"standard": 3600 * hours}, gpu=True,
    )  # fmt: skip


_ALL = [
    counting("peng2019.cost", costs, seconds=1, version=2),
    Experiment(
        "peng2019.overhead", timed,
        {
            "quick": {
                "net": "ResNet-20 with projections, 100 classes", "batch": 64, "rounds": 2,
                "schedule": "batch 64, one thread",
            },
            "standard": {
                "net": "ResNet-20 with projections, 100 classes", "batch": 64, "rounds": 15, "schedule": "batch 64",
            },
        },
        seconds={"quick": 1.5, "standard": 10}, alone=True,
    ),
    _teacher(
        "peng2019.digits_teacher",
        {"data": "digits", "net": "digits teacher", "schedule": "20 epochs", "recipe": {**DIGITS, "epochs": 20}},
        "quick", 1,
    ),
    Experiment(
        "peng2019.digits", by_kernel, {"quick": _kernels(_DIGITS, BETAS, **_EVERYTHING)},
        parents=("peng2019.digits_teacher",), seconds={"quick": 9},
    ),
    Experiment(
        "peng2019.digits_samplers", by_sampler,
        {"quick": _samplers(_DIGITS, "peng2019.digits", [4, 8, 20], {2: 30, 4: 20})},
        parents=("peng2019.digits_teacher", "peng2019.digits"), seconds={"quick": 5},
    ),
    _teacher(
        "peng2019.mnist_teacher",
        {"threads": 1, "data": "mnist", "net": "MNIST teacher", "schedule": "2 epochs", "recipe": MNIST},
        "standard", 30,
    ),
    Experiment(
        "peng2019.mnist", by_kernel, {"standard": {"threads": 1, **_kernels(_MNIST, BETAS, **_EVERYTHING)}},
        parents=("peng2019.mnist_teacher",), seconds={"standard": 450},
    ),
    Experiment(
        "peng2019.mnist_samplers", by_sampler,
        {"standard": {"threads": 1, **_samplers(
            _MNIST, "peng2019.mnist", [4, 8, 20], {2: 30, 4: 20, 8: 20, 20: 20}
        )}},
        parents=("peng2019.mnist_teacher", "peng2019.mnist"), seconds={"standard": 320},
    ),
    Experiment(
        "peng2019.resnet14_cifar10_5ep", by_kernel,
        {"standard": {"threads": 1, **_kernels(
            _CIFAR10, {"rbf2": []}, consecutive=False, betas_from="peng2019.mnist"
        )}},
        parents=("peng2019.mnist",), needs=("resnet56-public",), seconds={"standard": 3000},
    ),
    *[
        _teacher(
            f"peng2019.resnet{depth}_cifar100",
            {"data": "cifar100", "net": f"ResNet-{depth} with projections, 100 classes", "schedule": "240 epochs",
             "dtype": "bfloat16", "recipe": BENCHMARK},
            "standard", 3600 * hours, gpu=True,
        )
        for depth, hours in ((56, 0.7), (110, 1.3))
    ],
    Experiment(
        "peng2019.resnet20_beta", by_kernel,
        {"standard": _kernels(_cifar100(20, 110, "60 epochs", TUNING), BETAS, sampler=_PER_CLASS, **_EVERYTHING)},
        parents=("peng2019.resnet110_cifar100",), seconds={"standard": 3600 * 2.5}, gpu=True,
    ),
    _main(20, 3), _main(14, 2.5),
    Experiment(
        "peng2019.resnet20_samplers", by_sampler,
        {"standard": _samplers(
            _cifar100(20, 110, "60 epochs", {**TUNING, "batch": 40}), "peng2019.resnet20_beta", [2, 4, 8, 20],
            {2: 50, 4: 50, 8: 50, 20: 50}, uniform=True,
        )},
        parents=("peng2019.resnet110_cifar100", "peng2019.resnet20_beta"),
        seconds={"standard": 3600 * 3}, gpu=True,
    ),
    _benchmark(56, 1), _benchmark(110, 1.2),
]  # fmt: skip

EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}
