"""The paper's printed tables with the record's and our values beside the printed ones."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from decimal import ROUND_HALF_UP, Decimal

import pandas as pd

from shrinkbook.evidence import samples, statistics
from shrinkbook.evidence.paper import Cell, Table
from shrinkbook.evidence.samples import Run, at_chance

NOTHING = "—"
FULL = ("paper", "none")  # schedules that need no mark: the paper's own, and nothing trained
ARITHMETIC = "arithmetic"  # schedule of runs whose cells follow from printed ones: their digits get a word, no column
LEARNT = ("saved", "flop", "zeros")  # columns that say something only of a network that learnt


def side_by_side(
    table: Table, record: Sequence[Run], runs: Sequence[Run], structural: Collection[str] = ()
) -> pd.DataFrame:
    """One line a printed cell: row, column, paper, record, ours, word.

    Args:
        table: the printed table.
        record: committed runs of the table's paper, of one profile.
        runs: runs of this machine, same paper and profile.
        structural: addresses of the cells that are judged by their digits; only these get a word, of the arithmetic
            where there is one.
    """
    lines = []
    for cell in table.cells:
        judged = (_values(cell, runs, arithmetic=True) or _values(cell, runs)) if cell.address in structural else []
        word = statistics.agree(judged[0][0], cell.value) if judged else ""
        lines.append(
            [cell.row, cell.column, _printed(cell), _ours(table, cell, record), _ours(table, cell, runs), word]
        )
    return pd.DataFrame(lines, columns=["row", "column", "paper", "record", "ours", "word"])


def wide(
    table: Table, record: Sequence[Run], runs: Sequence[Run], columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """The printed table's own shape, each cell as `paper | record | ours`.

    Args:
        table: the printed table.
        record: committed runs of the table's paper, of one profile.
        runs: runs of this machine, same paper and profile.
        columns: columns of the table to show, default all.
    """
    shown = table.columns if columns is None else list(columns)
    frame = pd.DataFrame("", index=pd.Index(table.rows, name="row"), columns=shown)
    for cell in table.cells:
        if cell.column in shown:
            three = (_printed(cell), _ours(table, cell, record), _ours(table, cell, runs))
            frame.loc[cell.row, cell.column] = NOTHING if set(three) == {NOTHING} else " | ".join(three)
    units = {name: {cell.unit for cell in table.cells if cell.column == name} for name in shown}
    shared = {name: next(iter(found)) for name, found in units.items() if len(found) == 1}
    return frame.rename(columns={name: f"{name} [{unit}]" for name, unit in shared.items() if unit})


def sources(table: Table, runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs behind our value of each printed cell, by the cell's address; cells without one are left out."""
    found = {cell.address: [run for _, run in _values(cell, runs)] for cell in table.cells}
    return {address: behind for address, behind in found.items() if behind}


def format_like(value: float, printed: str, extra: int = 0) -> str:
    """A number with the digits of a printed one: 313463808 like `3.13e8` is `3.13e8`, 34.1936 like `34.2` is `34.2`.

    Where nothing was printed, four significant digits, whole numbers in full. `extra` digits show why a number that
    truncates to the printed one does not round to it; whole numbers have none to show.
    """
    exact = Decimal(repr(value))
    if not printed:
        return f"{value:d}" if isinstance(value, int) else f"{value:.4g}"
    if extra and isinstance(value, int) and "e" not in printed:
        return str(value)
    mantissa, power, _ = printed.partition("e")
    places = len(mantissa.partition(".")[2]) + extra
    if not power:
        text = format(exact.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP), "f")
        return text.removeprefix("-") if float(text) == 0 else text
    if not exact:
        return "0"
    exponent = exact.adjusted()
    digits = exact.scaleb(-exponent).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)
    if abs(digits) >= 10:
        digits, exponent = (digits / 10).quantize(Decimal(1).scaleb(-places)), exponent + 1
    return f"{digits}e{exponent}"


def markdown(frame: pd.DataFrame) -> str:
    """A DataFrame as a Markdown table; vertical bars inside a cell are escaped."""
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.to_numpy().tolist()]
    return "".join("| " + " | ".join(str(value).replace("|", "\\|") for value in row) + " |\n" for row in rows)


def _values(cell: Cell, runs: Iterable[Run], arithmetic: bool = False) -> list[tuple[float, Run]]:
    """Our values for a cell, one a seed, from one experiment at one schedule: the paper's, else none, else another.

    Or those that are arithmetic on printed numbers.
    """
    runs = [run for run in runs if (samples.schedule(run) == ARITHMETIC) == arithmetic]
    found: dict[tuple[int, str, str], dict[int, tuple[float, Run]]] = {}
    for experiment, profile in sorted({(run["experiment"], run["profile"]) for run in runs}):
        for run in samples.usable(runs, experiment, profile):
            value = samples.cell_value(run, cell)
            if value is not None and not (cell.column in LEARNT and _collapsed(run, cell)):
                budget = samples.schedule(run)
                rank = FULL.index(budget) if budget in FULL else len(FULL)
                found.setdefault((rank, budget, experiment), {}).setdefault(run["seed"], (value, run))
    return list(found[min(found)].values()) if found else []


def _collapsed(run: Run, cell: Cell) -> bool:
    """Whether the network of this row is one that made the run collapse; one run trains several."""
    accuracy = run["cells"].get(cell.table, {}).get(cell.row, {}).get("accuracy")
    return run["status"] == "collapsed" and accuracy is not None and at_chance(run, accuracy)


def _printed(cell: Cell) -> str:
    if not cell.value:
        return NOTHING
    return cell.value if cell.status == "verified" else f"{cell.value} [{cell.status}]"


def _ours(table: Table, cell: Cell, runs: Iterable[Run]) -> str:
    """Mean ± sd (n) with the printed digits, and a mark for a short schedule and for networks that stayed at chance.

    The sd is left out where all seeds give the same number.
    """
    found = _values(cell, runs)
    if not found:
        return NOTHING
    like = cell.value or next((other.value for other in table.cells if other.column == cell.column and other.value), "")
    values = [value for value, _ in found]
    spread = statistics.deviation(values)
    if spread:
        mean, sd = math.fsum(values) / len(values), format_like(spread, like)
        text = f"{format_like(mean, like)} ± {sd} ({len(values)})"
    else:
        text = format_like(values[0], like)
    budget = samples.schedule(found[0][1])
    marks = [] if budget in FULL else [budget]
    if collapsed := sum(_collapsed(run, cell) for _, run in found):
        marks.append("collapsed" if collapsed == len(found) else f"{collapsed} of {len(found)} collapsed")
    return f"{text} [{', '.join(marks)}]" if marks else text
