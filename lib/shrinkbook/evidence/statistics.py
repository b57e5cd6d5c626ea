"""The numbers behind the verdicts: printed digits, t-intervals, slopes, the bootstrap over images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal

import numpy as np
from scipy.special import fdtr, stdtrit

Interval = tuple[float, float]

CONFIDENCE = 0.90  # of the intervals that judge levels, deltas and ratios
RESAMPLES = 1000  # of the bootstrap over images
CHUNK = 100  # resamples held in memory at a time


def agree(ours: float, printed: str) -> str:
    """Compare our value with a printed one at the digits that were printed.

    The last printed digit fixes the tolerance: `34.2` is judged in tenths, `3.13e8` in millions.

    Args:
        ours: our value, in the unit of the printed one.
        printed: the number as the paper prints it.

    Returns:
        `reproduced` if ours rounds (half up) or truncates to the printed digits, `close` if either of the two is one
        unit of the last printed place off, else `differs`.
    """
    target = Decimal(printed)
    if not math.isfinite(ours):
        return "differs"
    exponent = target.as_tuple().exponent
    assert isinstance(exponent, int)
    # repr is the shortest decimal that reads back as the same float: 34.195 stays 34.195, not 34.19499999...
    exact = Decimal(ours) if isinstance(ours, int) else Decimal(repr(float(ours)))
    units, wanted = exact.scaleb(-exponent), int(target.scaleb(-exponent))
    off = min(abs(int(units.to_integral_value(way)) - wanted) for way in (ROUND_HALF_UP, ROUND_DOWN))
    return ("reproduced", "close")[off] if off < 2 else "differs"


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation (n - 1); 0 for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Estimate:
    """A mean with the spread that its interval uses.

    `error` is the standard error of the mean, `sd` that of a single run, `df` the degrees of freedom of both.
    """

    mean: float
    sd: float
    error: float
    n: int
    df: float

    def interval(self, level: float = CONFIDENCE) -> Interval:
        """Two-sided t-interval of the mean."""
        return self._around(self.error, level)

    def prediction(self, level: float = CONFIDENCE) -> Interval:
        """Interval for one further run: sd sqrt(1 + 1/n) when the sample is a single one."""
        return self._around(math.hypot(self.sd, self.error), level)

    def _around(self, scale: float, level: float) -> Interval:
        half = float(stdtrit(self.df, (1 + level) / 2)) * scale if scale > 0 else 0.0
        return self.mean - half, self.mean + half


def estimate(values: Sequence[float], pool: Sequence[Sequence[float]] = ()) -> Estimate:
    """Mean of `values`; sd pooled over `values` and the groups in `pool`, with df = sum of (n_i - 1).

    Groups without any spread are left out of the pool: a row that every seed shares (one baseline for all) says nothing
    about run-to-run variation and would shrink the sd. So are those of another spread than `values`, because a pooled
    sd is nobody's: rows that collapse now and then would hide what a steady one shows, and the other way round. That
    test sees little at three runs, so a pool that would shrink the sd of `values` is not used at all.
    """
    groups = [values, *(group for group in pool if deviation(group) > 0 and equal_spread(values, group))]
    df = sum(len(group) - 1 for group in groups)
    variance = sum((len(group) - 1) * deviation(group) ** 2 for group in groups) / df if df else 0.0
    if (own := deviation(values) ** 2) > variance:
        variance, df = own, len(values) - 1
    sd = math.sqrt(variance)
    return Estimate(float(np.mean(values)), sd, sd / math.sqrt(len(values)), len(values), max(df, 1))


def equal_spread(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether the two-sided F test of equal variances keeps its hypothesis at 10 %; True where `first` has none."""
    ours, theirs = deviation(first) ** 2, deviation(second) ** 2
    if ours == 0:
        return True
    below = float(fdtr(len(second) - 1, len(first) - 1, theirs / ours))
    return min(below, 1 - below) >= (1 - CONFIDENCE) / 2


def welch(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Difference of two means from independent samples (Welch); n is the smaller sample's size."""
    parts = [(deviation(arm) ** 2, len(arm)) for arm in (first, second)]
    squares = [variance / n for variance, n in parts]
    total = sum(squares)
    bottom = sum(square**2 / (n - 1) for square, (_, n) in zip(squares, parts, strict=True) if n > 1)
    n = min(len(first), len(second))
    df = total**2 / bottom if bottom > 0 else max(n - 1, 1)
    sd = math.sqrt(sum(variance for variance, _ in parts))
    return Estimate(float(np.mean(first) - np.mean(second)), sd, math.sqrt(total), n, df)


def change_over_range(x: Sequence[float], y: Sequence[float]) -> float:
    """Least-squares slope of y over x times (max x - min x): the change over the range, in y's units.

    Raises:
        ValueError: lengths differ, fewer than two points, a value that is not finite, or constant x.
    """
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} points and y has {len(y)}")
    if len(x) < 2:
        raise ValueError("a slope needs two points")
    first, second = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("x or y is not finite")
    spread = first - first.mean()
    if not spread.any() or np.ptp(first) == 0:
        raise ValueError("x is constant")
    return float(spread @ (second - second.mean()) / (spread @ spread) * np.ptp(first))


def consecutive(values: Sequence[float]) -> list[float]:
    """Differences of neighbours, best first: the whole order holds if all are > 0, and is reversed if all are < 0."""
    return [high - low for high, low in itertools.pairwise(values)]


def bootstrap_steps(steps: np.ndarray, level: float = 0.95) -> tuple[Interval, Interval]:
    """Percentile intervals of the smallest and of the largest mean step, images resampled.

    All rows see the same resampled images, so comparisons stay paired by image. Fixed random state: same input, same
    interval.

    Args:
        steps: (comparisons, images), the better one's score minus the other's, image by image.
    """
    images = steps.shape[1]
    random = np.random.default_rng(0)
    means = []
    for _ in range(RESAMPLES // CHUNK):
        drawn = random.integers(0, images, size=(CHUNK, images))
        weights = np.stack([np.bincount(row, minlength=images) for row in drawn])
        means.append(weights.astype(float) @ steps.T / images)
    resampled = np.concatenate(means)
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = (np.quantile(extreme, tails) for extreme in (resampled.min(axis=1), resampled.max(axis=1)))
    return (float(low[0]), float(low[1])), (float(high[0]), float(high[1]))
