"""The printed numbers parse, the claims resolve, and every fault in a paper's data is refused by name."""

import dataclasses
from pathlib import Path

import pytest

from shrinkbook.evidence import claims, store
from shrinkbook.evidence.paper import STATUSES, PaperError

TOML = """\
key = "toy2020"
title = "Toy"
authors = "A. Author"
venue = "Nowhere"
year = 2020
arxiv = "2001.00001"

[counting]
text = "One FLOP is one multiply-accumulate."

[[deviation]]
id = "size"
text = "Smaller."

[[table]]
id = "table1"
file = "table1.csv"
caption = "Results."

[[figure]]
id = "figure1"
caption = "Curves."

[[claim]]
id = "toy2020.1"
number = 1
kind = "structural"
text = "It is cheap."
where = ["table1/base/flop", "table1/small/flop"]
experiments = ["toy2020.cost"]
stable = true

[[claim]]
id = "toy2020.2a"
number = 2
kind = "delta"
text = "It is as good."
where = ["table1/small/error", "table1/base/error"]
unit = "points"
margin = 0.7
better = "lower"
requires = "paper"
experiments = ["toy2020.retrain"]
stable = false

[[claim]]
id = "toy2020.2b"
number = 2
kind = "level"
text = "It is good."
where = ["table1/small/error"]
margin = 0.7
better = "lower"
requires = "paper"
experiments = ["toy2020.retrain"]
stable = false

[[claim]]
id = "toy2020.3"
number = 3
kind = "order"
text = "Small first."
where = ["figure1"]
printed = "smallest > largest"
source_status = "secondary"
margin = 0.5
order = ["order.smallest", "order.largest"]
experiments = ["toy2020.scan"]
stable = false

[[claim]]
id = "toy2020.4"
number = 4
kind = "trend"
text = "It grows."
where = ["figure1"]
printed = "grows"
source_status = "verified"
margin = 0
trend = { x = "trend.x", y = "trend.y", direction = 1 }
experiments = ["toy2020.scan"]
stable = false

[[claim]]
id = "toy2020.5"
number = 5
kind = "delta"
text = "Both norms agree."
where = ["figure1"]
printed = "0"
source_status = "verified"
margin = 0.5
better = "higher"
requires = "paper"
gap = "gaps.norms"
experiments = []
cost = "days"
stable = false
"""
CSV = """\
row,column,value,unit,status,note
base,error,6.75,%,verified,
base,flop,3.13e8,FLOP,secondary,
base,time,,s,missing,
small,error,6.60,%,recalled,"best, on test"
small,flop,2.06e8,FLOP,verified,
"""


def toy(folder: Path, toml: str = TOML, csv: str = CSV) -> Path:
    """A small paper on disk; returns the folder of papers."""
    (folder / "toy2020").mkdir()
    (folder / "toy2020" / "paper.toml").write_text(toml)
    (folder / "toy2020" / "table1.csv").write_text(csv)
    return folder


def test_a_paper_says_what_is_printed(tmp_path: Path) -> None:
    paper = claims.load("toy2020", toy(tmp_path))
    assert claims.papers(tmp_path) == ["toy2020"]
    assert [paper.printed(claim) for claim in paper.claims] == [
        "3.13e8, 2.06e8",
        "-0.15",  # exact: 6.60 - 6.75 in binary floating point is -0.15000000000000036
        "6.60",
        "smallest > largest",
        "grows",
        "0",
    ]
    expected = ["secondary", "recalled", "recalled", "secondary", "verified", "verified"]
    assert [paper.source_status(claim) for claim in paper.claims] == expected
    table = paper.tables["table1"]
    assert (table.rows, table.columns) == (["base", "small"], ["error", "flop", "time"])
    cell = paper.cell("table1/small/error")
    assert (cell.number, cell.address, cell.note) == (6.6, "table1/small/error", "best, on test")
    assert paper.cell("table1/base/time").number is None
    trend = paper.claim("toy2020.4").trend
    assert trend == {"x": "trend.x", "y": "trend.y", "direction": 1}
    assert paper.cells(paper.claim("toy2020.3")) == []
    with pytest.raises(dataclasses.FrozenInstanceError):
        paper.year = 2021  # type: ignore[misc]


def test_lookups_name_what_exists(tmp_path: Path) -> None:
    paper = claims.load("toy2020", toy(tmp_path))
    with pytest.raises(PaperError, match="no claim 'toy2020.9'.*toy2020.1"):
        paper.claim("toy2020.9")
    for address in ("table9/base/error", "table1/basis/error", "table1/base/eror"):
        with pytest.raises(PaperError, match="table1|base|error"):
            paper.cell(address)
    with pytest.raises(PaperError, match="table/row/column"):
        paper.cell("table1")
    with pytest.raises(PaperError, match="no paper 'toy1999'.*toy2020"):
        claims.load("toy1999", tmp_path)


