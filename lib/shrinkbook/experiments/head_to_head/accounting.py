"""What every arm costs before anything is trained: shapes, knobs and files of a network with random weights."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from torch import nn

from shrinkbook.evidence import figures
from shrinkbook.experiments.head_to_head.arms import METHODS
from shrinkbook.experiments.head_to_head.forms import Shape, built, write
from shrinkbook.measure.cost import cost


def forms_table(model: nn.Module, shape: Shape, removed: Sequence[float], centroids: int) -> pd.DataFrame:
    """Knob, multiply-accumulates, weights and bytes on disk of every arm whose shape follows from its budget alone.

    Searched widths and estimated ranks follow from data or weights and are left out; no gate is taken to be closed.

    Args:
        model: the original network, any weights.
        removed, centroids: as in :func:`~shrinkbook.experiments.head_to_head.arms.arms`.
    """
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network"
        for arm, knob, form in built(model, shape, removed, centroids):
            found = cost(form, shape)
            rows[arm.name] = [METHODS[arm.method].label, knob, found.mac, found.weights, write(form, path)]
    columns = ["method", "knob", "MAC", "weights", "bytes"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("arm")


def forms_picture(forms: pd.DataFrame) -> figures.Picture:
    """Where each method goes from the original: bytes against multiply-accumulates, both in percent."""
    original = forms.loc["original"]
    points: dict[str, figures.Curve] = {}
    for method, rows in forms.drop_duplicates(["MAC", "bytes"]).groupby("method", sort=False):
        x, y = (100 * rows[column] / original[column] for column in ("MAC", "bytes"))
        points[str(method)] = (x.tolist(), y.tolist())
    labels = "multiply-accumulates (% of the original's)", "bytes of the file (% of the original's)"
    return figures.curves({"what is left": points}, *labels, ylim=(0, 115))
