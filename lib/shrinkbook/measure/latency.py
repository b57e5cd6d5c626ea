"""Latency on this machine: networks timed in turns within one process, so that ratios outlive a drifting clock."""

from __future__ import annotations

import copy
import os
import random
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from shrinkbook.training.evaluate import evaluating

MODES = ("eager", "channels_last", "compiled")


@dataclass(frozen=True)
class Timing:
    """Seconds for one forward pass: median, low (10 %) and high (90 %) quantile; raw holds every round."""

    median: float
    low: float
    high: float
    runs: int
    raw: list[float]


@dataclass(frozen=True)
class Saved:
    """Time saved in percent of the base (negative: slower), over paired rounds: median, 10 % and 90 % quantile."""

    median: float
    low: float
    high: float


def latency(
    models: Mapping[str, nn.Module], example: Tensor, runs: int = 30, warmup: int = 5, seed: int = 0
) -> dict[str, Timing]:
    """Time each model on the same input, in evaluation mode and without gradients.

    Every round runs each model once, in an order shuffled by the seed; round i of one model pairs with round i of
    another. Models must be on the device of the example.

    Args:
        example: the input batch, (n, c, h, w).
        runs: rounds that count.
        warmup: rounds before them that do not.

    Raises:
        ValueError: no models, or fewer than one run.
    """
    if not models or runs < 1:
        raise ValueError(f"latency needs at least one model and one run, got {len(models)} and {runs}")
    shuffle = random.Random(seed)
    names = list(models)
    raw: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as modes, torch.inference_mode():
        for model in models.values():
            modes.enter_context(evaluating(model))
        for turn in range(-warmup, runs):
            for name in shuffle.sample(names, len(names)):
                took = seconds(partial(models[name], example), example.device)
                if turn >= 0:
                    raw[name].append(took)
    return {name: Timing(*_quantiles(values), runs, values) for name, values in raw.items()}


class OnItsInput(nn.Module):
    """A part of a network on what it reads, whatever it is called with, so that all parts can be timed in turns."""

    def __init__(self, part: nn.Module, seen: Tensor) -> None:
        super().__init__()
        self.part, self.seen = part, seen

    def forward(self, _: Tensor) -> Tensor:
        return self.part(self.seen)


def in_mode(model: nn.Module, mode: str) -> nn.Module:
    """A copy of a network, made ready to be timed as someone who wants speed would run it.

    Args:
        mode: ``eager``, as it is; ``channels_last``, weights in the layout in which 1x1 convolutions are plain matrix
            products; ``compiled``, by ``torch.compile`` on its first call, which takes seconds to minutes, with
            weights frozen and laid out in advance.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; there are {', '.join(MODES)}")
    twin = copy.deepcopy(model).eval()
    if mode == "channels_last":
        return twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return cast(nn.Module, torch.compile(twin, options={"freezing": True})) if mode == "compiled" else twin


def usable_modes(device: str) -> tuple[str, ...]:
    """The modes this machine can run: compiling for a processor takes a C++ compiler."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    return MODES if device == "cuda" or compiler else MODES[:2]


def saved(base: Timing, other: Timing) -> Saved:
    """Percent of the base's time that `other` saves, from rounds timed side by side.

    Raises:
        ValueError: the two were not timed in the same call.
    """
    if base.runs != other.runs:
        raise ValueError(f"saved needs paired rounds, got {base.runs} and {other.runs}: time both in one latency call")
    return Saved(*_quantiles([100 * (1 - b / a) for a, b in zip(base.raw, other.raw, strict=True)]))


def seconds(work: Callable[[], object], device: torch.device | str) -> float:
    """Wall time of one call, the device's queue emptied before and after."""
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _quantiles(values: list[float]) -> tuple[float, float, float]:
    low, median, high = np.quantile(values, [0.1, 0.5, 0.9])
    return float(median), float(low), float(high)
