"""Latency on a phone, or on this host in its place: which networks are measured, at which budget.

Not a paper: what kim2016 prints of a phone, and what the other papers' networks gain there. ``quick`` measures
ResNet-20 on this host. A phone is measured by ``make reproduce PHONE=...`` alone; its runs have its name in their
settings.
"""

from collections.abc import Callable
from typing import Any

from shrinkbook.evidence import store
from shrinkbook.experiments.experiment import Experiment
from shrinkbook.experiments.phone.lookup import widths
from shrinkbook.experiments.phone.measuring import (
    SERIAL,
    engine_here,
    expected_minutes,
    identify,
    layer_by_layer,
    networks,
    on_phone,
    parents_on,
    stored,
)
from shrinkbook.experiments.phone.subjects import subject
from shrinkbook.experiments.run import ensure, offered, stored_runs, unit

__all__ = [
    "EXPERIMENTS",
    "SERIAL",
    "engine_here",
    "expected_minutes",
    "identify",
    "on_phone",
    "parents_on",
    "recorded",
    "runs",
    "stored",
    "subject",
]

BUDGET: dict[str, Any] = {
    "where": "host", "engine": "ncnn", "precisions": ["fp32"], "threads": 1,
    "blocks": 5, "loops": 10, "seconds": 2.0, "warmup": 10, "warmup_seconds": 0.3,
}  # fmt: skip
SETS = {
    "resnet20": ("ResNet-20", 2, 30),
    "resnet20_forms": ("forms of ResNet-20", 4, 70),
    "head_to_head": ("head to head", 6, 110),
    "lccl": ("LCCL", 2, 35),
    "vgg16_cifar": ("VGG-16 for CIFAR", 2, 40),
    "resnet56": ("ResNet-56", 3, 60),
    "resnet34": ("ResNet-34", 3, 80),
    "mobilenet_v1": ("MobileNetV1", 4, 70),
    "alexnet": ("AlexNet", 2, 70),
    "vgg_s": ("VGG-S", 2, 80),
    "googlenet": ("GoogLeNet", 2, 60),
    "vgg16": ("VGG-16", 2, 400),
}


def _config(what: str, count: int, **more: Any) -> dict[str, Any]:
    return {**BUDGET, "net": what, "networks": count, "schedule": "5 blocks of 2 s", **more}


_ALL = [
    *[
        Experiment(
            f"phone.{key}", networks,
            {profile: _config(what, count) for profile in ("quick", "standard")[key != "resnet20":]},
            seeds={"quick": 1, "standard": 1}, seconds={"quick": seconds, "standard": seconds},
            alone=True, packages=("ncnn", "pnnx"),
        )
        for key, (what, count, seconds) in SETS.items()
    ],
    Experiment(
        "phone.alexnet_layers", layer_by_layer,
        {"standard": _config("AlexNet", 37, blocks=3, seconds=0.5, warmup_seconds=0.1, schedule="3 blocks of 0.5 s")},
        seeds={"standard": 1}, seconds={"standard": 240}, alone=True, packages=("ncnn", "pnnx"),
    ),
    Experiment(
        "phone.lookup", widths,
        {"standard": _config("layers of ResNet-20", 31, blocks=2, seconds=0.3, warmup_seconds=0.1,
                             schedule="2 blocks of 0.3 s", network="ResNet-20", shape=[3, 32, 32],
                             shares=[0.25, 0.5, 0.75, 1.0])},
        seeds={"standard": 1}, seconds={"standard": 150}, alone=True, packages=("ncnn", "pnnx"),
    ),
]  # fmt: skip

EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}


def runs(profile: str, where: str = "host", say: Callable[[str], None] | None = None) -> dict[str, dict[str, Any]]:
    """Runs of a profile by experiment: of this host stored or measured now, of a phone as they are stored.

    Args:
        where: ``host``, or a phone's name as ``make reproduce PHONE=...`` gave it; no phone is touched here.
        say: told of blocks as they are done.
    """
    if where != "host":
        return stored(EXPERIMENTS, profile, where)
    chosen = [name for name, one in EXPERIMENTS.items() if profile in one.configs]
    wanted = [unit(EXPERIMENTS, name, profile, 0, {"engine": engine_here()}) for name in chosen]
    return {one.experiment.name: ensure(one, "cpu", say) for one in offered(wanted)}


def recorded() -> dict[str, dict[str, Any]]:
    """Host runs at standard that the committed record holds, by experiment; nothing is measured."""
    wanted = [unit(EXPERIMENTS, name, "standard", 0) for name in EXPERIMENTS]
    return {run["experiment"]: run for run in stored_runs(wanted, store.record_dir())}
