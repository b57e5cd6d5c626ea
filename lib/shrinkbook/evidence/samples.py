"""Which runs count for a claim, and the one value that each seed gives.

A run counts if it finished or collapsed (an interrupted one never does) and has its experiment's newest version. A seed
counts once. A collapsed run without the value stays in n and counts as not agreeing.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shrinkbook.evidence.paper import Cell
from shrinkbook.evidence.store import dig

Run = Mapping[str, Any]
CLASSES = {"cifar100": 100, "imagenet": 1000}  # of every other data set 10


class EvidenceError(ValueError):
    """A run whose measurements a claim cannot be judged by; one line naming run and path."""


def usable(runs: Iterable[Run], experiment: str, profile: str) -> list[Run]:
    """Runs of an experiment that count: finished or collapsed, of its newest version; by seed and run id."""
    counting = [
        run
        for run in runs
        if run["experiment"] == experiment and run["profile"] == profile and run["status"] != "interrupted"
    ]
    newest = max((run["version"] for run in counting), default=0)
    return sorted((run for run in counting if run["version"] == newest), key=lambda run: (run["seed"], run["run_id"]))


def cell_value(run: Run, cell: Cell) -> float | None:
    """Our value for a printed cell, None if the run has none."""
    return number(run, run["cells"].get(cell.table, {}).get(cell.row, {}).get(cell.column), cell.address)


def schedule(run: Run) -> str:
    """The named training budget of a run, "none" where nothing was trained."""
    return str(run["config"].get("schedule", "none"))


@dataclass
class Sample:
    """One value a seed, with the runs that count and what became of the others."""

    values: list[float] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    collapsed: list[Run] = field(default_factory=list)  # runs without the value that count as not agreeing
    notes: list[str] = field(default_factory=list)

    @property
    def n(self) -> int:
        """Seeds that count, the collapsed ones included."""
        return len(self.values) + len(self.collapsed)


def sample(runs: Sequence[Run], value: Callable[[Run], float | None], silent_counts: bool = False) -> Sample:
    """The first value of each seed; a seed whose only runs without the value collapsed stays in n.

    Args:
        runs: candidates, as `usable` returns them.
        value: our value in a run, None if it has none; a ValueError says why it has none.
        silent_counts: keep finished runs without the value in n too, where others of their data and network have it.
    """
    taken: dict[int, tuple[float, Run]] = {}
    why: dict[int, str] = {}
    for run in runs:
        try:
            ours = value(run)
        except EvidenceError:
            raise
        except ValueError as error:
            ours = None
            why[run["seed"]] = str(error)
        if ours is not None:
            taken.setdefault(run["seed"], (ours, run))
    kept = [run for _, run in taken.values()]
    lost = {run["seed"]: run for run in collapsed_like(kept, runs) if run["seed"] not in taken}
    notes = [lost_text(lost.values())] if lost else []
    without = [run for run in runs if run["seed"] not in {*taken, *lost} and (not kept or alike(run, kept))]
    for run in {run["seed"]: run for run in without}.values():
        fate = "counted as not agreeing" if silent_counts and kept else "left out"
        notes.append(f"seed {run['seed']} {fate}: {why.get(run['seed'], 'no value')}")
        if silent_counts and kept:
            lost[run["seed"]] = run
    counting = sorted([*kept, *lost.values()], key=lambda run: run["seed"])
    return Sample([ours for ours, _ in taken.values()], counting, list(lost.values()), notes)


def alike(run: Run, others: Iterable[Run]) -> bool:
    """Whether a run is of the data set and network of one of the others."""
    return any(all(run["config"].get(key) == other["config"].get(key) for key in ("data", "net")) for other in others)


def collapsed_like(kept: Sequence[Run], runs: Iterable[Run]) -> list[Run]:
    """Collapsed runs of the data set and network of those kept; all collapsed ones if none is kept."""
    return [run for run in runs if run["status"] == "collapsed" and (not kept or alike(run, kept))]


def lost_text(runs: Iterable[Run]) -> str:
    """The note on runs that collapsed without a value."""
    return f"collapsed without a value: seed {seeds_text(runs)}, counted as not agreeing"


def number(run: Run, value: Any, path: str) -> float | None:
    """A finite number, or None for null and for what is not finite; anything else is an EvidenceError."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise EvidenceError(f"run {run['run_id']} of {run['experiment']}: {path} is {value!r}, not a number")
    return value


def measured(run: Run, path: str) -> float | None:
    """The number at a path of the run's measurements, None if there is none."""
    return number(run, dig(run["measurements"], path), path)


def listed(run: Run, path: str) -> list[float] | None:
    """A measured list; null entries become NaN."""
    values = dig(run["measurements"], path)
    if values is None:
        return None
    if not isinstance(values, list):
        raise EvidenceError(f"run {run['run_id']} of {run['experiment']}: {path} is {values!r}, not a list")
    numbers = [number(run, value, path) for value in values]
    return [math.nan if number is None else number for number in numbers]


def seeds_text(runs: Iterable[Run]) -> str:
    """0-4 for 0, 1, 2, 3, 4; else a list."""
    seeds = sorted({run["seed"] for run in runs})
    if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))


def place(run: Run) -> str:
    """Budget and data of a run in words."""
    return f"schedule {schedule(run)} on {run['config'].get('data') or 'no data'}"


def budget(got: Sample) -> str:
    """Seeds, budget and data of a sample in words."""
    places = ", ".join(sorted({place(run) for run in got.runs}))
    return f"seed{'s' * (len(got.runs) > 1)} {seeds_text(got.runs)}, {places}"


def at_chance(run: Run, accuracy: float) -> bool:
    """Whether an accuracy in percent is at most one and a half times that of guessing on the run's data."""
    return accuracy <= 150 / CLASSES.get(run["config"].get("data"), 10)


def per_image(run: Run, path: str) -> np.ndarray:
    """Percent correct of each image: counts over configurations, divided by their number."""
    configs = dig(run["measurements"], f"per_image_configs.{path}")
    if not isinstance(configs, int) or configs < 1:
        raise EvidenceError(f"run {run['run_id']}: measurements per_image_configs.{path} must be a count from 1 up")
    try:
        packed = zlib.decompress(base64.b64decode(dig(run["per_image"], path), validate=True))
    except (ValueError, TypeError, zlib.error) as error:
        raise EvidenceError(f"run {run['run_id']}: per_image {path} is no base64 of zlib data ({error})") from error
    return np.frombuffer(packed, np.uint8) * (100.0 / configs)
