"""Papers read from ``data/papers/<key>``, their printed numbers and claims checked on load.

``paper.toml`` holds the bibliography, deviations and claims, one CSV a printed table holds the numbers. A claim names
the cells it rests on; it never repeats their numbers. Whatever cannot be right is refused with one line that names the
file and the row or claim.
"""

import csv
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from shrinkbook.evidence import store
from shrinkbook.evidence.paper import STATUSES, Cell, Claim, Deviation, Figure, Paper, PaperError, Table

HEADER = ["row", "column", "value", "unit", "status", "note"]
KINDS = ("structural", "level", "delta", "ratio", "order", "trend")
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?")
TEXTS = ("id", "kind", "text", "printed", "unit", "better", "requires", "gap", "premise", "source_status", "cost")
TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(TEXTS, str),
    **dict.fromkeys(("where", "experiments", "order"), list),
    "number": int,
    "margin": (int, float),
    "tolerance": (int, float),
    "at_most": (int, float),
    "trend": dict,
    "stable": bool,
}
REQUIRED = ("id", "number", "kind", "text", "where", "experiments", "stable")


def papers(folder: Path | None = None) -> list[str]:
    """Keys of the papers in ``folder`` (default ``data/papers``), sorted."""
    return sorted(path.parent.name for path in (folder or store.papers_dir()).glob("*/paper.toml"))


