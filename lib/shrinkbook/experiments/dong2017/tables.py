"""What gates close and what that saves: zeros by depth and over images, arms side by side, time against zeros."""

from collections.abc import Callable, Sequence
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd

from shrinkbook.evidence import figures
from shrinkbook.evidence.paper import Table
from shrinkbook.experiments.dong2017.collapse import counted, fate, learnt
from shrinkbook.experiments.dong2017.skip import AT, WIDE, dense, framework

GATES = {
    "baseline": "none",
    "lccl": "shared kernel, batch norm and ReLU, on both convolutions of a block",
    "pointwise": "one map for each output",
    "relu": "no batch norm in the gate",
    "first": "on the first convolution only",
    "second": "on the second convolution only",
    "hard": "hard mask instead of a multiplier",
    "after_relu": "product after the main branch's ReLU",
    "published": "shared 1x1 kernel, as in the published code",
    "grid": "the same on a grid of 2x2 pooled pixels",
}  # what an arm has, and where nothing else is said as lccl
COLUMNS: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "zeros, %": lambda arm: arm["zeros"],
    "saved, %": lambda arm: 100 * arm["removed"],
    "saved of gated layers, %": lambda arm: 100 * arm["removed, gated layers only"],
    "as the authors count, %": lambda arm: (share := arm["removed, as the authors count"]) and 100 * share,
    "faster, %": lambda arm: 100 * arm["faster"],
    "gates' cost, %": lambda arm: arm["overhead"],
    "gates closed": lambda arm: _idle(arm, "closed"),
    "gates closed in part": lambda arm: _idle(arm, "part"),
    "gates open": lambda arm: _idle(arm, "open"),
    "gates without gradient": lambda arm: len(arm["dead"]) if "idle" in arm else None,
}
GOAL = 1.5  # of this suite: dense time over skipping time
ORANGE = np.array([0.68, -0.27, -1.0])  # #D55E00 on the scale of image_grid


