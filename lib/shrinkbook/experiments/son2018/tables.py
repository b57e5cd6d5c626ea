"""Clustered networks side by side: accuracy before and after fine-tuning, error against bits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from shrinkbook.evidence import figures
from shrinkbook.experiments.son2018.cost import MODELS
from shrinkbook.experiments.son2018.variants import is_plain

ORDERS = ("add-then-conv", "conv-then-add")


def accuracy_table(runs: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Mean accuracy right after clustering and fine-tuned, the lowest and highest of the latter, bits, acceleration."""
    found = [run["measurements"] for run in runs]
    rows: dict[str, dict[str, float]] = {}
    for name in found[0]["tuned"]:
        tuned = [one["tuned"][name] for one in found]
        rows[name] = {
            "clustered": float(np.mean([one["clustered"][name] for one in found])),
            "batch norm anew": float(np.mean([one["refreshed"][name] for one in found])),
            "tuned": float(np.mean(tuned)),
            "lowest": min(tuned),
            "highest": max(tuned),
            "bits a kernel": bits_a_kernel(runs[0], name),
            "acceleration": float(np.mean([one["acceleration"]["models"][name] for one in found])),
            "with random indices": float(np.mean([one["acceleration"]["random"][name] for one in found])),
        }
    control = [one["baseline"]["tuned"] for one in found]
    before = float(np.mean([one["baseline"]["original"] for one in found]))
    rows["original, tuned as much"] = {
        "clustered": before, "tuned": float(np.mean(control)), "lowest": min(control), "highest": max(control),
        "bits a kernel": 288.0, "acceleration": 1.0,
    }  # fmt: skip
    return pd.DataFrame(rows).T.round(2)


def bits_a_kernel(run: dict[str, Any], name: str) -> float:
    """Index, transform, scale and this kernel's share of the codebooks at 32 bits, by the formula."""
    return 8 * run["measurements"]["bytes"][name]["formula"] / run["measurements"]["kernels"]


def sharing_table(run: dict[str, Any]) -> pd.DataFrame:
    """Layer by layer: distinct centroids, multiplications in thousands, milliseconds, and the two ratios."""
    rows = []
    for row in run["measurements"]["sharing"]:
        seconds, fewest = row["seconds"], min(row["add-then-conv"], row["conv-then-add"])
        fastest = min(seconds["add-then-conv"], seconds["conv-then-add"])
        rows.append(
            {
                **{name: value for name, value in row.items() if name not in ("seconds", "dense", "layer", *ORDERS)},
                **{f"{name}, thousand MAC": row[name] / 1e3 for name in ("dense", *ORDERS)},
                **{f"{name}, ms": 1000 * value for name, value in seconds.items()},
                "counted": row["dense"] / fewest,
                "measured": seconds["dense"] / fastest,
            }
        )
    return pd.DataFrame(rows, index=[row["layer"] for row in run["measurements"]["sharing"]]).round(2)


def bits_picture(runs: Sequence[dict[str, Any]]) -> figures.Picture:
    """Test error after fine-tuning against bits a kernel, one curve a kind of codebook, band over the seeds."""
    kinds = {"one codebook": is_plain, "with transforms": lambda name: "-TIC" in name}
    kinds |= {"a codebook a layer": lambda name: name.endswith("-M"), "without scales": lambda name: name.endswith("N")}
    names = list(runs[0]["measurements"]["tuned"])
    panel: dict[str, figures.Curve] = {}
    for kind, belongs in kinds.items():
        chosen = sorted((name for name in names if belongs(name)), key=lambda name: bits_a_kernel(runs[0], name))
        if chosen:
            errors = [[100 - run["measurements"]["tuned"][name] for name in chosen] for run in runs]
            panel[kind] = ([bits_a_kernel(runs[0], name) for name in chosen], *figures.mean_band(errors))
    title = f"{runs[0]['config']['net']}, {runs[0]['config']['schedule']}"
    return figures.curves({title: panel}, "bits a kernel", "test error (%)")


def size_table(run: dict[str, Any], column: str = "ratio") -> pd.DataFrame:
    """Networks by clustered models, one column of ``sizes``."""
    sizes = run["measurements"]["sizes"]
    rows = {net: {variant: row[column] for variant, row in variants.items()} for net, variants in sizes.items()}
    return pd.DataFrame(rows).T.reindex(columns=MODELS).rename_axis("network").round(2)