# (text to replace in the CSV, its replacement, words the one-line message must hold)
CSV_FAULTS = [
    ("6.60", "6,60", ["table1.csv", "line 5", "7 fields"]),
    ("6.60", "6.6O", ["table1.csv", "'small'", "'error'", "6.6O"]),
    ("6.60", "nan", ["'small'", "nan"]),
    ("6.60", " 6.60", ["'small'", "' 6.60'"]),
    ("small,error,6.60", "small,error,", ["'small'", "no value", "recalled"]),
    (",,s,missing", ",1.2,s,missing", ["'base'", "'time'", "1.2", "missing"]),
    ("%,verified", "%,certain", ["'base'", "'error'", "certain", "secondary"]),
    ("small,flop,", "base,flop,", ["'base'", "'flop'", "twice", "line 6"]),
    ("base,time", "base/x,time", ["'base/x'", "'/'"]),
    ("base,time", "base ,time", ["'base '", "spaces"]),
    ("base,time", ",time", ["''", "empty"]),
    ("row,column", "rows,column", ["table1.csv", "first line"]),
    (CSV[CSV.index("base") :], "", ["table1.csv", "no cell"]),
    ('"best, on test"', '"best', ["table1.csv", "cannot be read"]),
]

# the same for paper.toml; a place of None faults the first occurrence in the file, else within that claim
TOML_FAULTS: list[tuple[str | None, str, str, list[str]]] = [
    (None, 'key = "toy2020"', "key = toy", ["paper.toml", "TOML"]),
    (None, 'key = "toy2020"', 'key = "toy2021"', ["'toy2021'", "the folder is 'toy2020'"]),
    (None, 'venue = "Nowhere"\n', "", ["'venue'", "missing"]),
    (None, "venue", "vanue", ["'vanue'", "venue"]),
    (None, "year = 2020", 'year = "2020"', ["'year'", "int"]),
    (None, "text =", "texts =", ["counting", "'texts'"]),
    (None, 'text = "Smaller."', 'text = ""', ["deviation size", "'text'", "empty"]),
    (None, "table1.csv", "table2.csv", ["toy2020/table2.csv", "cannot be read"]),
    (None, '[[table]]\nid = "table1"\nfile = "table1.csv"\ncaption = "Results."\n', "", ["table1.csv", "no [[table]]"]),
    (None, 'id = "figure1"', 'id = "table1"', ["table1", "twice"]),
    (None, 'id = "size"', 'id = "a/b"', ["deviation a/b", "'/'"]),
    (
        None,
        TOML[TOML.index("[counting]") : TOML.index("[[table]]")],
        'deviation = ["size"]\n[counting]\ntext = "One."\n',
        ["'deviation'", "[[deviation]]"],
    ),
    ("1", "stable =", "stabel =", ["'stabel'", "stable"]),
    ("1", "stable = true\n", "", ["'stable'", "missing"]),
    ("1", "stable = true", 'stable = "yes"', ["'stable'", "bool"]),
    ("1", "number = 1", "number = true", ["'number'", "int"]),
    ("1", "number = 1", "number = 7", ["toy2020.7"]),
    ("1", '["table1/base/flop", "table1/small/flop"]', "[]", ["'where' is empty"]),
    ("1", '"structural"', '"structure"', ["structure", "structural, level"]),
    ("1", "base/flop", "bass/flop", ["table1/bass/flop", "no row 'bass'", "base, small"]),
    ("1", "base/flop", "base/flops", ["no column 'flops'", "error, flop, time"]),
    ("1", "table1/base", "table7/base", ["no table 'table7'", "table1"]),
    ("1", '"table1/base/flop"', '"table7"', ["table7", "table1, figure1"]),
    ("1", "base/flop", "base/time", ["table1/base/time", "missing cell"]),
    ("1", "base/flop", "small/flop", ["table1/small/flop", "twice"]),
    ("1", '"table1/base/flop", ', '"figure1", ', ["structural", "cell"]),
    ("1", "stable", "margin = 0.1\nstable", ["no 'margin'"]),
    ("1", "stable", 'premise = "spread"\nstable', ["no 'premise'"]),
    ("1", "stable", 'printed = "3.13e8"\nstable', ["'printed'", "delete"]),
    ("1", "stable", 'source_status = "verified"\nstable', ["'source_status'", "derived"]),
    ("1", "toy2020.cost", "cost", ["'cost'", "toy2020.cost"]),
    ("1", '["toy2020.cost"]', "[]", ["experiment", "cost"]),
    ("2a", "margin = 0.7\n", "", ["'margin'", "missing"]),
    ("2a", "margin = 0.7", "margin = -0.7", ["margin -0.7"]),
    ("2a", "margin = 0.7", "margin = nan", ["margin nan"]),
    ("2a", 'better = "lower"\n', "", ["'better'", "missing"]),
    ("2a", '"lower"', '"less"', ["better 'less'", "lower or higher"]),
    ("2a", 'requires = "paper"\n', "", ["'requires'", "missing"]),
    ("2a", ', "table1/base/error"', "", ["delta", "2 cell"]),
    ("2b", '"table1/small/error"', '"table1/small/error", "table1/base/error"', ["level", "1 cell"]),
    ("3", 'order = ["order.smallest", "order.largest"]\n', "", ["'order' or 'gap'"]),
    ("3", "stable", 'gap = "gaps.x"\nstable', ["'order' or 'gap'"]),
    ("3", "stable", "at_most = 3\nstable", ["'at_most'", "'gap'"]),
    ("3", ', "order.largest"', "", ["'order'", "two"]),
    ("3", 'printed = "smallest > largest"\n', "", ["'printed'", "missing"]),
    ("3", 'source_status = "secondary"\n', "", ["'source_status'", "missing"]),
    ("3", '"secondary"', '"hearsay"', ["hearsay", "recalled"]),
    ("4", "trend = { x", "trend = { z", ["trend", "'z'"]),
    ("4", 'y = "trend.y", ', "", ["trend", "'y'", "missing"]),
    ("4", "direction = 1", "direction = 2", ["direction 2"]),
    ("4", "direction = 1", "direction = 1.5", ["'direction'", "int"]),
    ("4", 'trend = { x = "trend.x", y = "trend.y", direction = 1 }\n', "", ["'trend'", "missing"]),
    ("5", 'printed = "0"', 'printed = "none"', ["delta", "number"]),
    ("5", 'cost = "days"\n', "", ["experiment", "cost"]),
]


