"""The statistical rules: levels, deltas and ratios by interval, orders and trends by agreement of all seeds.

Each rule takes the runs that may judge a claim and returns its part of the verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from shrinkbook.evidence import statistics
from shrinkbook.evidence.paper import Cell, Claim, Paper
from shrinkbook.evidence.samples import (
    EvidenceError,
    Run,
    Sample,
    alike,
    budget,
    cell_value,
    collapsed_like,
    listed,
    lost_text,
    measured,
    per_image,
    place,
    sample,
    schedule,
)
from shrinkbook.evidence.store import dig

Verdict = dict[str, Any]

MIN_LEVEL, MIN_ORDER = 3, 5  # runs below which a level, an order stays inconclusive
FIXED_MARGIN = 0.5  # points of accuracy that a gap on one network must reach: about what two trainings differ by
EPSILON = 1e-9  # percent points below which a difference is rounding of binary fractions


def not_attempted(claim: Claim, why: str) -> Verdict:
    """The verdict on a claim that no run may judge, with what it would cost."""
    return {"verdict": "not attempted", "reason": f"{why}; cost: {claim.cost}" if claim.cost else why, "runs": []}


def level(claim: Claim, paper: Paper, chosen: list[Run]) -> Verdict:
    """90 % interval of (our mean - printed) against the margin."""
    printed, margin = float(paper.printed(claim)), claim.margin or 0.0
    cells = paper.cells(claim)
    if claim.gap is not None:
        path = claim.gap
        got, how = sample(chosen, lambda run: measured(run, path)), ""
        ours = statistics.estimate(got.values) if got.values else None
    elif claim.kind == "delta":
        got, how, ours = _difference(chosen, *cells)
    else:
        got, how = sample(chosen, _holding(cells[0])), ""
        ours = statistics.estimate(got.values, _pool(cells[0], chosen, got.runs)) if got.values else None
    if ours is None:
        return _absent(claim, got, chosen)
    low, high = (bound - printed for bound in ours.interval())
    word, direction, n = "inconclusive", None, ours.n + len(got.collapsed)
    if got.collapsed:
        why = f"n = {n}, but a mean without the collapsed runs would be flattered"
    elif ours.n < MIN_LEVEL:
        why = f"n = {n} is fewer than {MIN_LEVEL} runs"
    else:
        why = f"n = {n}, 90 % interval of ours - printed [{low:.3g}, {high:.3g}] against a margin of {margin:g}"
        if -margin - EPSILON <= low and high <= margin + EPSILON:
            word = "reproduced"
        elif low > margin + EPSILON or high < -margin - EPSILON:
            word = "differs"
            direction = "better" if (low > 0) == (claim.better == "higher") else "worse"
    fixed = any(run.get("fixed_network") for run in got.runs)
    enough = ours.n >= MIN_LEVEL
    return {
        "verdict": word,
        "direction": direction,
        "ours": _short(ours.mean),
        "n": n,
        "sd": _short(ours.sd) if enough else None,
        "interval": [_short(low), _short(high)] if enough else None,
        "prediction": [_short(bound) for bound in ours.prediction()] if enough else None,
        "scope": "this network only" if fixed else None,
        "reason": "; ".join([f"{why}{how} ({budget(got)})", *got.notes]),
        "runs": [run["run_id"] for run in got.runs],
    }


def _pool(cell: Cell, chosen: list[Run], own: list[Run]) -> list[list[float]]:
    """The other rows of the cell's column, seed by seed, from runs of the same data set and network."""
    runs = [run for run in chosen if run["config"].get("net") and alike(run, own)]
    rows = {row for run in runs for row in run["cells"].get(cell.table, {}) if row != cell.row}
    others = [Cell(cell.table, row, cell.column, "", "", "", "") for row in sorted(rows)]
    return [sample(runs, _holding(other)).values for other in others]


def _holding(cell: Cell) -> Callable[[Run], float | None]:
    return lambda run: cell_value(run, cell)


def _difference(chosen: list[Run], a: Cell, b: Cell) -> tuple[Sample, str, statistics.Estimate | None]:
    """Ours for a - b: paired within a run, else between related runs of one seed, else two independent samples."""

    def within(run: Run) -> float | None:
        first, second = cell_value(run, a), cell_value(run, b)
        return None if first is None or second is None else first - second

    one = sample(chosen, within)
    if one.values:
        return one, ", paired within a run", statistics.estimate(one.values)
    arms = [_by_seed(chosen, cell) for cell in (a, b)]
    if not all(arms):
        return one, "", None
    first, second = arms
    related = [seed for seed in first if seed in second and _related(first[seed][0], second[seed][0])]
    seeds = related or sorted({*first, *second})
    used = [arm[seed][0] for seed in seeds for arm in arms if seed in arm]
    lost = [run for run in collapsed_like(used, chosen) if _neither(run, a, b)]
    notes = [lost_text(lost)] if lost else []
    if related:
        values = [first[seed][1] - second[seed][1] for seed in related]
        return Sample(values, used, lost, notes), ", paired by seed between related runs", statistics.estimate(values)
    sizes = [[value for _, value in arm.values()] for arm in arms]
    return Sample(sizes[0], used, lost, notes), ", two independent samples (Welch)", statistics.welch(*sizes)


