"""When a measured time is worth little: one rule for all that is timed here, and the clock behind the times."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shrinkbook.measure.protocol import Block

NOISY = 2.0  # slow tenth of the runs over the fast tenth, from which on a median is worth little
APART = 50.0  # percent by which one block's median may lie above another's


def unsteady(low: float, high: float) -> bool:
    """Whether a median is worth little: the slow tenth of the runs takes more than twice the time of the fast one.

    Args:
        low, high: 10 % and 90 % quantile of times, or of ratios of paired times; any unit.
    """
    return high > NOISY * low


def doubt(base: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Why no ratio of two rows of a measurement is claimed; empty if one is.

    Args:
        base, row: as :func:`~shrinkbook.measure.blocks.measure` returns them; ``ms`` and ``spread_percent`` are read.
    """
    pair = {one["model"]: one for one in (base, row)}
    wild = [name for name, one in pair.items() if unsteady(one["ms"]["p10"], one["ms"]["p90"])]
    apart = [name for name, one in pair.items() if one["spread_percent"] > APART]
    found = [f"unsteady times of {' and '.join(wild)}"] if wild else []
    found += [f"blocks of {' and '.join(apart)} over {APART:g} % apart"] if apart else []
    return "; ".join(found)


@dataclass
class Clock:
    """The best that a fixed piece of arithmetic took within one measurement, in ns."""

    best: float = math.inf

    def behind(self, block: Block) -> float:
        """Share by which the slower calibration of a block lies above the best one seen, its own included; 0 without
        calibrations."""
        speed = [float(np.median(part)) for part in (block.before, block.after) if part]
        self.best = min([self.best, *speed])
        return max(speed) / self.best - 1 if speed else 0.0