def one_line(error: pytest.ExceptionInfo[PaperError], words: list[str]) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert "toy2020" in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(("old", "new", "words"), CSV_FAULTS)
def test_a_faulty_table_is_refused_by_name(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    assert old in CSV
    folder = toy(tmp_path, csv=CSV.replace(old, new, 1))
    with pytest.raises(PaperError) as error:
        claims.load("toy2020", folder)
    one_line(error, words)


@pytest.mark.parametrize(("claim", "old", "new", "words"), TOML_FAULTS)
def test_a_faulty_claim_is_refused_by_name(
    tmp_path: Path, claim: str | None, old: str, new: str, words: list[str]
) -> None:
    start = TOML.index(f'id = "toy2020.{claim}"') if claim else 0
    assert old in TOML[start:]
    folder = toy(tmp_path, TOML[:start] + TOML[start:].replace(old, new, 1))
    with pytest.raises(PaperError) as error:
        claims.load("toy2020", folder)
    one_line(error, words + ([f"claim toy2020.{claim}"] if claim else []))


def test_a_claim_id_is_unique(tmp_path: Path) -> None:
    folder = toy(tmp_path, TOML.replace('"toy2020.2b"', '"toy2020.2a"'))
    with pytest.raises(PaperError) as error:
        claims.load("toy2020", folder)
    one_line(error, ["paper.toml", "claim toy2020.2a", "twice"])


@pytest.mark.parametrize("key", claims.papers())
def test_every_committed_cell_parses(key: str) -> None:
    paper = claims.load(key)
    cells = [cell for table in paper.tables.values() for cell in table.cells]
    assert cells
    for cell in cells:
        assert (cell.number is None) == (cell.status == "missing"), cell.address
        assert paper.cell(cell.address) is cell
    for claim in paper.claims:
        assert paper.printed(claim), claim.id
        assert paper.source_status(claim) in STATUSES
        assert claim.stable or claim.kind != "structural"


def test_li2017_is_complete() -> None:
    paper = claims.load("li2017")
    assert {claim.number for claim in paper.claims} == set(range(1, 18))
    for claim in paper.claims:
        if claim.kind == "structural":
            assert len(paper.cells(claim)) == len(claim.where) > 0
    assert len(paper.tables["table1"].rows) == 15
    assert len(paper.tables["table2"].rows) == 16
    assert {cell.status for table in ("table1", "table2") for cell in paper.tables[table].cells} == {"verified"}
    # every cost the paper prints is under a structural claim
    claimed = {place for claim in paper.claims if claim.kind == "structural" for place in claim.where}
    printed = {cell.address for cell in paper.tables["table1"].cells if cell.column != "error"}
    printed |= {c.address for c in paper.tables["table2"].cells if c.column not in ("width", "maps")}
    assert claimed == printed


@pytest.mark.parametrize(
    ("table", "whole", "part", "percent", "tolerance"),
    [("table1", "flop", "flop", "flop_pruned", 0.35), ("table1", "params", "params", "params_pruned", 0.75)]
    + [("table3", "time", "time", "time_saved", 0.4)],
)
def test_li2017_percentages_follow_from_the_absolute_cells(
    table: str, whole: str, part: str, percent: str, tolerance: float
) -> None:
    """A slip of the pen in a cell breaks the paper's own arithmetic; the tolerance covers the printed digits."""
    cells = claims.load("li2017").tables[table]
    rows = [cell.row for cell in cells.cells if cell.column == percent]
    assert len(rows) >= 4
    for row in rows:
        base, smaller = cells.cell(row.split("-pruned")[0], whole).number, cells.cell(row, part).number
        printed = cells.cell(row, percent).number
        assert base and smaller and printed
        assert 100 * (1 - smaller / base) == pytest.approx(printed, abs=tolerance), row


def test_papers_are_read_from_the_repository() -> None:
    assert "li2017" in claims.papers()
    assert (store.papers_dir() / "li2017" / "paper.toml").is_file()