def arms_table(runs: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Accuracy of every arm, zeros, saving in three counts and both readings, gates that decide nothing.

    Means over the seeds in which the arm learnt; a dash where it did in none.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name in runs[0]["measurements"]["accuracy"]:
        accuracy = [run["measurements"]["accuracy"][name] for run in runs]
        rows[name] = {"gates": GATES[name], "accuracy": np.mean(accuracy)}
        rows[name] |= {"lowest": min(accuracy), "highest": max(accuracy), "not trained": lost(runs, name)}
        if name == "baseline":
            continue
        arms = [arm for run in runs if (arm := counted(run).get(name))]
        for column, value in COLUMNS.items():
            found = [number for arm in arms if (number := value(arm)) is not None]
            rows[name][column] = np.mean(found) if found else "" if arms else "—"
    return pd.DataFrame(rows).T.map(_short)


def lost(runs: Sequence[dict[str, Any]], arm: str) -> str:
    """How often an arm collapsed or diverged: ``2 of 5 collapsed``, empty if never."""
    fates = [fate(run, arm) for run in runs]
    return ", ".join(f"{fates.count(how)} of {len(runs)} {how}" for how in ("collapsed", "diverged") if how in fates)


def depth_picture(run: dict[str, Any], arms: Sequence[str]) -> figures.Picture:
    """Zeros of each gate by depth, mean over the test images, band from their 10 % to their 90 % quantile.

    Args:
        arms: names of arms that learnt, a panel each.
    """
    panels = {}
    for arm in arms:
        layers = run["measurements"]["arms"][arm]["layers"].values()
        columns = [[100 * layer[name] for layer in layers] for name in ("zeros", "low", "high", "break_even")]
        depth = range(1, len(layers) + 1)
        title = fill(f"{arm}: {GATES[arm]}", 45)
        panels[title] = {"zeros": (depth, *columns[:3]), "gate pays from": (depth, columns[3])}
    return figures.curves(panels, "gated convolution", "positions closed (%)", across=2, ylim=(0, 100))


def exact_table(runs: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Largest difference and miscounted multiplications by seed, or what became of the arm that would show them."""
    rows = {}
    for run in runs:
        exact = run["measurements"].get("exact", {})
        shown = {"images": exact["images"]} if exact else {}
        for column in ("minus_difference", "minus_miscount"):
            shown[column.removeprefix("minus_")] = -exact[column] + 0.0 if exact else "—"
        rows[run["seed"]] = shown | {"network": fate(run, "lccl") or "trained"}
    return pd.DataFrame(rows).T.rename_axis("seed").fillna("—")


def maps_picture(run: dict[str, Any]) -> figures.Picture:
    """Test images, and below each the same image with the positions painted that a gate closes (orange: skipped).

    Gates are those of an early, a middle and a late layer; their maps are enlarged to the size of the image.
    """
    maps = run["measurements"]["maps"]
    images = [np.array(image) for image in maps["images"]]
    side = int(images[0].size ** 0.5)
    pictures = [np.repeat((image.reshape(side, side) / np.abs(image).max())[..., None], 3, 2) for image in images]
    rows, titles = list(pictures), ["image"] * len(images)
    for layer, found in maps.items():
        if layer != "images":
            for picture, gate in zip(pictures, found, strict=True):
                closed = np.kron(np.array(gate), np.ones((side // len(gate), side // len(gate))))[..., None] == 1
                rows.append(np.where(closed, 0.3 * picture + 0.7 * ORANGE, picture))
            titles += [layer.removeprefix("layer")] * len(found)
    return figures.image_grid(rows, titles, across=len(images))


def frontier_picture(runs: Sequence[dict[str, Any]], printed: Table) -> figures.Picture:
    """Accuracy against the share of multiply-accumulates saved: every arm a point a seed, and the printed rows.

    An arm that did not learn has no saving and no point; the legend says so.
    """
    config, points = runs[0]["config"], dict[str, figures.Curve]()
    for arm in runs[0]["measurements"]["accuracy"]:
        kept = [run for run in runs if arm in (learnt(run) if arm == "baseline" else counted(run))]
        saved = [100 * run["measurements"]["arms"][arm]["removed"] if arm != "baseline" else 0.0 for run in kept]
        label = f"{arm} ({gone})" if (gone := lost(runs, arm)) else arm
        points[label] = (saved, [run["measurements"]["accuracy"][arm] for run in kept])
    panels = {f"ours: {config['net']}, {config['data']}": points}
    if config["data"] == printed.id:
        cells = {(cell.row, cell.column): cell.number for cell in printed.cells}
        paper: dict[str, figures.Curve] = {}
        for row in printed.rows:
            net = row.replace("-LCCL", "")
            plain, gated, share = cells.get((net, "accuracy")), cells.get((row, "accuracy")), cells.get((row, "saved"))
            if plain is not None and gated is not None and share is not None:
                paper[f"{net}, printed"] = ([0.0, share], [plain, gated])
        panels["the paper, recalled: without and with LCCL"] = paper
    return figures.curves(panels, "multiply-accumulates saved (%)", "accuracy (%)", across=2, lines=False)


def even_picture(runs: Sequence[dict[str, Any]]) -> figures.Picture:
    """The share of zeros from which skipping beats the framework's own convolution, by shape; no bar: never."""
    found = [run["measurements"]["break_even"] for run in runs]
    middle = [np.median([np.inf if one[shape] is None else 100 * one[shape] for one in found]) for shape in found[0]]
    values = [float(value) if np.isfinite(value) else np.nan for value in middle]
    return figures.bars(list(found[0]), {"skipping pays from": values}, "positions closed (%)")


def speed_picture(runs: Sequence[dict[str, Any]]) -> figures.Picture:
    """Times of both dense forms over the time of skipping, against the share of zeros; median over the runs."""
    panels: dict[str, dict[str, figures.Curve]] = {"against im2col and GEMM": {}, "against the framework": {}}
    for channels, side in runs[0]["config"]["shapes"]:
        curves: list[tuple[float, float, float]] = []
        for number, point in enumerate(runs[0]["measurements"]["points"]):
            if (point["channels"], point["side"]) == (channels, side):
                found = [run["measurements"]["points"][number]["seconds"] for run in runs]
                gains = [
                    float(np.median([dense(one) / one["kxkxCx1"] for one in found])),
                    float(np.median([framework(one) / one["kxkxCx1"] for one in found])),
                ]
                curves.append((100 * point["zeros"], *gains))
        zeros, against, other = zip(*curves, strict=True)
        for panel, line in zip(panels.values(), (against, other), strict=True):
            panel[f"{channels} x {side} x {side}"] = (zeros, line)
    for panel in panels.values():
        panel["as fast"] = ([0, 95], [1, 1])
    return figures.curves(panels, "positions closed (%)", "dense time / skipping time", across=2)


def skip_table(runs: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Milliseconds by shape and zeros, and dense over skipping for the faster dense forms; medians over the runs."""
    rows = {}
    for number, point in enumerate(runs[0]["measurements"]["points"]):
        found = [run["measurements"]["points"][number]["seconds"] for run in runs]
        median = {name: 1000 * float(np.median([one[name] for one in found])) for name in found[0]}
        rows[f"{point['channels']} x {point['side']} x {point['side']}", point["zeros"]] = {
            **{f"{name}, ms": value for name, value in median.items()},
            "im2col / skipping": float(np.median([dense(one) / one["kxkxCx1"] for one in found])),
            "framework / skipping": float(np.median([framework(one) / one["kxkxCx1"] for one in found])),
        }
    return pd.DataFrame(rows).T.rename_axis(["maps", "zeros"]).round(3)


def goal_text(runs: Sequence[dict[str, Any]]) -> str:
    """On which shapes from 64 channels on, at 60 % zeros, the suite's goal is reached; medians over the runs."""
    gains = {}
    for number, point in enumerate(runs[0]["measurements"]["points"]):
        if point["zeros"] == AT and point["channels"] >= WIDE:
            found = [run["measurements"]["points"][number]["seconds"] for run in runs]
            shape = f"{point['channels']} x {point['side']} x {point['side']}"
            gains[shape] = float(np.median([dense(one) / one["kxkxCx1"] for one in found]))
    parts = [
        f"{word} on {', '.join(f'{shape} ({gain:.2f})' for shape, gain in part.items())}"
        for word, part in (
            ("reached", {shape: gain for shape, gain in gains.items() if gain >= GOAL}),
            ("missed", {shape: gain for shape, gain in gains.items() if gain < GOAL}),
        )
        if part
    ]
    return f"The goal, {GOAL} times at {100 * AT:.0f} % zeros from {WIDE} channels on, is {' and '.join(parts)}."


def _idle(arm: dict[str, Any], how: str) -> int:
    """Gates that all test images find ``closed``, ``open`` or closed in ``part``."""
    found = arm["idle" if "idle" in arm else "dead"].values()  # older runs have the wrong name for it
    return sum(" of " in one if how == "part" else one == how for one in found)


def _short(value: Any) -> str:
    return value if isinstance(value, str) else "" if np.isnan(value) else f"{round(value, 2):g}"