def _neither(run: Run, a: Cell, b: Cell) -> bool:
    return cell_value(run, a) is None and cell_value(run, b) is None


def _by_seed(chosen: list[Run], cell: Cell) -> dict[int, tuple[Run, float]]:
    """The first run of each seed that holds the cell, and its value."""
    found: dict[int, tuple[Run, float]] = {}
    for run in chosen:
        if (value := cell_value(run, cell)) is not None:
            found.setdefault(run["seed"], (run, value))
    return found


def _related(first: Run, second: Run) -> bool:
    """Whether two runs share a parent or one is the other's."""
    family = [{run["run_id"], *run["parents"]} for run in (first, second)]
    return bool(family[0] & family[1])


def mechanism(claim: Claim, paper: Paper, chosen: list[Run]) -> Verdict:
    """All seeds agree and the median gap reaches the margin; on one network a bootstrap over its images."""
    fixed = [run for run in chosen if run.get("fixed_network")]
    result = _images(claim, fixed) if fixed else _seedwise(claim, chosen)
    if claim.premise is not None and result["verdict"] != "not attempted":
        met, said = _premise(claim.premise, chosen)
        result |= {"verdict": result["verdict"] if met else "inconclusive", "reason": f"{result['reason']}; {said}"}
    scope = ["this network only"] if fixed else []
    data = chosen[0]["config"].get("data")
    if data == "digits":
        scope.append("embedded digits")
    elif schedule(chosen[0]) not in ("paper", "none"):
        scope.append(f"{schedule(chosen[0])} schedule" if data else schedule(chosen[0]))
    return {"scope": ", ".join(scope) or None} | result


def _seedwise(claim: Claim, chosen: list[Run]) -> Verdict:
    """One gap a seed: the smallest step of the claimed order, or of the list of gaps that a claim about "every layer"
    reads; reversed only if the largest is negative too. A seed without a gap, where others have one, does not agree."""
    slack, margin = claim.tolerance or 0.0, claim.margin or 0.0
    measured_steps: dict[str, list[float]] = {}

    def smallest(run: Run) -> float | None:
        steps = _steps(claim, run)
        return None if steps is None else min(measured_steps.setdefault(run["run_id"], steps))

    lows = sample(chosen, smallest, silent_counts=True)
    if not lows.values:
        return _absent(claim, lows, chosen)
    every = [measured_steps[run["run_id"]] for run in lows.runs if run["run_id"] in measured_steps]
    middle, opposite = float(np.median(lows.values)), float(np.median([max(steps) for steps in every]))
    hold = sum(gap + slack > EPSILON for gap in lows.values)
    reverse = sum(max(steps) + slack < -EPSILON for steps in every)
    beside = f"against a margin of {margin:g}" + (f" and a tolerance of {slack:g}" if slack else "")
    word = "inconclusive"
    if lows.n < MIN_ORDER:
        why = f"n = {lows.n} is fewer than {MIN_ORDER} seeds"
    elif hold == lows.n:
        word = "reproduced" if middle + slack >= margin - EPSILON else word
        why = f"all {lows.n} seeds agree, median {_shown(claim, middle)} {beside}"
    elif reverse == lows.n:
        word = "contradicted" if -opposite - slack >= margin - EPSILON else word
        why = f"all {lows.n} seeds show the opposite, median {_shown(claim, opposite)} {beside}"
    else:
        why = f"{hold} of {lows.n} seeds agree, {reverse} show the opposite{_always_wrong(every, slack)}"
    shown = [gap if claim.at_most is None else claim.at_most - gap for gap in lows.values]
    return {
        "verdict": word,
        "ours": _short(float(np.median(shown))),
        "n": lows.n,
        "sd": _short(statistics.deviation(shown)) if len(shown) > 1 else None,
        "interval": [_short(min(shown)), _short(max(shown))],
        "reason": "; ".join([f"{why} ({budget(lows)})", *lows.notes]),
        "runs": [run["run_id"] for run in lows.runs],
    }


def _steps(claim: Claim, run: Run) -> list[float] | None:
    """What one run says about an order or a trend: every number has to be positive; None if it does not measure it.

    Raises:
        ValueError: a list that is empty or has an entry that is no number.
    """
    if claim.trend is not None:
        x, y = (listed(run, claim.trend[axis]) for axis in ("x", "y"))
        return None if x is None or y is None else [claim.trend["direction"] * statistics.change_over_range(x, y)]
    if claim.gap is not None and isinstance(dig(run["measurements"], claim.gap), list):
        steps = listed(run, claim.gap) or []
        if not steps or not np.isfinite(steps).all():
            raise ValueError(f"{claim.gap} has no step or one that is no number")
        return steps
    values = [measured(run, path) for path in claim.order or (claim.gap or "",)]
    present = [value for value in values if value is not None]
    if len(present) < len(values):
        return None
    return statistics.consecutive(present) if claim.order else present


