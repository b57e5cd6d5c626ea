"""Sets of feature maps as they flow through a network: side by side, tied by a sum or product, or left as they are."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(eq=False)
class Maps:
    """Maps written together. Once they are tied to others, ``same`` leads to the set that both belong to."""

    count: int
    producers: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # depth, order, level
    norms: dict[str, tuple[int, int]] = field(default_factory=dict)
    consumers: dict[str, tuple[int, int]] = field(default_factory=dict)
    beside: set[str] = field(default_factory=set)  # norms and consumers that see other maps too
    reason: str = ""
    same: "Maps | None" = None

    def found(self) -> "Maps":
        """The set that these maps belong to by now."""
        return self if self.same is None else self.same.found()

    def tie(self, other: "Maps") -> None:
        """Make one set of two."""
        one, two = self.found(), other.found()
        if one is two:
            return
        two.same = one
        if twice := (one.norms.keys() & two.norms.keys()) | (one.consumers.keys() & two.consumers.keys()):
            one.reason = one.reason or f"{min(twice)} reads the same maps at two places"
        one.reason = one.reason or two.reason
        one.producers |= two.producers
        one.norms |= two.norms
        one.consumers |= two.consumers
        one.beside |= two.beside


@dataclass(frozen=True)
class Value:
    """What flows between two operations.

    Args:
        parts: sets of maps, one after the other along the channels; none if they are not known, as in an image.
        flat: the maps' pixels stand in a row.
        silent: a map whose filters and batch norms are zero is zero here too.
        depth, level: convolutions and reductions of the size on the way from the input.
        why: nothing is known of the maps, if an operation is to blame.
    """

    parts: tuple[Maps, ...] = ()
    flat: bool = False
    silent: bool = True
    depth: int = 0
    level: int = 0
    why: str = ""

    @property
    def counts(self) -> tuple[int, ...]:
        """Maps of each part."""
        return tuple(part.count for part in self.parts)

    def fix(self, reason: str) -> None:
        """Leave these maps as they are; the first reason stands."""
        for part in self.parts:
            part.found().reason = part.found().reason or reason


def fix(values: Iterable[Value], reason: str) -> None:
    """Leave the maps of all these values as they are."""
    for value in values:
        value.fix(reason)


def side_by_side(values: Sequence[Value | None]) -> Value | None:
    """A concatenation along the channels; None if something in it is not known."""
    known = [value for value in values if value is not None and value.parts and not value.flat]
    if len(known) < len(values):
        return None
    parts = tuple(part for value in known for part in value.parts)
    highest = (max(value.depth for value in known), max(value.level for value in known))
    return Value(parts, False, all(value.silent for value in known), *highest)


def tied(values: Sequence[Value], product: bool) -> Value | None:
    """A sum, or a product, of maps with maps: each goes with its partner; None if they do not pair up."""
    first, second = values[:2]
    if len(values) > 2 or first.flat != second.flat or not first.parts or not second.parts:
        return None
    if product and (first.counts == (1,)) != (second.counts == (1,)):  # one map for all
        one, other = (first, second) if first.counts == (1,) else (second, first)
        one.fix("its single map multiplies others")
        return other
    if first.counts != second.counts:
        return None
    for maps, partner in zip(first.parts, second.parts, strict=True):
        maps.tie(partner)
    joined: Callable[[Iterable[bool]], bool] = any if product else all
    silent = joined(value.silent for value in values)
    return Value(first.parts, first.flat, silent, max(first.depth, second.depth), max(first.level, second.level))
