"""Tables of times, power and ranks, made of stored runs; no ratio of unsteady times is shown."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from shrinkbook.measure.steady import unsteady

Run = Mapping[str, Any]
Timed = Mapping[str, Mapping[int, Sequence[Run]]]
"""Network -> batch -> runs of :func:`~shrinkbook.experiments.kim2016.timing.whole_network`."""
UNSTEADY = "unsteady"


def speed_table(timed: Timed) -> pd.DataFrame:
    """Milliseconds of the networks in every mode (10 to 90 % of the rounds), and the ratios; medians over the runs.

    Runs with unsteady times take no part in the ratios; their number stands in a column of its own.
    """
    rows: dict[tuple[str, int, str], dict[str, Any]] = {}
    for net, batches in timed.items():
        for batch, found in batches.items():
            if not found:
                continue
            measured, steady = [run["measurements"] for run in found], _steady(found)
            row: dict[str, Any] = {}
            for mode in measured[0]["seconds"]:
                for name in ("original", "compressed"):
                    low, middle, high = (
                        1000 * float(np.median([one["seconds"][mode][name][key] for one in measured]))
                        for key in ("low", "median", "high")
                    )
                    row[f"{name}, {mode}, ms"] = f"{middle:.1f} ({low:.1f} to {high:.1f})"
            row["MAC ratio"] = round(measured[0]["ratio"]["mac"], 2)
            row |= {"time ratio": UNSTEADY, "realised": UNSTEADY}
            if steady:
                low, realised, high = np.quantile([one["ratio"]["realised"] for one in steady], [0, 0.5, 1])
                row["time ratio"] = round(float(np.median([one["ratio"]["measured"] for one in steady])), 2)
                row["realised"] = f"{realised:.2f} ({low:.2f} to {high:.2f})"
            row |= {"runs": len(found), "unsteady runs": len(found) - len(steady)}
            rows[net, batch, found[0]["config"]["ranks"]] = row
    return pd.DataFrame(rows).T.rename_axis(["network", "batch", "ranks"])


def layer_table(run: Run) -> pd.DataFrame:
    """Milliseconds of a run of :func:`~shrinkbook.experiments.kim2016.timing.layer_by_layer`: layer, chain, factors,
    ratios; layers left whole last, then the sum, which has a ratio only if every layer was steady."""
    table = pd.DataFrame(run["measurements"]["layers"]).T
    for name, seconds in run["measurements"]["left_whole"].items():
        table.loc[name, ["original", "compressed", "mac_ratio"]] = [seconds, seconds, 1.0]
    noisy = [str(name) for name in table.index if _noisy(run, str(name))]
    table.loc["sum"] = table[["original", "compressed"]].sum()
    mac = table.pop("mac_ratio").round(2)
    ratio = (table["original"] / table["compressed"]).round(2).astype(object)
    ratio[ratio.index.isin([*noisy, "sum"] if noisy else [])] = UNSTEADY
    return (1000 * table).round(3).assign(**{"time ratio": ratio, "MAC ratio": mac})


def host_columns(timed: Timed) -> pd.DataFrame:
    """This machine beside table 1: milliseconds of one image, original, compressed and their ratio, by printed row."""
    rows: dict[str, dict[str, str]] = {}
    for net, batches in timed.items():
        if not (found := batches[1]):
            continue
        best = [run["measurements"] for run in found]
        pair = {
            name: 1000 * float(np.median([one["seconds"][one["fastest"][name]][name]["median"] for one in best]))
            for name in ("original", "compressed")
        }
        ratios = [one["ratio"]["measured"] for one in _steady(found)]
        column = "this machine, ms" if found[0]["config"]["ranks"] == "printed" else "at a common share of ranks, ms"
        change = f"x{np.median(ratios):.2f}" if ratios else UNSTEADY
        values = (f"{pair['original']:.1f}", f"{pair['compressed']:.1f}", change)
        for row, value in zip((net, f"{net}*", f"{net} change"), values, strict=True):
            rows[row] = {column: value}
    return pd.DataFrame(rows).T


def host_layer_columns(run: Run) -> pd.DataFrame:
    """This machine beside table 2: milliseconds of every layer, of its chain with the parts, and their ratio."""
    rows: dict[str, dict[str, str]] = {}
    for name, row in run["measurements"]["layers"].items():
        parts = [f"{1000 * row[part]:.3f}" for part in ("first", "core", "last") if part in row]
        rows[name] = {"this machine, ms": f"{1000 * row['original']:.3f}"}
        rows[f"{name}*"] = {"this machine, ms": f"{1000 * row['compressed']:.3f} (= {' + '.join(parts)})"}
        change = UNSTEADY if _noisy(run, name) else f"x{row['original'] / row['compressed']:.2f}"
        rows[f"{name} change"] = {"this machine, ms": change}
    return pd.DataFrame(rows).T


def power_table(timed: Timed) -> pd.DataFrame:
    """Mean watts in the first run of each network at batch 1, or why there are none."""
    rows = {}
    for net, batches in timed.items():
        if found := batches[1]:
            measured = found[0]["measurements"]
            power = measured.get("power") or {"watt": {}, "reason": measured["noise"]}  # older noisy runs have none
            rows[net] = {**dict.fromkeys(("original", "compressed")), **power["watt"], "why not": power["reason"]}
    return pd.DataFrame(rows).T.fillna("")


def ranks_table(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Ranks of every layer as EVBMF estimated them, of the full ones, a column a run; where other ranks were used, or
    the layer stayed whole because its estimate would not make it smaller, the cell says so."""

    def cell(row: Mapping[str, Any]) -> str:
        estimated = row.get("estimated", row["rank"])  # older runs hold the ranks used alone
        text = f"{estimated} of {row['full']}"
        if estimated == row["rank"]:
            return text
        return f"{text}, used {row['rank']}" if row["rank"] else f"{text}, left whole"

    columns = {
        name: {layer: cell(row) for layer, row in run["measurements"]["ranks"]["layers"].items()}
        for name, run in runs.items()
    }
    layers = list(dict.fromkeys(layer for column in columns.values() for layer in column))
    return pd.DataFrame(columns, index=layers).fillna("")


def _steady(runs: Sequence[Run]) -> list[Mapping[str, Any]]:
    """Measurements of the runs in which both networks were steady in the mode that counts."""
    found = []
    for run in runs:
        measured = run["measurements"]
        chosen = [measured["seconds"][mode][name] for name, mode in measured["fastest"].items()]
        if not any(unsteady(one["low"], one["high"]) for one in chosen):
            found.append(measured)
    return found


def _noisy(run: Run, layer: str) -> bool:
    """Whether a layer or its chain was unsteady; older runs do not tell."""
    return bool(
        {f"{which} {layer}" for which in ("original", "compressed")} & set(run["measurements"].get(UNSTEADY, ()))
    )
