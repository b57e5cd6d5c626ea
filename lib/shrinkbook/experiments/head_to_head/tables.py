"""Tables and figures over seeds: what each arm costs and reaches, with 90 % t-intervals; nothing is judged."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from shrinkbook.evidence import figures
from shrinkbook.evidence.statistics import Estimate, estimate
from shrinkbook.experiments.head_to_head.arms import COMBINED, METHODS, Arm, arms, named
from shrinkbook.experiments.head_to_head.timing import DENSE
from shrinkbook.measure.steady import unsteady

Run = Mapping[str, Any]
Row = Mapping[str, Any]
_BLUE, _ORANGE, _GREEN, _PINK, _SKY, _AMBER, _BLACK, _GREY = figures.COLOURS
STYLES = {  # colour and marker: controls without colour, the two ways to ranks in one
    "original": (_BLACK, "*"), "tuned": (_BLACK, "s"), "thin": (_GREY, "^"), "pruned": (_BLUE, "o"),
    "clustered": (_GREEN, "v"), "tucker": (_ORANGE, "D"), "vbmf": (_ORANGE, "x"), "lccl": (_PINK, "<"),
    "searched": (_SKY, "h"), "dafl": ("#882255", "P"), "congruent": (_AMBER, ">"),
}  # fmt: skip
COSTS = {"mac": "MAC", "bytes": "bytes"}


def arms_table(
    runs: Sequence[Run], timings: Sequence[Run] = (), combined: bool = False, phone: Run | None = None
) -> pd.DataFrame:
    """One line an arm: knob, accuracy, what is left of the original's cost, and what the training took.

    Args:
        runs: of one comparison, a seed each.
        timings: of its forms, for the column of latency; unsteady ones are counted and left out of the mean.
        combined: the combinations instead of the methods.
        phone: a phone's run of ``phone.head_to_head``, for a column of its times.
    """
    every = _rows(runs)
    rows = {name: found for name, found in every.items() if (found[0]["method"] in COMBINED) == combined}
    original = every["original"][0]
    columns = ["method", "knob", "accuracy, %", "n", "MAC, %", "weights, %", "bytes, %", "time, %", "images", "seconds"]
    lines = {}
    for name, found in rows.items():
        knobs = {row["knob"] for row in found}
        images = f"{np.mean([row['images'] for row in found]):,.0f}" + " made" * found[0]["generated"]
        lost = sum(row["status"] == "collapsed" for row in found)
        lines[name] = [
            METHODS[found[0]["method"]].label, knobs.pop() if len(knobs) == 1 else "differs from seed to seed",
            _interval(accuracy(runs, name)) + (f", {lost} at chance" if lost else ""), len(found),
            *(_share(found, original, column) for column in ("mac", "weights", "bytes")),
            _time(timings, name), images, f"{np.mean([row['seconds'] for row in found]):.1f}",
        ]  # fmt: skip
    table = pd.DataFrame.from_dict(lines, orient="index", columns=columns).rename_axis("arm")
    if not timings:
        del table["time, %"]
    if phone:
        table.insert(list(table.columns).index("images"), "phone's time, %", on_phone(runs, phone))
    return table


def on_phone(runs: Sequence[Run], phone: Run) -> pd.Series:
    """Times on a phone as percentages of the original's, by arm; arms of one shape share theirs."""
    rows = {name: found[0] for name, found in _rows(runs).items()}
    times = {
        json.dumps(rows[row["model"]]["steps"]): f"{100 / row['ratio']['median']:.0f}"
        for row in phone["measurements"]["rows"]
        if row["precision"] == "fp32" and row["ratio"]
    }
    return pd.Series({name: times.get(json.dumps(row["steps"]), "") for name, row in rows.items()})


def order_table(runs: Sequence[Run]) -> pd.DataFrame:
    """At each budget the methods by mean accuracy, and the difference to filter pruning, seed by seed.

    Two arms of a seed share network, images and their order; the interval is of the differences.
    """
    lines = []
    for removed in runs[0]["config"]["removed"]:
        names = [arm.name for arm in _arms(runs) if arm.removed == removed and arm.method not in COMBINED]
        (pruned,) = [name for name in names if name.startswith("pruned ")]
        for name in sorted(names, key=lambda name: -accuracy(runs, name).mean):
            gap = _gap(runs, name, pruned)
            budget = f"{round(100 * (1 - removed))} % of the maps"
            word = "" if name == pruned else _word(gap)
            method = METHODS[_rows(runs)[name][0]["method"]].label
            against = "" if name == pruned else _interval(gap, "+")
            lines.append([budget, method, _interval(accuracy(runs, name)), against, word])
    columns = ["budget", "method", "accuracy, %", "against filter pruning, points", "interval"]
    return pd.DataFrame(lines, columns=columns).set_index(["budget", "method"])


