"""Seven methods on one trained network at matched budgets, and four combinations of them.

Belongs to no paper and has no claims: nothing is judged. `quick` compares on digits; `standard` on CIFAR-10 from public
weights, at a budget of training that a processor carries.
"""

from collections.abc import Callable, Sequence
from typing import Any

from shrinkbook.evidence import store
from shrinkbook.experiments import profiles
from shrinkbook.experiments.experiment import Experiment, Unit
from shrinkbook.experiments.head_to_head.arms import COMBINED, METHODS, arms
from shrinkbook.experiments.head_to_head.timing import timed
from shrinkbook.experiments.head_to_head.train import compared
from shrinkbook.experiments.run import ensure, obstacle, offered, seeds_of, stored_runs, unit
from shrinkbook.experiments.steps import baseline

__all__ = ["COMBINED", "EXPERIMENTS", "METHODS", "arms", "comparison", "record", "runs", "timed", "why_not"]

EIGHTHS = [n / 8 for n in range(1, 9)]
# Every arm: so many epochs of so many steps. Fresh weights want a larger rate than trained ones; all else is the same.
DIGITS = {"epochs": 4, "batch": 32, "lr": 0.02, "milestones": [0.5, 0.75]}
CIFAR = {"epochs": 4, "batch": 32, "lr": 0.01, "milestones": [0.5, 0.75], "augment": True}
# DAFL's generator by Adam; weights of its losses and rates are those of chen2019 on either data set.
MAKER = {"epochs": 1, "batch": 1, "weight_decay": 0, "optimiser": "adam"}
CONGRUENCE = {"beta": 30.0, "alpha": 0.1, "temperature": 4.0}  # beta in the middle of what peng2019 tries


def _search(recipe: dict[str, Any], **more: Any) -> dict[str, Any]:
    """MetaPruning: its PruningNet gets twice the epochs of an arm, each as long as the images not held out allow."""
    return {"recipe": {**recipe, "epochs": 2 * recipe["epochs"], "lr": 0.1}, "hidden": 32, **more}


_DIGITS: dict[str, Any] = {
    "data": "digits", "net": "digits ResNet-8", "weights": "parent", "schedule": "48 steps of 32 images",
    "removed": [0.5, 0.75], "centroids": 64, "iterations": 100, "ratios": EIGHTHS, "test_images": 1397,
    "steps": 12, "tune": DIGITS, "fresh": {**DIGITS, "lr": 0.1}, "congruence": CONGRUENCE,
    "search": _search(DIGITS, val_fraction=0.25, val_images=100, images=128, evolution={
        "population": 10, "mutations": 4, "crossovers": 4, "generations": 3, "parents": 4}),
    "latent": 100, "width": 16, "generator": {**MAKER, "lr": 0.2},
    "loss_weights": {"one_hot": 1, "entropy": 5, "activation": 0.1},
}  # fmt: skip
_RESNET20: dict[str, Any] = {
    "data": "cifar10", "net": "ResNet-20", "weights": "public", "schedule": "public weights, 100 steps of 32 images",
    "threads": 1, "removed": [0.5, 0.75], "centroids": 64, "iterations": 20,
    "ratios": [(10 + 3 * i) / 100 for i in range(31)], "test_images": 2000,
    "steps": 25, "tune": CIFAR, "fresh": {**CIFAR, "lr": 0.1}, "congruence": CONGRUENCE,
    "search": _search(CIFAR, val_fraction=0.04, val_images=512, images=256, evolution={
        "population": 6, "mutations": 3, "crossovers": 3, "generations": 3, "parents": 3}),
    "latent": 1000, "width": 32, "generator": {**MAKER, "lr": 0.02},
    "loss_weights": {"one_hot": 0.05, "entropy": 5, "activation": 0.01},
}  # fmt: skip


def _timing(net: str, shape: list[int], rounds: int) -> dict[str, Any]:
    return {
        "net": net, "shape": shape, "batch": 1, "rounds": rounds, "warmup": 3, "threads": 1,
        "schedule": "batch 1, one thread",
    }  # fmt: skip


_ALL = [
    Experiment(
        "head_to_head.digits_baseline", baseline,
        {"quick": {
            "data": "digits", "net": "digits ResNet-8", "schedule": "20 epochs",
            "recipe": {"epochs": 20, "batch": 32, "lr": 0.1, "milestones": [0.5, 0.75]},
        }},
        seconds={"quick": 2},
    ),
    Experiment(
        "head_to_head.digits", compared, {"quick": _DIGITS},
        parents=("head_to_head.digits_baseline",), seconds={"quick": 11},
    ),
    Experiment(
        "head_to_head.digits_latency", timed, {"quick": _timing("digits ResNet-8", [1, 8, 8], 25)},
        parents=("head_to_head.digits",), seeds={"quick": 1}, seconds={"quick": 5}, alone=True,
    ),
    Experiment(
        "head_to_head.resnet20_100steps", compared, {"standard": _RESNET20},
        needs=("resnet20-public",), seeds={"standard": 3}, seconds={"standard": 1500},
    ),
    Experiment(
        "head_to_head.resnet20_latency", timed, {"standard": _timing("ResNet-20", [3, 32, 32], 30)},
        parents=("head_to_head.resnet20_100steps",), needs=("resnet20-public",), seeds={"standard": 3},
        seconds={"standard": 30}, alone=True,
    ),
]  # fmt: skip

EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}
COMPARISONS = {  # profile -> the comparison, and what times its forms
    "quick": ("head_to_head.digits", "head_to_head.digits_latency"),
    "standard": ("head_to_head.resnet20_100steps", "head_to_head.resnet20_latency"),
}


def comparison(profile: str) -> tuple[str, str]:
    """The experiment that compares in a profile, and the one that times its forms; of the largest profile that has
    any, where this one has none.

    Raises:
        ValueError: an unknown profile.
    """
    return COMPARISONS.get(profiles.profile(profile).name, COMPARISONS["standard"])


def why_not(name: str, profile: str, device: str | None = None) -> str:
    """Why this machine has no runs of an experiment in a profile; empty if it can compute them."""
    experiment = EXPERIMENTS[name]
    if profile not in experiment.configs:
        reason = f"has no budget in profile {profile}; it runs in {', '.join(experiment.configs)}"
    else:
        reason = obstacle(experiment, device or "cpu")
    return reason and f"not attempted: {name} {reason}"


def runs(
    name: str,
    profile: str,
    seeds: Sequence[int] | None = None,
    device: str | None = None,
    say: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """The runs of an experiment, one a seed: stored ones, else computed now; none where the profile lacks it or this
    machine cannot run it.

    Args:
        say: told of every arm as it is done.
    """  # fmt: skip
    return [ensure(one, device, say) for one in _units(name, profile, seeds) if not why_not(name, profile, device)]


def record(name: str, profile: str) -> list[dict[str, Any]]:
    """The committed runs of an experiment; nothing is computed."""
    return stored_runs(_units(name, profile, None), store.record_dir())


def _units(name: str, profile: str, seeds: Sequence[int] | None) -> list[Unit]:
    experiment = EXPERIMENTS[name]
    if profile not in experiment.configs:
        return []
    return offered(unit(EXPERIMENTS, name, profile, seed) for seed in seeds_of(experiment, profile, seeds))
