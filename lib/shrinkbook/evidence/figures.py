"""Figures in one style: colour-blind safe, headless, as wide as a notebook; no global state.

Every function returns a `Picture`, which a notebook shows by itself and `save` writes beside the other results.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from shrinkbook.evidence import store
from shrinkbook.evidence.samples import Run, listed

WIDTH, DPI = 9.0, 150  # inches, dots an inch
# Okabe and Ito's palette without yellow, which vanishes on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
MARKERS = "os^Dv<>Phx"
FEW = len(COLOURS)  # more curves than this get a sequential colour map, in order
Curve = tuple[Any, ...]  # (x, y) or (x, y, low, high), each a sequence of numbers


class Picture(Figure):
    """A figure that notebooks show without a pyplot backend."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        return buffer.getvalue()


def curves(
    panels: Mapping[str, Mapping[str, Curve]],
    xlabel: str,
    ylabel: str,
    across: int = 3,
    ylim: tuple[float, float] | None = None,
    chance: float | None = None,
    bands: bool = True,
    lines: bool = True,
) -> Picture:
    """One axes a panel with a shared y axis, one colour a label in all panels, the legend outside the axes.

    Args:
        panels: title to label to (x, y), or (x, y, low, high) for a band.
        xlabel: quantity and unit of x.
        ylabel: quantity and unit of y.
        across: panels in a row.
        ylim: limits of y, default as the data need.
        chance: height of a dotted line, the accuracy of guessing.
        bands: draw them; without, only means.
        lines: join the points of a label.
    """
    labels = list(dict.fromkeys(label for panel in panels.values() for label in panel))
    columns = min(across, len(panels))
    rows = math.ceil(len(panels) / columns)
    many = len(labels) > FEW
    beside = 1 + (len(labels) > 16)  # columns of a legend beside the axes
    height = max(3.4 * rows, 0.19 * math.ceil(len(labels) / beside) + 0.3) if many else 3.4 * rows + 0.35
    figure = Picture(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    styles = dict(zip(labels, _styles(len(labels)) if lines else _points(len(labels)), strict=True))
    handles: dict[str, Any] = {}
    for axis, (title, panel) in zip(axes.flat, panels.items(), strict=False):
        for label, curve in panel.items():
            x, y = curve[:2]
            (handles[label],) = axis.plot(x, y, label=label, **styles[label])
            if bands and len(curve) == 4:
                axis.fill_between(x, curve[2], curve[3], color=styles[label]["color"], alpha=0.18, linewidth=0)
        if chance is not None:
            axis.axhline(chance, color="#555555", linestyle=":", linewidth=1)
        _tidy(axis, title, xlabel, "")
    for axis in axes[:, 0]:
        axis.set_ylabel(ylabel)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    if ylim is not None:
        axes[0, 0].set_ylim(*ylim)
    if len(labels) > 1:
        place: Any = "outside right upper" if many else "outside lower center"
        across = beside if many else min(4, len(labels))
        figure.legend([handles[label] for label in labels], labels, loc=place, ncols=across, fontsize=8)
    return figure


def frontiers(panels: Mapping[str, Mapping[str, Curve]], ylabel: str, styles: Mapping[str, tuple[str, str]]) -> Picture:
    """Methods in panels side by side: points with bars for their intervals, joined in their order.

    Args:
        panels: quantity and unit of x -> label -> (x, y, low, high).
        ylabel: quantity and unit of y, which the panels share.
        styles: colour and marker of every label, in the order of the legend.
    """
    figure = Picture(figsize=(WIDTH, 4.6), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    handles: dict[str, Any] = {}
    for axis, (xlabel, panel) in zip(axes, panels.items(), strict=True):
        for label, (x, y, low, high) in panel.items():
            colour, marker = styles[label]
            reach = [np.subtract(y, low), np.subtract(high, y)]
            handles[label] = axis.errorbar(
                x, y, reach, color=colour, marker=marker, markersize=5, linewidth=1, capsize=2, elinewidth=1
            )
        _tidy(axis, "", xlabel, "")
    axes[0].set_ylabel(ylabel)
    known = [label for label in styles if label in handles]
    figure.legend([handles[label] for label in known], known, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def bars(
    groups: Sequence[str],
    series: Mapping[str, Sequence[float] | tuple[Sequence[float], Sequence[float]]],
    ylabel: str,
    points: bool = False,
) -> Picture:
    """Grouped bars, one group a name and one bar a series; a pair (values, errors) adds error bars.

    Args:
        groups: names under the axis.
        series: label (such as `paper`, `ours`) to values, or to (values, half-widths); NaN leaves a gap.
        ylabel: quantity and unit.
        points: markers instead of bars, on an axis that does not begin at 0: for values whose differences matter.
    """
    figure = Picture(figsize=(WIDTH, 3.6), layout="constrained")
    axis = figure.subplots()
    place, width = np.arange(len(groups)), 0.8 / len(series)
    for index, (label, entry) in enumerate(series.items()):
        values, errors = entry if isinstance(entry, tuple) else (entry, None)
        left = place + (index - (len(series) - 1) / 2) * width
        colour = COLOURS[index % len(COLOURS)]
        if points:
            axis.errorbar(left, values, errors, fmt=MARKERS[index], capsize=3, label=label, color=colour)
        else:
            axis.bar(left, values, width * 0.92, yerr=errors, capsize=3, label=label, color=colour)
    _tidy(axis, "", "", ylabel)
    long = max(len(line) for group in groups for line in group.split("\n")) * len(groups) > 90
    axis.set_xticks(place, groups, rotation=25 if long else 0, ha="right" if long else "center")
    axis.grid(visible=False, axis="x")
    figure.legend(loc="outside upper center", ncols=len(series), fontsize=8)
    return figure


def image_grid(arrays: Sequence[np.ndarray], titles: Sequence[str] | None = None, across: int = 16) -> Picture:
    """Small images in reading order on one scale: zero is mid-grey, so that small filters look flat.

    Args:
        arrays: (height, width) or (height, width, 3) each.
        titles: a short text above each image.
        across: images in a row.
    """
    columns = min(across, len(arrays))
    rows = math.ceil(len(arrays) / columns)
    side = WIDTH / max(columns, 8)
    figure = Picture(figsize=(side * columns, rows * (side + (0.2 if titles else 0))), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)  # type: ignore[union-attr, call-arg]
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    largest = max(float(np.abs(array).max()) for array in arrays) or 1.0
    for index, (axis, array) in enumerate(zip(axes.flat, arrays, strict=False)):
        axis.imshow((array / largest + 1) / 2, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        if titles:
            axis.set_title(titles[index], fontsize=7, pad=2)
    return figure


def heat_maps(
    panels: Mapping[str, np.ndarray],
    rows: Sequence[Any],
    columns: Sequence[Any],
    ylabel: str,
    xlabel: str,
    label: str,
    across: int = 3,
) -> Picture:
    """Matrices of ratios with their numbers, on one logarithmic scale: white is 1, blue above, red below.

    Args:
        panels: title -> (rows, columns), all above 0.
        rows, columns: names of the axes' steps.
        ylabel, xlabel: quantity and unit of rows and columns.
        label: what the colour says.
    """
    wide = min(across, len(panels))
    high = math.ceil(len(panels) / wide)
    height = high * (0.9 + 0.42 * len(rows)) + 0.3
    figure = Picture(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(high, wide, squeeze=False, sharex=True, sharey=True)
    largest = max(float(np.abs(np.log2(matrix)).max()) for matrix in panels.values()) or 1.0
    for axis, (title, matrix) in zip(axes.flat, panels.items(), strict=False):
        shown = axis.imshow(np.log2(matrix), cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto")
        for (row, column), value in np.ndenumerate(matrix):
            dark = abs(math.log2(value)) > 0.6 * largest
            axis.text(
                column, row, f"{value:.2g}", ha="center", va="center", fontsize=8, color="white" if dark else "black"
            )
        axis.set_title(title, fontsize=10)
        axis.set_xticks(range(len(columns)), [str(column) for column in columns], fontsize=8)
        axis.set_yticks(range(len(rows)), [str(row) for row in rows], fontsize=8)
    for axis in axes[:, 0]:
        axis.set_ylabel(ylabel)
    for axis in axes[-1]:
        axis.set_xlabel(xlabel)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    steps = [step for step in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if abs(math.log2(step)) <= largest]
    bar = figure.colorbar(shown, ax=axes, ticks=[math.log2(step) for step in steps])
    bar.set_label(label.replace(" / ", " /\n"))  # a long one is higher than the picture
    bar.ax.set_yticklabels([f"{step:g}" for step in steps])
    return figure


def similarities(panels: Mapping[str, np.ndarray], axis_label: str, label: str, steps: int) -> Picture:
    """Square matrices side by side on one linear scale from 0 to 1, with a line after every ``steps`` rows.

    Args:
        panels: title -> (n, n).
        axis_label: what rows and columns are.
        label: what the colour says.
        steps: rows of one group, such as a class.
    """
    figure = Picture(figsize=(WIDTH, 3.3), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
    for axis, (title, matrix) in zip(axes, panels.items(), strict=True):
        shown = axis.imshow(matrix, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
        for edge in range(steps, len(matrix), steps):
            axis.axhline(edge - 0.5, color="white", linewidth=0.3)
            axis.axvline(edge - 0.5, color="white", linewidth=0.3)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(axis_label)
        axis.tick_params(labelsize=8)
    axes[0].set_ylabel(axis_label)
    figure.colorbar(shown, ax=axes, label=label)
    return figure


def curve(runs: Sequence[Run], x: str, y: str, original: bool = True) -> Curve:
    """One curve over several seeds: (x, mean, lowest, highest), from two paths inside the runs' measurements.

    Args:
        original: begin at x = 0 with the accuracy of the unpruned network.

    Raises:
        ValueError: no runs, or a run without the measurement.
    """
    lines = [listed(run, y) for run in runs]
    points = listed(runs[0], x) if runs else None
    if points is None or any(line is None for line in lines):
        raise ValueError(f"no curve of {y} over {x}: {'a run lacks it' if runs else 'there are no runs'}")
    full = [line for line in lines if line is not None]
    if original:
        points = [0.0, *points]
        starts = [run["stages"]["original"]["accuracy"]["last"] for run in runs]
        full = [[start, *line] for start, line in zip(starts, full, strict=True)]
    return points, *mean_band(full)


def kernels(matrices: Mapping[str, np.ndarray], removed: Mapping[str, tuple[Sequence[int], Sequence[int]]]) -> Picture:
    """Layers as matrices of kernels (rows: filters, columns: input maps; dark: large l1 norm), removed ones coloured.

    Args:
        matrices: title -> (filters, input maps) kernel norms.
        removed: title -> rows and columns that go.
    """
    figure = Picture(figsize=(WIDTH, 3.6), layout="constrained")
    for axis, (title, matrix) in zip(np.atleast_1d(figure.subplots(1, len(matrices))), matrices.items(), strict=True):
        axis.imshow(matrix, cmap="Greys", vmin=0, aspect="auto")
        rows, columns = removed.get(title, ((), ()))
        for row in rows:
            axis.axhspan(row - 0.5, row + 0.5, color=COLOURS[1], alpha=0.55, linewidth=0)
        for column in columns:
            axis.axvspan(column - 0.5, column + 0.5, color=COLOURS[0], alpha=0.55, linewidth=0)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("input map", fontsize=8)
        axis.set_ylabel("filter", fontsize=8)
        axis.tick_params(labelsize=7)
    return figure


def mean_band(lines: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, minimum and maximum over seeds, point by point.

    Raises:
        ValueError: the curves differ in length, or there is none.
    """
    if len({len(line) for line in lines}) != 1:
        raise ValueError(f"curves of {', '.join(str(len(line)) for line in lines) or 'no'} points have no common mean")
    stack = np.asarray(lines, dtype=float)
    return stack.mean(axis=0), stack.min(axis=0), stack.max(axis=0)


def has_bands(figure: Figure) -> bool:
    """Whether a curve of the figure has a band around it."""
    return any(isinstance(one, PolyCollection) for axis in figure.axes for one in axis.collections)


def save(figure: Figure, profile: str, paper: str, name: str, caption: str) -> Path:
    """Write `results/<profile>/figures/<paper>_<name>.png` and its caption beside it as .txt; returns the image.

    Raises:
        StoreError: a file cannot be written.
    """
    path = store.results_dir(profile) / "figures" / f"{paper}_{name}.png"
    store.write_text(path.with_suffix(".txt"), caption.strip() + "\n")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
        os.replace(temporary, path)
    except OSError as error:
        raise store.StoreError(f"{path}: cannot be written ({error.strerror}); choose a folder that can be") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _styles(count: int) -> list[dict[str, Any]]:
    if count <= FEW:
        return [{"color": COLOURS[i], "marker": MARKERS[i], "markersize": 3.5, "linewidth": 1.5} for i in range(count)]
    ramp = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, count))
    dashes = ("-", "--", ":")
    return [{"color": tuple(ramp[i]), "linestyle": dashes[i % 3], "linewidth": 1.5} for i in range(count)]


def _points(count: int) -> list[dict[str, Any]]:
    return [
        {"color": COLOURS[i % FEW], "marker": MARKERS[i % len(MARKERS)], "markersize": 5, "linestyle": "none"}
        for i in range(count)
    ]


def _tidy(axis: Axes, title: str, xlabel: str, ylabel: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.tick_params(labelsize=8)
    axis.grid(visible=True, color="#DDDDDD", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