def knobs_table() -> pd.DataFrame:
    """Each method, its paper, and what its user can set."""
    rows = [[one.label, one.paper or "control", one.knob] for name, one in METHODS.items() if name not in COMBINED]
    return pd.DataFrame(rows, columns=["method", "paper", "knob"]).set_index("method")


def frontier_picture(runs: Sequence[Run], timings: Sequence[Run] = (), lowest: float | None = None) -> figures.Picture:
    """Accuracy against multiply-accumulates, bytes and time, each as a share of the original's.

    Args:
        lowest: accuracy below which nothing is drawn, to look at the upper part.
    """
    every, panels = _rows(runs), dict[str, dict[str, figures.Curve]]()
    original = every["original"][0]
    for column, title in (
        ("mac", "multiply-accumulates"),
        ("bytes", "bytes of the file"),
        ("time", "time of one image"),
    ):
        if column == "time" and not timings:
            continue
        panel = panels.setdefault(f"{title} (%)", {})
        for method in (name for name in METHODS if name not in COMBINED):
            names = [name for name, rows in every.items() if rows[0]["method"] == method]
            points = [
                (x, found.mean, *found.interval())
                for name in names
                if (found := accuracy(runs, name)).mean >= (lowest or 0)
                and (x := _left(timings, name) if column == "time" else _ratio(every[name], original, column))
                is not None
            ]
            if points:
                panel[METHODS[method].label] = tuple(zip(*points, strict=True))
    styles = {METHODS[method].label: style for method, style in STYLES.items()}
    return figures.frontiers(panels, "test accuracy (%)", styles)


def upper_part(runs: Sequence[Run]) -> float:
    """The lowest mean of the arms that had a budget and began with trained weights: where a closer look begins."""
    chosen = [arm.name for arm in _arms(runs) if arm.removed and not arm.random and arm.method not in COMBINED]
    return min(accuracy(runs, name).mean for name in chosen)


def seen(runs: Sequence[Run]) -> str:
    """What the runs say in sentences, as a Markdown list: each method against its control, budget by budget."""
    every, lines = _arms(runs), [f"* Training as long alone: {_against(runs, 'tuned', 'original')}."]
    for removed in runs[0]["config"]["removed"]:
        own = {arm.method: arm for arm in every if arm.removed == removed and arm.method not in COMBINED}
        for random, control in ((False, "pruned"), (True, "thin")):
            others = [arm for method, arm in own.items() if arm.random == random and method != control]
            others.sort(key=lambda arm: -accuracy(runs, arm.name).mean)
            text = "; ".join(_against(runs, arm.name, own[control].name) for arm in others)
            lines.append(f"* At {round(100 * (1 - removed))} % of the maps, against {METHODS[control].label}: {text}.")
    combined = [arm for arm in every if arm.method in COMBINED]
    text = "; ".join(_against(runs, arm.name, arm.alone[0]) for arm in combined)
    lines.append(f"* Each combination against its first step alone: {text}.")
    other = [arm for arm in combined if _same_budget(arm) != arm.alone[0]]
    text = "; ".join(_against(runs, arm.name, _same_budget(arm)) for arm in other)
    return "\n".join(
        [*lines, f"* The same against its first method alone at the budget of both, where that is another arm: {text}."]
    )


def _against(runs: Sequence[Run], name: str, other: str) -> str:
    """A difference of two arms, seed by seed, in words."""
    gap = _gap(runs, name, other)
    (arm,) = [arm for arm in _arms(runs) if arm.name == name]
    label, percent = METHODS[arm.method].label, f" ({round(100 * (1 - arm.removed))} %)" if arm.removed else ""
    return f"{label}{percent if arm.method in COMBINED else ''} {_interval(gap, '+')} points, {_word(gap)}"


def _same_budget(arm: Arm) -> str:
    """The arm of a combination's first method that meets the whole budget by itself."""
    assert arm.removed is not None
    return named(arm.method.split("+")[0], arm.removed)


def combinations_picture(runs: Sequence[Run]) -> figures.Picture:
    """Each combination beside the two methods it is made of."""
    chosen = [arm for arm in _arms(runs) if arm.method in COMBINED]
    every = _rows(runs)
    series: dict[str, tuple[list[float], list[float]]] = {
        label: ([], []) for label in ("the first alone", "the second alone", "both")
    }
    groups = []
    for arm in chosen:
        original, own = every["original"][0], every[arm.name]
        cost = [f"{_share(own, original, column, 0)} % of the {unit}" for column, unit in COSTS.items()]
        groups.append("\n".join([*METHODS[arm.method].label.split(", "), *cost]))
        for name, (means, halves) in zip((*arm.alone, arm.name), series.values(), strict=True):
            found = accuracy(runs, name)
            means.append(found.mean)
            halves.append(found.interval()[1] - found.mean)
    return figures.bars(groups, dict(series), "test accuracy (%)", points=True)


