"""A paper as its reader finds it: tables cell by cell with what is known of each, figures, deviations, claims."""

from dataclasses import dataclass
from decimal import Decimal
from typing import TypedDict

STATUSES = ("verified", "secondary", "recalled", "missing")  # best first


class PaperError(ValueError):
    """Paper data that cannot be right; one line naming the file and the row, key or claim."""


class Trend(TypedDict):
    """Paths to two lists inside a run's measurements, and the sign (1 or -1) the slope of y over x should have."""

    x: str
    y: str
    direction: int


@dataclass(frozen=True)
class Cell:
    """One printed number: ``value`` as printed (empty if its status is `missing`)."""

    table: str
    row: str
    column: str
    value: str
    unit: str
    status: str
    note: str

    @property
    def number(self) -> float | None:
        """The value as a number, None where it is missing."""
        return float(self.value) if self.value else None

    @property
    def address(self) -> str:
        """``table/row/column``."""
        return f"{self.table}/{self.row}/{self.column}"


@dataclass(frozen=True)
class Table:
    """A printed table; only the cells that the paper fills."""

    id: str
    caption: str
    cells: tuple[Cell, ...]

    @property
    def rows(self) -> list[str]:
        """Row names in the paper's order."""
        return list(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def columns(self) -> list[str]:
        """Column names in the order of their first appearance."""
        return list(dict.fromkeys(cell.column for cell in self.cells))

    def cell(self, row: str, column: str) -> Cell:
        """The cell at a row and column; raises a PaperError that lists what exists."""
        found = {cell.column: cell for cell in self.cells if cell.row == row}
        if not found:
            raise PaperError(f"{self.id} has no row '{row}'; its rows are {', '.join(self.rows)}")
        if column not in found:
            raise PaperError(f"{self.id}/{row} has no column '{column}'; it has {', '.join(found)}")
        return found[column]


@dataclass(frozen=True)
class Figure:
    """A figure of the paper: what it shows and what to look for."""

    id: str
    caption: str


@dataclass(frozen=True)
class Deviation:
    """Something done otherwise than the paper, printed wherever the results are."""

    id: str
    text: str


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper and the rule that judges it; the kind says which keys the rule needs.

    `tolerance` is for orders of the form "not worse": the gap counts from that much below zero. `at_most` is for those
    of the form "at most so much": the gap is the room that is left below it, and what is shown is the quantity itself.
    `premise` is the path of a number that must be positive in the median over the runs, or the task cannot tell and
    the word is `inconclusive`.
    """

    paper: str
    id: str
    number: int
    kind: str
    text: str
    where: tuple[str, ...]
    experiments: tuple[str, ...]
    stable: bool
    unit: str = ""
    margin: float | None = None
    better: str | None = None
    requires: str | None = None
    order: tuple[str, ...] = ()
    gap: str | None = None
    premise: str | None = None
    trend: Trend | None = None
    tolerance: float | None = None
    at_most: float | None = None
    printed: str | None = None
    source_status: str | None = None
    cost: str = ""


@dataclass(frozen=True)
class Paper:
    """A paper's bibliography, printed tables, figures, deviations and claims."""

    key: str
    title: str
    authors: str
    venue: str
    year: int
    arxiv: str
    counting: str
    tables: dict[str, Table]
    figures: dict[str, Figure]
    deviations: tuple[Deviation, ...]
    claims: tuple[Claim, ...]

    def cell(self, address: str) -> Cell:
        """The cell at ``table/row/column``; raises a PaperError that lists what exists."""
        table, _, rest = address.partition("/")
        row, slash, column = rest.partition("/")
        if table not in self.tables:
            raise PaperError(f"{self.key} has no table '{table}'; its tables are {', '.join(self.tables)}")
        if not slash:
            raise PaperError(f"'{address}' is no cell; write table/row/column")
        return self.tables[table].cell(row, column)

    def claim(self, claim_id: str) -> Claim:
        """The claim with this id; raises a PaperError that lists what exists."""
        for claim in self.claims:
            if claim.id == claim_id:
                return claim
        raise PaperError(f"{self.key} has no claim '{claim_id}'; it has {', '.join(c.id for c in self.claims)}")

    def cells(self, claim: Claim) -> list[Cell]:
        """The cells that a claim names; empty if it names figures or whole tables only."""
        return [self.cell(place) for place in claim.where if "/" in place]

    def printed(self, claim: Claim) -> str:
        """What the paper prints: the claim's own words, a - b of a delta's two cells, else the cells' values."""
        if claim.printed is not None:
            return claim.printed
        values = [cell.value for cell in self.cells(claim)]
        if claim.kind == "delta":
            return format(Decimal(values[0]) - Decimal(values[1]), "f")
        return ", ".join(values)

    def source_status(self, claim: Claim) -> str:
        """How well the printed side is known: the worst status among the claim's cells and what the claim states."""
        stated = [claim.source_status] if claim.source_status else []
        return max([*stated, *(cell.status for cell in self.cells(claim))], key=STATUSES.index)
