"""Arms side by side, every seed, the ablation, curves, and what generated images and filters look like."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from shrinkbook.evidence import claims, figures
from shrinkbook.experiments.chen2019.arms import ABLATION, LOSSES, WITHOUT_ENTROPY

Runs = Sequence[dict[str, Any]]


def arms_table(runs: Runs) -> pd.DataFrame:
    """Student accuracy after the last iteration by arm: mean, lowest, highest; what else was measured, means over runs.

    The best accuracy on the test images is named because the authors report it; nothing is judged by it.
    """
    rows: dict[str, dict[str, float]] = {}
    for name in runs[0]["measurements"]["accuracy"]:
        values = [run["measurements"]["accuracy"][name] for run in runs]
        rows[name] = {"last": np.mean(values), "lowest": min(values), "highest": max(values)}
        for label, key in (("best on test", "best_on_test"), ("entropy of mean prediction", "entropy")):
            rows[name][label] = _mean(runs, key, name)
        rows[name]["collapsed"] = sum(bool(run["measurements"]["collapsed"].get(name)) for run in runs)
        rows[name]["filters, cosine"] = _mean(runs, "filters", name)
        seen = [means for run in runs if (means := run["measurements"]["means"].get(name))]
        rows[name]["class means, own"] = float(np.mean([one["own"] for one in seen])) if seen else np.nan
        rows[name]["class means, own - others"] = float(np.mean([one["gap"] for one in seen])) if seen else np.nan
    return pd.DataFrame(rows).T.astype(float).round(2)


def ablation_table(runs: Runs) -> pd.DataFrame:
    """The eight rows of table 2: losses, printed accuracy and its status, ours with its range, collapses."""
    paper = claims.load("chen2019")
    rows = {}
    for arm, row in ABLATION.items():
        cell = paper.cell(f"table2/{row}/accuracy")
        values = [run["measurements"]["accuracy"][arm] for run in runs]
        on = LOSSES.get(arm, (False, False, False))
        rows[row] = {
            **{name: "x" if used else "" for name, used in zip(("L_oh", "L_ie", "L_a"), on, strict=True)},
            "paper": cell.value,
            "status": cell.status,
            "ours": f"{np.mean(values):.2f}",
            "lowest": f"{min(values):.2f}",
            "highest": f"{max(values):.2f}",
            "collapsed": f"{sum(run['measurements']['collapsed'][arm] for run in runs)} of {len(runs)}",
        }
    return pd.DataFrame(rows).T


def filters_table(without: Runs, with_data: Runs) -> pd.DataFrame:
    """How like the teacher's the student's first filters are, arm by arm: mean, lowest, highest of those not diverged.

    Args:
        without: runs of the arms without data.
        with_data: those of back-propagation and distillation.
    """
    named = [(name, without) for name in ("dafl", "noise", "alternative", "untrained student")]
    named += [(name, with_data) for name in ("back-propagation", "distillation")]
    rows = {}
    for name, runs in named:
        values = [value for run in runs if (value := run["measurements"]["filters"].get(name)) is not None]
        if values:
            rows[name] = {"mean cosine": np.mean(values), "lowest": min(values), "highest": max(values)}
    return pd.DataFrame(rows).T.astype(float).round(3)


def seeds_picture(runs: Runs) -> figures.Picture:
    """Every seed's accuracy in every arm."""
    names = list(runs[0]["measurements"]["accuracy"])
    series = {f"seed {run['seed']}": [run["measurements"]["accuracy"][name] for name in names] for run in runs}
    return figures.bars(names, series, "test accuracy (%)")


def accuracy_picture(runs: Runs) -> figures.Picture:
    """The student's test accuracy while it trains: with a generator, on noise, on other data."""
    names = [name for name in ("dafl", "alternative", "noise") if _ran(runs, name)]
    panel = {name: _line(runs, name, "test_accuracy") for name in names}
    return figures.curves({"students without data": panel}, "iterations", "test accuracy (%)")


