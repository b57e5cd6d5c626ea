"""What gates close and what that saves: zeros by depth and over images, arms side by side, time against zeros."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from shrinkbook.evidence import claims, figures
from shrinkbook.experiments.dong2017.skip import dense, framework

ORANGE = np.array([0.68, -0.27, -1.0])  # #D55E00 on the scale of image_grid


def arms_table(runs: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Accuracy of every arm, zeros, saving in three counts and both readings, idle gates; means over the seeds."""
    rows: dict[str, dict[str, Any]] = {}
    for name in runs[0]["measurements"]["accuracy"]:
        accuracy = [run["measurements"]["accuracy"][name] for run in runs]
        rows[name] = {"accuracy": np.mean(accuracy), "lowest": min(accuracy), "highest": max(accuracy)}
        arms = [arm for run in runs if (arm := run["measurements"]["arms"].get(name))]
        if not arms:  # the baseline, or diverged in every run
            continue
        rows[name] |= {
            "zeros, %": np.mean([arm["zeros"] for arm in arms]),
            "saved, %": 100 * np.mean([arm["removed"] for arm in arms]),
            "saved of gated layers, %": 100 * np.mean([arm["removed, gated layers only"] for arm in arms]),
            "as the authors count, %": 100 * np.mean([arm["removed, as the authors count"] or np.nan for arm in arms]),
            "faster, %": 100 * np.mean([arm["faster"] for arm in arms]),
            "gates' cost, %": np.mean([arm["overhead"] for arm in arms]),
            "gates never open": np.mean([sum(how == "closed" for how in arm["dead"].values()) for arm in arms]),
            "gates never closed": np.mean([sum(how == "open" for how in arm["dead"].values()) for arm in arms]),
        }
    return pd.DataFrame(rows).T.astype(float).round(2).map(lambda value: "" if np.isnan(value) else f"{value:g}")


def depth_picture(run: dict[str, Any], arms: Sequence[str]) -> figures.Picture:
    """Zeros of each gate by depth, mean over the test images, band from their 10 % to their 90 % quantile."""
    panels = {}
    for arm in arms:
        layers = run["measurements"]["arms"][arm]["layers"].values()
        columns = [[100 * layer[name] for layer in layers] for name in ("zeros", "low", "high", "break_even")]
        depth = range(1, len(layers) + 1)
        panels[arm] = {"zeros": (depth, *columns[:3]), "gate pays from": (depth, columns[3])}
    return figures.curves(panels, "gated convolution", "positions closed (%)", ylim=(0, 100))


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


def frontier_picture(runs: Sequence[dict[str, Any]], printed: claims.Table) -> figures.Picture:
    """Accuracy against the share of multiply-accumulates saved: every arm a point a seed, and the printed rows."""
    config, points = runs[0]["config"], dict[str, figures.Curve]()
    for arm in runs[0]["measurements"]["accuracy"]:
        kept = [run for run in runs if arm == "baseline" or arm in run["measurements"]["arms"]]
        saved = [100 * run["measurements"]["arms"][arm]["removed"] if arm != "baseline" else 0.0 for run in kept]
        points[arm] = (saved, [run["measurements"]["accuracy"][arm] for run in kept])
    panels = {f"ours: {config['net']}, {config['data']}": points}
    if config["row"]:
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
