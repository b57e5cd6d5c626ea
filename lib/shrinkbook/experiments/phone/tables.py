"""Tables and figures of measured rows; a table never holds two devices."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from shrinkbook.evidence import claims, figures
from shrinkbook.measure.steady import doubt

Row = Mapping[str, Any]
Run = Mapping[str, Any]


def one_line(runs: Sequence[Run]) -> str:
    """What was measured where, in one sentence.

    Raises:
        ValueError: rows of more than one device, which must not stand in one table.
    """
    rows, (device, name, engine) = _rows(runs), _place(runs)
    nets = len({row["model"] for row in rows})
    threads = f"{rows[0]['threads']} thread" + ("s" if rows[0]["threads"] > 1 else "")
    if device == "phone":
        return f"{nets} networks measured on a phone: {name}, {engine}, {threads}."
    return f"No phone: {nets} networks measured on this host, {engine}, {threads}; numbers of this host, no phone's."


def comparison(runs: Sequence[Run]) -> pd.DataFrame:
    """Every row: milliseconds, ratio to its base, share of the theoretical saving that was realised, what to doubt."""
    _place(runs)
    table = []
    for row in _judged(runs):
        ms, realised = row["ms"], row["realised"]
        base = row["model"] == row["base"]
        table.append({
            "device": row["device"], "network": row["model"], "precision": row["precision"],
            "ms": f"{ms['median']:.2f} ({ms['p10']:.2f} to {ms['p90']:.2f})",
            "times faster": "" if base else row["doubt"] or _interval(row["ratio"]),
            "MAC ratio": "" if base else f"{row['mac_ratio']:.2f}",
            "saving realised": "" if base or realised is None else f"{100 * realised:.0f} %",
            "file, MB": "" if row["file_bytes"] is None else f"{row['file_bytes'] / 1e6:.2f}",
            "output error": f"{row['output_error']:.0e}",
            "mJ": f"{1e3 * row['energy']['joule']:.1f}" if row["energy"]["joule"] else "",
            "blocks apart": f"{row['spread_percent']:.0f} %", "clock fell in blocks": row["throttled"],
            "runs": row["runs"],
        })  # fmt: skip
    return pd.DataFrame(table).set_index(["device", "network", "precision"])


def printed_columns(runs: Sequence[Run]) -> pd.DataFrame:
    """Table 1 of Kim et al. 2016: the printed Galaxy S6 columns beside this device's; empty where not measured."""
    by_model = {row["model"]: row for row in _judged(runs) if row["precision"] == "fp32"}
    printed = {(cell.row, cell.column): cell for cell in claims.load("kim2016").tables["table1"].cells}
    ours = f"this {_place(runs)[0]}" if runs else "not measured"
    rows: dict[str, dict[str, str]] = {}
    for name, column in [key for key in printed if key[1] in ("s6_ms", "s6_mj")]:
        unit = "ms" if column == "s6_ms" else "mJ"
        row = rows.setdefault(name, {})
        row[f"Galaxy S6, {unit} (paper, {printed[name, column].status})"] = printed[name, column].value
        row[f"{ours}, {unit}"] = _ours(by_model, name, unit)
    return pd.DataFrame(rows).T.rename_axis("row")


def _place(runs: Sequence[Run]) -> tuple[str, str, str]:
    """Kind of device, its name, and the engine of all rows; errors as in :func:`one_line`."""
    places = {(row["device"], row["where"]["name"], row["where"]["engine"]) for row in _rows(runs)}
    if len(places) != 1:
        raise ValueError(f"one table, one device, but these rows are of {sorted(places)}")
    return places.pop()


def _ours(by_model: Mapping[str, Row], name: str, unit: str) -> str:
    change = name.endswith(" change")
    row = by_model.get(name.replace(" change", "*"))
    if row is None:
        return ""
    if unit == "ms":
        return (row["doubt"] or f"x{row['ratio']['median']:.2f}") if change else f"{row['ms']['median']:.2f}"
    energies = [row["energy"], by_model[row["base"]]["energy"]] if change else [row["energy"]]
    if missing := [energy for energy in energies if not energy["joule"]]:  # 0 J is a meter that stood still
        return missing[0]["reason"] or "not measured"
    return f"x{energies[1]['joule'] / energies[0]['joule']:.2f}" if change else f"{1e3 * energies[0]['joule']:.1f}"


def layer_columns(run: Run) -> pd.DataFrame:
    """Table 2 of Kim et al. 2016: milliseconds of each layer, its chain (with its factors) and their ratio."""
    printed = {(cell.row, cell.column): cell.value for cell in claims.load("kim2016").tables["table2"].cells}
    rows, by_model = {}, {row["model"]: row for row in _judged([run]) if row["precision"] == "fp32"}
    for name in run["measurements"]["layers"]:
        base, chain = by_model[name], by_model[f"{name}*"]
        parts = [row for model, row in by_model.items() if model.startswith(f"{name}.")]
        factors = " + ".join(f"{row['ms']['median']:.3f}" for row in parts)
        ours = {
            name: f"{base['ms']['median']:.3f}",
            f"{name}*": f"{chain['ms']['median']:.3f} (factors {factors})",
            f"{name} change": f"{chain['doubt'] or 'x' + _interval(chain['ratio'])}, MAC x{chain['mac_ratio']:.2f}",
        }
        for row, text in ours.items():
            rows[row] = {"Galaxy S6, ms (paper)": printed.get((row, "s6_ms"), ""), f"this {base['device']}, ms": text}
    return pd.DataFrame(rows).T.rename_axis("row")


def lookup_table(rest: Sequence[Row], layers: Mapping[str, Mapping[str, Row]]) -> dict[str, Any]:
    """The look-up table that the latency-constrained search of Liu et al. 2019 reads, as plain JSON.

    Args:
        rest: rows of what no width changes (stem, classifier), which add up.
        layers: module path -> ``OUTxIN`` channels -> row of that layer.
    """
    rows = [row for shapes in layers.values() for row in shapes.values()] + list(rest)
    where = one_line([{"measurements": {"rows": rows}}])
    seconds = {path: {shape: 1e-3 * row["ms"]["median"] for shape, row in s.items()} for path, s in layers.items()}
    return {"where": where, "rest": sum(1e-3 * row["ms"]["median"] for row in rest), "layers": seconds}


def forms_picture(runs: Sequence[Run]) -> figures.Picture:
    """Speed-up over the original beside the ratio of multiply-accumulates; no bar where times were unsteady."""
    rows = [row for row in _judged(runs) if row["model"] != row["base"] and row["precision"] == "fp32"]
    names = [row["model"] for row in rows]
    return figures.bars(
        names,
        {
            "times faster": [row["ratio"]["median"] if row["ratio"] else np.nan for row in rows],
            "MAC ratio": [row["mac_ratio"] for row in rows],
        },
        "ratio to the original",
    )


def _interval(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _judged(runs: Sequence[Run]) -> list[Row]:
    """All rows by the rule of today: one that was stored with a ratio that would not be claimed now loses it."""
    judged: list[Row] = []
    for run in runs:
        rows = _rows([run])
        by_name = {(row["model"], row["precision"]): row for row in rows}
        for row in rows:
            why = doubt(by_name[row["base"], row["precision"]], row)
            judged.append({**row, "doubt": why, "ratio": None, "realised": None} if why else row)
    return judged


def _rows(runs: Sequence[Run]) -> list[Row]:
    rows: list[Row] = []
    for run in runs:
        found = run["measurements"]
        rows += found.get("rows", []) or [row for layer in found.get("layers", {}).values() for row in layer]
    return rows