def load(key: str, folder: Path | None = None) -> Paper:
    """Read and check one paper's tables and claims.

    Args:
        key: the paper's folder name, such as ``li2017``.
        folder: folder of the papers, default ``data/papers``.

    Raises:
        PaperError: anything that cannot be right, in one line.
    """
    base = folder or store.papers_dir()
    if key not in papers(base):
        raise PaperError(f"no paper '{key}' in {base}; there are {', '.join(papers(base)) or 'none'}")
    place = f"{key}/paper.toml"
    try:
        data = tomllib.loads((base / key / "paper.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PaperError(f"{place}: not readable as TOML: {str(error).splitlines()[0]}") from error
    texts = ("key", "title", "authors", "venue", "arxiv")
    lists = ("deviation", "table", "figure", "claim")
    _keys(place, data, {*texts, *lists, "year", "counting"}, {*texts, "year", "counting", "claim"})
    _types(place, data, {**dict.fromkeys(texts, str), **dict.fromkeys(lists, list), "year": int, "counting": dict})
    for name in lists:
        if not all(isinstance(entry, dict) for entry in data.get(name, [])):
            raise PaperError(f"{place}: '{name}' must be written as [[{name}]] entries")
    if data["key"] != key:
        raise PaperError(f"{place}: key is '{data['key']}', but the folder is '{key}'")
    _keys(f"{place}: counting", data["counting"], ("text",), ("text",))
    _types(f"{place}: counting", data["counting"], {"text": str})
    tables = {
        entry["id"]: Table(entry["id"], entry["caption"], tuple(_cells(base / key, entry["file"], entry["id"])))
        for entry in _entries(place, data, "table", ("id", "file", "caption"))
    }
    figures = {entry["id"]: Figure(**entry) for entry in _entries(place, data, "figure", ("id", "caption"))}
    _unique(place, "table or figure", [*tables, *figures])
    listed = [entry["file"] for entry in data.get("table", [])]
    for path in sorted((base / key).glob("*.csv")):
        if path.name not in listed:
            raise PaperError(f"{key}/{path.name}: no [[table]] of paper.toml names this file; add one or delete it")
    paper = Paper(
        **{name: data[name] for name in (*texts, "year")},
        counting=data["counting"]["text"],
        tables=tables,
        figures=figures,
        deviations=tuple(Deviation(**entry) for entry in _entries(place, data, "deviation", ("id", "text"))),
        claims=(),
    )
    claims = [_claim(place, paper, entry, index) for index, entry in enumerate(data["claim"], 1)]
    _unique(place, "claim", [claim.id for claim in claims])
    return replace(paper, claims=tuple(claims))


def _keys(place: str, entry: Mapping[str, Any], known: Iterable[str], required: Iterable[str]) -> None:
    """Refuse keys that are not known (a typo would otherwise be silently ignored) and missing ones."""
    if unknown := sorted(set(entry) - set(known)):
        raise PaperError(f"{place}: unknown key '{unknown[0]}'; known are {', '.join(sorted(known))}")
    if missing := sorted(set(required) - set(entry)):
        raise PaperError(f"{place}: the key '{missing[0]}' is missing")


def _types(place: str, entry: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Refuse values of another type than the key's, and empty texts."""
    for key, value in entry.items():
        kind = types[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            name = kind.__name__ if isinstance(kind, type) else "number"
            raise PaperError(f"{place}: '{key}' must be {name}, not {type(value).__name__}")
        if kind is str and key != "unit" and not value.strip():
            raise PaperError(f"{place}: '{key}' is empty; fill it in or leave the key out")


def _unique(place: str, name: str, ids: list[str]) -> None:
    for id_ in ids:
        if ids.count(id_) > 1:
            raise PaperError(f"{place}: {name} {id_} appears twice; ids are unique")


def _entries(place: str, data: Mapping[str, Any], name: str, keys: tuple[str, ...]) -> list[dict[str, str]]:
    """The [[name]] entries of a paper.toml, each with exactly these text keys and an id of its own."""
    entries: list[dict[str, str]] = data.get(name, [])
    for index, entry in enumerate(entries, 1):
        here = f"{place}: {name} {entry.get('id', index)}"
        _keys(here, entry, keys, keys)
        _types(here, entry, dict.fromkeys(keys, str))
        if "/" in entry["id"]:
            raise PaperError(f"{here}: an id must not hold '/', which separates table, row and column")
    _unique(place, name, [entry["id"] for entry in entries])
    return entries


def _cells(folder: Path, file: str, table: str) -> list[Cell]:
    """Read and check one table's CSV."""
    place = f"{folder.name}/{file}"
    try:
        with (folder / file).open(encoding="utf-8", newline="") as stream:
            lines = list(csv.reader(stream, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise PaperError(f"{place}: cannot be read ({why})") from error
    if not lines or lines[0] != HEADER:
        raise PaperError(f"{place}: the first line must be {','.join(HEADER)}")
    if len(lines) == 1:
        raise PaperError(f"{place}: holds no cell; add one or leave the table out")
    cells: dict[tuple[str, str], Cell] = {}
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(HEADER):
            raise PaperError(f"{place}, line {number}: {len(line)} fields instead of {len(HEADER)}; quote commas")
        cell = Cell(table, *line)
        here = f"{place}, row '{cell.row}', column '{cell.column}'"
        for name in (cell.row, cell.column):
            if not name or name != name.strip() or "/" in name:
                raise PaperError(f"{here}: names are not empty, have no outer spaces and no '/'")
        if cell.status not in STATUSES:
            raise PaperError(f"{here}: status '{cell.status}' is unknown; use one of {', '.join(STATUSES)}")
        if cell.status == "missing" and cell.value:
            raise PaperError(f"{here}: has the value {cell.value} but the status 'missing'; correct one of them")
        if cell.status != "missing" and not cell.value:
            raise PaperError(f"{here}: has no value but the status '{cell.status}'; correct one of them")
        if cell.value and not NUMBER.fullmatch(cell.value):
            raise PaperError(f"{here}: value '{cell.value}' is no number; write it as printed, such as 6.75 or 3.13e8")
        if (cell.row, cell.column) in cells:
            raise PaperError(f"{here}: appears twice (again in line {number}); delete one")
        cells[cell.row, cell.column] = cell
    return list(cells.values())


def _claim(place: str, paper: Paper, entry: dict[str, Any], index: int) -> Claim:
    """Check one [[claim]] against the paper's tables and figures."""
    here = f"{place}: claim {entry.get('id', f'number {index} in the file')}"
    _keys(here, entry, TYPES, REQUIRED)
    _types(here, entry, TYPES)
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    claim = Claim(paper.key, **values)
    if not re.fullmatch(rf"{re.escape(paper.key)}\.{claim.number}[a-z]?", claim.id):
        raise PaperError(f"{here}: the id must be '{paper.key}.{claim.number}' and perhaps a letter")
    if claim.kind not in KINDS:
        raise PaperError(f"{here}: kind '{claim.kind}' is unknown; use one of {', '.join(KINDS)}")
    _where(here, paper, claim)
    _rule(here, paper, claim)
    for experiment in claim.experiments:
        if not isinstance(experiment, str) or not store.EXPERIMENT.fullmatch(experiment):
            raise PaperError(f"{here}: experiment {experiment!r} must look like '{paper.key}.cost'")
    if not claim.experiments and not claim.cost:
        raise PaperError(f"{here}: names no experiment; add one, or a 'cost' that says why it is not attempted")
    return claim


def _where(here: str, paper: Paper, claim: Claim) -> None:
    """Every place a claim names must exist, once, and a cell that is compared must hold a number."""
    if not claim.where:
        raise PaperError(f"{here}: 'where' is empty; name at least one cell, table or figure")
    for place in claim.where:
        if not isinstance(place, str) or claim.where.count(place) > 1:
            raise PaperError(f"{here}: where names {place!r} wrongly or twice; each place is one text, once")
        if "/" not in place:
            if place not in paper.tables and place not in paper.figures:
                known = ", ".join([*paper.tables, *paper.figures]) or "none"
                raise PaperError(f"{here}: where '{place}' is no table or figure; there are {known}")
            continue
        try:
            cell = paper.cell(place)
        except PaperError as error:
            raise PaperError(f"{here}: where '{place}' does not resolve: {error}") from error
        if not cell.value:
            raise PaperError(f"{here}: where '{place}' is a missing cell; a claim needs a printed number")


def _rule(here: str, paper: Paper, claim: Claim) -> None:
    """The keys by which a claim is judged: those its kind needs, and no others."""
    cells, kind = paper.cells(claim), claim.kind
    by_gap = kind == "delta" and claim.gap is not None  # a difference the paper gives in words or a figure only
    numeric = kind in ("structural", "level", "delta", "ratio") and not by_gap
    needs = {
        "structural": set(),
        "level": {"margin", "better", "requires"},
        "delta": {"margin", "better", "requires"} | ({"gap"} if by_gap else set()),
        "ratio": {"margin", "better"},
        "order": {"margin"} | ({"gap"} if claim.gap is not None else {"order"}),
        "trend": {"margin", "trend"},
    }[kind]
    if kind == "order" and bool(claim.order) == (claim.gap is not None):
        raise PaperError(f"{here}: an order claim has either 'order' or 'gap', not both and not neither")
    optional = {
        "structural": set(),
        "order": {"requires", "tolerance", "at_most", "premise"},
        "trend": {"requires", "premise"},
    }.get(kind, {"requires"})
    for key in ("margin", "better", "requires", "order", "gap", "trend", "tolerance", "at_most", "premise"):
        given = getattr(claim, key) not in (None, ())
        if key in needs and not given:
            raise PaperError(f"{here}: the key '{key}' is missing; a {kind} claim needs it")
        if given and key not in needs | optional:
            raise PaperError(f"{here}: a {kind} claim has no '{key}'; delete it")
    if claim.better not in (None, "lower", "higher"):
        raise PaperError(f"{here}: better '{claim.better}' is unknown; use lower or higher")
    if claim.margin is not None and not 0 <= claim.margin < float("inf"):
        raise PaperError(f"{here}: margin {claim.margin} must be a number from 0 up")
    if claim.tolerance is not None and not 0 < claim.tolerance < float("inf"):
        raise PaperError(f"{here}: tolerance {claim.tolerance} must be positive; leave it out for a strict order")
    if claim.at_most is not None and (claim.gap is None or claim.tolerance is not None):
        raise PaperError(f"{here}: 'at_most' goes with a 'gap' that is the room below it, and with no 'tolerance'")
    if claim.order and (len(claim.order) < 2 or not all(isinstance(path, str) and path for path in claim.order)):
        raise PaperError(f"{here}: 'order' needs at least two paths, best first")
    if claim.trend is not None:
        _keys(f"{here}, trend", claim.trend, ("x", "y", "direction"), ("x", "y", "direction"))
        _types(f"{here}, trend", claim.trend, {"x": str, "y": str, "direction": int})
        if claim.trend["direction"] not in (1, -1):
            raise PaperError(f"{here}: trend direction {claim.trend['direction']} must be 1 (rises) or -1 (falls)")
    wanted = {"level": 1, "ratio": 1, "delta": 2}.get(kind)
    if numeric and (len(cells) != len(claim.where) or wanted not in (None, len(cells))):
        raise PaperError(f"{here}: a {kind} claim names {wanted or 'only'} cell(s) table/row/column in 'where'")
    if numeric and claim.printed is not None:
        raise PaperError(f"{here}: 'printed' repeats what the cells say; delete it")
    if not numeric and claim.printed is None and not (cells and not by_gap):
        raise PaperError(f"{here}: the key 'printed' is missing; without cells the claim says it in short words")
    if by_gap and (cells or not NUMBER.fullmatch(claim.printed or "")):
        raise PaperError(f"{here}: a delta with 'gap' names a figure or table and has a number as 'printed'")
    if claim.source_status is None and not cells:
        raise PaperError(f"{here}: 'source_status' is missing; no cell of this claim carries one")
    if claim.source_status not in (None, *STATUSES):
        raise PaperError(f"{here}: source_status '{claim.source_status}' is unknown; use one of {', '.join(STATUSES)}")
    known = max((STATUSES.index(cell.status) for cell in cells), default=-1)
    if claim.source_status is not None and STATUSES.index(claim.source_status) <= known:
        raise PaperError(f"{here}: 'source_status' is derived from the cells; delete it, or state a worse one")