def combinations_picture(runs: Runs, key: str = "test_accuracy") -> figures.Picture:
    """Every combination of losses while it trains, with the entropy loss and without.

    Args:
        key: ``test_accuracy`` of the student, or ``mean_entropy``: how evenly the teacher sees the classes in a
            generated batch, 1 for all alike, 0 for one class only.
    """
    panels = {"with the entropy loss": ("dafl", "oh+ie", "ie+a", "ie"), "without the entropy loss": WITHOUT_ENTROPY}
    label = {"test_accuracy": "test accuracy (%)", "mean_entropy": "entropy of the batch's mean prediction"}[key]
    lines = {title: {n: _line(runs, n, key) for n in names if _ran(runs, n)} for title, names in panels.items()}
    return figures.curves(lines, "iterations", label, across=2)


def loss_picture(runs: Runs) -> figures.Picture:
    """The parts of the generator's loss before they are weighed, and the student's."""
    parts = ("one_hot", "entropy", "activation", "distillation")
    panel = {part: _line(runs, "dafl", part) for part in parts}
    return figures.curves({"": panel}, "iterations", "loss (code's form)")


def generated_picture(run: dict[str, Any]) -> figures.Picture:
    """By class as the teacher sees them: generated images, their means, real means; below, images of L_oh alone."""
    pictures = run["measurements"]["pictures"]
    rows = [pictures["dafl"]["by class"], pictures["dafl"]["means"], pictures["real"]]
    names = ["image", "mean", "real"]
    if "oh" in pictures:
        rows.append(pictures["oh"]["images"])
        names.append("L_oh alone")
    blank = np.zeros_like(np.array(pictures["real"][0], dtype=float))
    arrays = [_scaled(blank if image is None else np.array(image, dtype=float)) for row in rows for image in row]
    titles = [f"{name} {c}" if name != "L_oh alone" else name for name in names for c in range(len(rows[0]))]
    return figures.image_grid(arrays, titles, across=len(rows[0]))


def filters_picture(run: dict[str, Any]) -> figures.Picture:
    """Every first-layer filter of the student above the teacher's that is most like it, with the cosine."""
    found = run["measurements"]["first_layer"]
    count = len(found["student"])
    arrays = [_scaled(np.array(one, dtype=float)) for side in ("student", "teacher") for one in found[side]]
    titles = [f"student {n + 1}" for n in range(count)] + [f"cosine {value:.2f}" for value in found["cosine"]]
    return figures.image_grid(arrays, titles, across=count)


def costs_table(run: dict[str, Any]) -> pd.DataFrame:
    """Every network: parameters, and its operations from the narrowest to the widest reading, in thousands."""
    rows = {
        name: {"parameters": one["parameters"], **{key: round(one[key] / 1000, 1) for key in list(one)[1:]}}
        for name, one in run["measurements"]["networks"].items()
    }
    return pd.DataFrame(rows).T.astype({"parameters": int})


def _mean(runs: Runs, key: str, name: str) -> float:
    values = [value for run in runs if (value := run["measurements"][key].get(name)) is not None]
    return float(np.mean(values)) if values else np.nan


def _line(runs: Runs, arm: str, key: str) -> figures.Curve:
    """Mean, lowest and highest of what an arm's history holds over iterations, of the runs that have not diverged."""
    lines = [[row[key] for row in run["history"] if row["phase"] == arm] for run in runs]
    length = max(map(len, lines))
    full = [[np.nan if v is None else v for v in line] + [np.nan] * (length - len(line)) for line in lines]
    steps = [runs[0]["config"]["iterations"] * (n + 1) for n in range(length)]
    return steps, *(reduce(np.array(full, dtype=float), axis=0) for reduce in (np.nanmean, np.nanmin, np.nanmax))


def _ran(runs: Runs, arm: str) -> bool:
    return arm in runs[0]["config"]["arms"]


def _scaled(image: np.ndarray) -> np.ndarray:
    """From -1 to 1, so that each picture fills the scale of grey."""
    return image / max(float(np.abs(image).max()), 1e-9)