def _shown(claim: Claim, gap: float) -> str:
    """A gap in words; of what has a bound, the quantity."""
    return f"gap {gap:.3g}" if claim.at_most is None else f"{claim.at_most - gap:.3g}, at most {claim.at_most:g},"


def _always_wrong(every: list[list[float]], slack: float) -> str:
    """Which of several steps fail in every seed: that decides nothing, but a reader should know."""
    if len({len(steps) for steps in every}) > 1 or len(every[0]) < 2:
        return ""
    failing = [i + 1 for i, step in enumerate(zip(*every, strict=True)) if all(one + slack < -EPSILON for one in step)]
    named = ", ".join(map(str, failing))
    return f"; of {len(every[0])} steps, number {named} is below zero in every seed" if failing else ""


def _premise(path: str, chosen: list[Run]) -> tuple[bool, str]:
    """Whether the task can tell at all, by a rule fixed beforehand: the median over the runs is positive."""
    values = sample(chosen, lambda run: measured(run, path)).values
    middle = float(np.median(values)) if values else float("nan")
    met = middle > EPSILON
    return met, f"the premise {path} is {'met' if met else 'not met'}, median {middle:.3g}"


def _images(claim: Claim, fixed: list[Run]) -> Verdict:
    """One public network: what another draw of test images would show, by bootstrap over images.

    The whole 95 % interval has to reach the margin, and at least `FIXED_MARGIN`: other random filters, another
    clustering or another order of images in fine-tuning would move the gap too, and one run does not show by how much.
    """
    measured_ones = [run for run in fixed if _image_steps(claim, run)]
    if not measured_ones or claim.at_most is not None:
        why = "a bound is not judged over its images" if measured_ones else "no per-image record"
        why = f"one network, {why} ({place(fixed[0])})"
        return {"verdict": "inconclusive", "runs": [fixed[0]["run_id"]], "n": 1, "reason": why}
    judged = [_one_network(claim, run) for run in measured_ones]
    if len({one["verdict"] for one in judged}) > 1:
        return judged[0] | {"verdict": "inconclusive", "reason": "; ".join(one["reason"] for one in judged)}
    return judged[0]


def _one_network(claim: Claim, run: Run) -> Verdict:
    result: Verdict = {"verdict": "inconclusive", "runs": [run["run_id"]]}
    pairs = _image_steps(claim, run)
    arrays = [per_image(run, path) for pair in pairs for path in pair]
    if len({len(array) for array in arrays}) > 1:
        named = ", ".join(path for pair in pairs for path in pair)
        raise EvidenceError(f"run {run['run_id']}: per_image {named} differ in their number of images")
    steps = np.stack(arrays[0::2]) - np.stack(arrays[1::2])
    gap, n = float(steps.mean(axis=1).min()), steps.shape[1]
    (low, high), (_, reversed_high) = statistics.bootstrap_steps(steps)
    slack, margin = claim.tolerance or 0.0, max(claim.margin or 0.0, FIXED_MARGIN)
    if low + slack >= margin - EPSILON:
        result["verdict"] = "reproduced"
    elif -reversed_high - slack >= margin - EPSILON:
        result["verdict"] = "contradicted"
    why = f"gap {gap:.3g}, 95 % bootstrap interval [{low:.3g}, {high:.3g}] over {n} images, margin {margin:g}"
    why += f", tolerance {slack:g}" if slack else ""
    return result | {
        "ours": _short(gap),
        "n": n,
        "interval": [_short(low), _short(high)],
        "reason": f"{why} (one network, {place(run)})",
    }


def _image_steps(claim: Claim, run: Run) -> list[tuple[str, str]]:
    """Pairs (above, below) of per-image arrays that a claim compares; empty if the run does not hold them all."""
    key = claim.trend["y"] if claim.trend is not None else claim.gap
    pairs = list(pairwise(claim.order)) or [(a, b) for a, b in run.get("per_image_pairs", {}).get(key, ())]
    return pairs if all(dig(run.get("per_image", {}), path) for pair in pairs for path in pair) else []


def _absent(claim: Claim, got: Sample, chosen: list[Run]) -> Verdict:
    """Runs exist but none gives a value: all collapsed, or none measures it."""
    counts = {"runs": [run["run_id"] for run in got.runs], "n": got.n or None}
    if got.collapsed:
        return counts | {"verdict": "inconclusive", "reason": "; ".join([f"no value ({budget(got)})", *got.notes])}
    why = "; ".join([f"no run of {chosen[0]['experiment']} measures it", *got.notes])
    return not_attempted(claim, why)


def _short(value: float) -> float:
    """Eight digits: more would differ between machines and mean nothing."""
    return float(f"{value:.8g}")