def combinations_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Accuracy, multiply-accumulates and bytes of each combination, of its steps alone, and of the first method alone
    where that is another arm at the budget of both."""
    every = _rows(runs)
    original, lines = every["original"][0], {}
    for arm in _arms(runs):
        if arm.method in COMBINED:
            for name in dict.fromkeys((arm.name, *arm.alone, _same_budget(arm))):
                found = every[name]
                against = "" if name == arm.name else _interval(_gap(runs, arm.name, name), "+")
                cost = [_share(found, original, column) for column in ("mac", "weights", "bytes")]
                lines[arm.name, name] = [_interval(accuracy(runs, name)), *cost, against]
    frame = pd.DataFrame.from_dict(lines, orient="index")
    frame.index = pd.MultiIndex.from_tuples(lines, names=["combination", "arm"])
    frame.columns = ["accuracy, %", "MAC, %", "weights, %", "bytes, %", "the combination against it, points"]
    return frame


def runs_table(runs: Sequence[Run]) -> pd.DataFrame:
    """The run files that a table or figure is made of."""
    rows = [
        [run["experiment"], run["seed"], run["config"]["data"] or "none", run["config"]["schedule"], run["run_id"]]
        for run in runs
    ]
    return pd.DataFrame(rows, columns=["experiment", "seed", "data", "budget", "run file"]).set_index("experiment")


def accuracy(runs: Sequence[Run], name: str) -> Estimate:
    """Test accuracy of an arm in percent, over the seeds."""
    return estimate([run["measurements"]["arms"][name]["accuracy"] for run in runs])


def _gap(runs: Sequence[Run], name: str, other: str) -> Estimate:
    """Difference in accuracy of two arms in points, taken seed by seed."""
    rows = [run["measurements"]["arms"] for run in runs]
    return estimate([row[name]["accuracy"] - row[other]["accuracy"] for row in rows])


def _arms(runs: Sequence[Run]) -> list[Arm]:
    config = runs[0]["config"]
    return arms(config["removed"], config["centroids"])


def _rows(runs: Sequence[Run]) -> dict[str, list[Row]]:
    """Every arm's rows, one a seed."""
    return {arm.name: [run["measurements"]["arms"][arm.name] for run in runs] for arm in _arms(runs)}


def _ratio(found: Sequence[Row], original: Row, column: str) -> float | None:
    values = [row[column] for row in found]
    return None if None in values else 100 * float(np.mean(values)) / original[column]


def _share(found: Sequence[Row], original: Row, column: str, digits: int = 1) -> str:
    share = _ratio(found, original, column)
    return "" if share is None else f"{share:.{digits}f}"


def _steady(timings: Sequence[Run], name: str) -> tuple[list[float], int]:
    """Shares of the original's time in the runs that timed an arm steadily, and how many runs did not."""
    found = [run["measurements"]["latency"][name] for run in timings if name in run["measurements"]["latency"]]
    kept = [one["ratio"] for one in found if not unsteady(one["low"], one["high"])]
    return kept, len(found) - len(kept)


def _left(timings: Sequence[Run], name: str) -> float | None:
    """Time as a percentage of the original's, the mean over the runs that timed it steadily; None without any."""
    kept, _ = _steady(timings, name)
    return 100 * float(np.mean(kept)) if kept else None


def _time(timings: Sequence[Run], name: str) -> str:
    """The same for a table, with the number of runs left out, and beside it that of a dense twin."""
    dense = _time_of(timings, f"{name}{DENSE}")
    return f"{_time_of(timings, name)} (dense {dense})" if dense else _time_of(timings, name)


def _time_of(timings: Sequence[Run], name: str) -> str:
    share, lost = _left(timings, name), _steady(timings, name)[1]
    return ", ".join(filter(None, ["" if share is None else f"{share:.0f}", f"{lost} unsteady" if lost else ""]))


def _interval(found: Estimate, sign: str = "") -> str:
    """Mean and 90 % interval; the mean alone where one value has no interval."""
    if found.n < 2:
        return f"{found.mean:{sign}.2f}"
    low, high = found.interval()
    return f"{found.mean:{sign}.2f} ({low:{sign}.2f} to {high:{sign}.2f})"


def _word(gap: Estimate) -> str:
    if gap.n < 2:
        return "one seed"
    low, high = gap.interval()
    return "above 0" if low > 0 else "below 0" if high < 0 else "holds 0"
