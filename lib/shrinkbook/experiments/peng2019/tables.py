"""Arms, samplers, losses, betas and orders as tables and figures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from shrinkbook.evidence import figures
from shrinkbook.experiments.peng2019.kernels import DEFAULT, SHOWN
from shrinkbook.methods.correlation_congruence import GAMMA, gaussian_rbf, gaussian_rbf_exact

NAMES = {
    "teacher": "teacher",
    "ce": "cross entropy",
    "consecutive": "benchmark's loss, no distillation",
    "kd": "distillation (KD)",
    "mmd": "KD + CC, naive MMD",
    "bilinear": "KD + CC, bilinear (order 1)",
    "rbf2": "KD + CC, RBF of order 2",
    "rbf3": "KD + CC, RBF of order 3",
}


def arms_table(runs: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Each arm: test accuracy over the seeds, the betas chosen, intra-class similarity, distance to the teacher's."""
    rows: dict[str, dict[str, Any]] = {}
    for arm, name in NAMES.items():
        staged = [run["stages"][arm]["accuracy"]["last"] for run in runs if arm in run["stages"]]
        if not staged:
            continue
        betas = [curve["chosen"] for run in runs if (curve := run["measurements"]["beta"].get(arm))]
        found = [run["measurements"] for run in runs]
        row: dict[str, Any] = {"accuracy, %": np.mean(staged), "lowest": min(staged), "highest": max(staged)}
        for column, key in (("intra-class similarity", "intra_class"), ("congruence error", "congruence_error")):
            values = [one[key][arm] for one in found if arm in one.get(key, {})]
            row[column] = np.mean(values) if values else np.nan
        row = {key: round(float(value), 3) for key, value in row.items()}
        rows[name] = row | {"beta, seed by seed": ", ".join(f"{beta:g}" for beta in betas)}
    return pd.DataFrame(rows).T.rename_axis("arm")


def samplers_table(runs: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Mean test accuracy of both arms by sampler, and the range over seeds of what congruence adds to its control."""
    rows = {}
    for name in runs[0]["measurements"]["samplers"]:
        found = [run["measurements"]["samplers"][name] for run in runs]
        gains = [one["cckd"] - one["kd"] for one in found]
        rows[name] = {
            "KD, %": np.mean([one["kd"] for one in found]), "KD + CC, %": np.mean([one["cckd"] for one in found]),
            "gain": np.mean(gains), "lowest gain": min(gains), "highest gain": max(gains),
        }  # fmt: skip
    return pd.DataFrame(rows).T.astype(float).round(2).rename_axis("batches")


def overhead_table(runs: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Each loss, forward and backward, in percent of a training step: median over the runs, lowest, highest."""
    found = [run["measurements"]["overhead"]["percent"] for run in runs]
    rows = {
        name: {"percent of a step": np.median(shares), "lowest": min(shares), "highest": max(shares)}
        for name in found[0]
        if (shares := [one[name] for one in found])
    }
    return pd.DataFrame(rows).T.round(3).rename_axis("loss")


def losses_picture(runs: Sequence[dict[str, Any]]) -> figures.Picture:
    """Distillation and congruence loss by epoch, mean over seeds, each as a share of KD's in the first epoch."""
    panels: dict[str, dict[str, figures.Curve]] = {}
    for part, title in (("distillation", "distillation loss"), ("congruence", "congruence loss")):
        panels[title] = {}
        for arm in ("kd", DEFAULT):
            lines = [
                np.array(run["measurements"]["losses"][arm][part]) / run["measurements"]["losses"]["kd"][part][0]
                for run in runs
            ]
            epochs = range(1, len(lines[0]) + 1)
            panels[title][NAMES[arm]] = (epochs, *figures.mean_band([list(line) for line in lines]))
    return figures.curves(panels, "epoch", "loss / KD's in the first epoch", across=2)


def similarity_picture(run: dict[str, Any]) -> figures.Picture:
    """Cosines between test images sorted by class: the teacher, KD, KD with congruence."""
    maps = run["measurements"]["similarity"]
    panels = {NAMES[name]: np.array([row.split() for row in rows], dtype=float) / 100 for name, rows in maps.items()}
    return figures.similarities(panels, "test image, sorted by class", "cosine similarity", SHOWN)


def beta_picture(runs: Sequence[dict[str, Any]]) -> figures.Picture:
    """Accuracy against beta on a logarithmic axis, kernel by kernel: test images and those beta is chosen by."""
    panels: dict[str, dict[str, figures.Curve]] = {}
    for kernel in runs[0]["measurements"]["beta"]:
        found = [run["measurements"]["beta"][kernel] for run in runs]
        if kernel == DEFAULT:
            found = [run["measurements"]["wide_beta"] for run in runs]
        panels[NAMES[kernel]] = {
            name: (found[0]["beta"], *figures.mean_band([one[key] for one in found]))
            for name, key in (("test images", "test"), ("held-out training images", "validation"))
        }
    picture = figures.curves(panels, "beta", "accuracy (%)", across=2)
    for axis in picture.axes:
        axis.set_xscale("log")
    return picture


def order_picture(runs: Sequence[dict[str, Any]]) -> figures.Picture:
    """Accuracy against the Taylor order, with a beta for each order and with one for all."""
    orders = (1, 2, 3)
    tuned, common = (
        figures.mean_band([[run["measurements"][key][f"rbf{p}"] for p in orders] for run in runs])
        for key in ("accuracy", "common_beta")
    )
    panels = {
        "a beta for each order": {"KD + CC": (orders, *tuned)},
        "one beta for all": {"KD + CC": (orders, *common)},
    }
    picture = figures.curves(panels, "order of the Taylor series", "test accuracy (%)", across=2)
    for axis in picture.axes:
        axis.set_xticks(orders)
    return picture


def series_error(gamma: float = GAMMA, orders: Sequence[int] = (1, 2, 3, 4, 5)) -> pd.Series:
    """Largest error of the Taylor series over cosines from -1 to 1, by order."""
    angles = torch.linspace(0, torch.pi, 181, dtype=torch.float64)
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    exact = gaussian_rbf_exact(circle, gamma)
    errors = {p: float((gaussian_rbf(circle, p, gamma) - exact).abs().max()) for p in orders}
    return pd.Series(errors, name="largest error").rename_axis("order").round(5)
