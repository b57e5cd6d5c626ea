"""What the searches found: proxies at uniform widths, progress, widths by layer, ranks, budgets side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from shrinkbook.evidence import figures

Runs = Sequence[dict[str, Any]]


def proxy_picture(runs: Runs) -> figures.Picture:
    """Accuracy of uniform networks with generated and with shared weights, and before batch norm is measured afresh."""
    curves: dict[str, figures.Curve] = {}
    for name in runs[0]["measurements"]["proxy"]:
        if name != "ratio":
            lines = [run["measurements"]["proxy"][name] for run in runs]
            curves[name] = (runs[0]["measurements"]["proxy"]["ratio"], *figures.mean_band(lines))
    return figures.curves({"": curves}, "share of every width", "test accuracy (%)", across=1, ylim=(0, 100), chance=10)


def progress_picture(runs: Runs) -> figures.Picture:
    """Best fitness after each evaluation, evolution against random draws, below the smallest budget."""
    label = next(iter(runs[0]["measurements"]["search"]))
    curves: dict[str, figures.Curve] = {}
    for name, key in (("evolution", "progress"), ("random", "random progress")):
        lines = [run["measurements"]["search"][label][key] for run in runs]
        shortest = min(map(len, lines))
        band = figures.mean_band([line[:shortest] for line in lines])
        curves[name] = (range(1, shortest + 1), *band)
    return figures.curves({label: curves}, "evaluations", "best held-out accuracy (%)", across=1)


def widths_picture(runs: Runs, kind: str = "") -> figures.Picture:
    """Mean ratio among the best vectors of every free width whose name begins with kind, one line a budget."""
    panel: dict[str, figures.Curve] = {}
    for label, widths in runs[0]["measurements"]["widths"].items():
        chosen = [index for index, name in enumerate(widths["names"]) if name.startswith(kind)]
        lines = [[run["measurements"]["widths"][label]["ratios"][index] for index in chosen] for run in runs]
        panel[label] = (range(1, len(chosen) + 1), *figures.mean_band(lines))
    picture = figures.curves({"": panel}, "", "share of the full width", across=1, ylim=(0, 1.05))
    names = [widths["names"][index] for index in chosen]
    picture.axes[0].set_xticks(range(1, len(names) + 1), names, rotation=45 if len(names) > 8 else 0)
    picture.axes[0].set_xlabel("free width: maps of a stage or layer, or inside a block")
    return picture


def ranks_picture(runs: Runs) -> figures.Picture:
    """Accuracy from scratch over accuracy with generated weights, one panel a seed, one dot a width vector."""
    panels: dict[str, dict[str, figures.Curve]] = {}
    for run in runs:
        ranks = run["measurements"]["ranks"]
        rows = sorted(ranks["rows"], key=lambda row: row["proxy"])
        tau = "constant" if ranks["tau"] is None else f"{ranks['tau']:.2f}"
        points = [row["proxy"] for row in rows], [row["trained"] for row in rows]
        panels[f"seed {run['seed']}, tau {tau}"] = {"random widths": points}
    picture = figures.curves(panels, "generated weights (%)", "trained from scratch (%)", across=5)
    for axis in picture.axes:
        for line in axis.get_lines():
            line.set_linestyle("none")
    return picture


def budgets_table(runs: Runs) -> pd.DataFrame:
    """Every budget in its own unit; accuracy with generated weights and from scratch, searched against uniform.

    Generated weights are judged on test images, which no search saw, beside the uniform network of the budget; trained
    networks beside the uniform one of the winner's own cost.
    """
    rows: dict[str, dict[str, Any]] = {}
    for label in runs[0]["measurements"]["search"]:
        found = [run["measurements"]["search"][label] for run in runs]
        stages = [run["stages"] for run in runs]
        gains = [run["measurements"]["gain"][label] for run in runs]
        scale, unit = (1000.0, "ms") if found[0]["unit"] == "seconds" else (1.0, found[0]["unit"])
        columns = {
            f"budget, {unit}": [scale * one["budget"] for one in found],
            f"searched, {unit}": [scale * one["cost"] for one in found],
            f"uniform, {unit}": [scale * one["control"]["cost"] for one in found],
            "searched, MAC": [one["mac"] for one in found],
            "uniform, MAC": [one["control"]["mac"] for one in found],
            "evaluations": [one["evaluations"] for one in found],
            "searched, generated weights": [one["unseen"]["searched"] for one in found],
            "uniform of the budget, generated weights": [one["unseen"]["uniform of the budget"] for one in found],
            "searched, from scratch": [one[f"searched {label}"]["accuracy"]["last"] for one in stages],
            "uniform, from scratch": [one[f"uniform {label}"]["accuracy"]["last"] for one in stages],
            "gain, points": gains,
        }
        rows[label] = {name: np.mean(values) for name, values in columns.items()}
        rows[label] |= {"lowest": min(gains), "highest": max(gains)}
    return pd.DataFrame(rows).T.astype(float).round(2)
