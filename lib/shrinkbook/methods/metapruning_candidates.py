"""What a search over width vectors is asked and what it has seen: its constraint, its settings, the candidates so far.

Liu et al. 2019, section 3.3. :mod:`shrinkbook.methods.metapruning_search` searches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from shrinkbook.methods.metapruning_space import Genes


@dataclass(frozen=True)
class Constraint:
    """A cost, and between which bounds it must lie.

    Args:
        cost: of a width vector: multiply-accumulates, or seconds from a look-up table.
        most: the budget.
        least: 0, or the other end of a band (the authors search ResNet-50 between 1950M and 2050M).
        unit: for messages.
    """

    cost: Callable[[Genes], float]
    most: float
    least: float = 0.0
    unit: str = "multiply-accumulates"

    def meets(self, genes: Genes) -> bool:
        """Whether a vector may be considered."""
        return self.least <= self.cost(genes) <= self.most


@dataclass(frozen=True)
class Evolution:
    """Settings of the search, by default the authors': at most 50 x 20 = 1000 evaluations.

    Args:
        population: vectors of the first generation, and children of every later one.
        mutations: of the children, made by mutation.
        crossovers: of the children, made by crossover; what both cannot supply is drawn at random.
        probability: of each gene to be mutated.
        generations: how many.
        parents: the best so far that may have children.
        lowest, highest: range of random genes; the authors draw 12 to 23 of 31 for ResNet-50. None for the largest.

    Raises:
        ValueError: fewer than two parents, or children of more kinds than the population holds.
    """

    population: int = 50
    mutations: int = 25
    crossovers: int = 25
    probability: float = 0.1
    generations: int = 20
    parents: int = 10
    lowest: int = 0
    highest: int | None = None

    def __post_init__(self) -> None:
        if self.parents < 2 or self.generations < 1 or not 0 < self.probability <= 1:
            raise ValueError("a search needs at least 2 parents, 1 generation and 0 < probability <= 1")
        if self.mutations + self.crossovers > self.population:
            raise ValueError(
                f"{self.mutations} + {self.crossovers} children do not fit a population of {self.population}"
            )

    def range_of(self, choices: int) -> tuple[int, int]:
        """The lowest and the highest random gene of so many choices.

        Raises:
            ValueError: there is no gene between them.
        """
        low, high = self.lowest, choices - 1 if self.highest is None else self.highest
        if not 0 <= low <= high < choices:
            raise ValueError(f"random genes from {low} to {high}: they must rise and lie in 0 to {choices - 1}")
        return low, high


@dataclass(frozen=True)
class Candidate:
    """A vector that was evaluated; origin is random, mutation or crossover."""

    genes: Genes
    fitness: float
    cost: float
    origin: str


@dataclass
class Search:
    """What a search has evaluated so far, generation by generation: plain data, to be saved and continued."""

    generations: list[list[Candidate]] = field(default_factory=list)

    @property
    def candidates(self) -> list[Candidate]:
        """All of them, in the order of their evaluation."""
        return [one for generation in self.generations for one in generation]

    @property
    def best(self) -> Candidate:
        """The fittest; the first of several."""
        return max(self.candidates, key=lambda one: one.fitness)

    def top(self, count: int) -> list[Candidate]:
        """The fittest so far, best first."""
        return sorted(self.candidates, key=lambda one: -one.fitness)[:count]

    def progress(self) -> list[float]:
        """Best fitness after each evaluation."""
        found: list[float] = []
        for one in self.candidates:
            found.append(max(one.fitness, found[-1]) if found else one.fitness)
        return found

    def plain(self) -> list[list[dict[str, Any]]]:
        """For a JSON file."""
        return [[asdict(one) for one in generation] for generation in self.generations]

    @staticmethod
    def restored(plain: Iterable[Iterable[dict[str, Any]]]) -> Search:
        """The counterpart of :meth:`plain`."""
        return Search(
            [[Candidate(**{**one, "genes": tuple(one["genes"])}) for one in generation] for generation in plain]
        )
