"""What a search is held against: the uniform network of the winner's own cost, and searches that see nothing."""

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from shrinkbook.experiments.liu2019.spaces import by_depth, downsampling
from shrinkbook.methods.metapruning_candidates import Constraint, Evolution
from shrinkbook.methods.metapruning_search import evolve
from shrinkbook.methods.metapruning_space import Genes, SearchSpace

TOP = 10  # vectors of a search whose widths are looked at
BLIND = 20  # searches with random fitness

Cost = Callable[[Mapping[str, int]], float]
"""Of a network with these widths: multiply-accumulates, or seconds."""


def uniform_ratios(space: SearchSpace) -> list[float]:
    """Ratios of all the different uniform networks of a space, rising: one between any two at which a width changes."""
    steps = sorted({kept / base for base in space.base.values() for kept in range(base + 1)})
    return [(low + high) / 2 for low, high in pairwise(steps)] + [1.0]


def uniform_of_cost(space: SearchSpace, cost: Cost, wanted: float, ratios: Sequence[float]) -> dict[str, Any]:
    """The uniform network whose cost is nearest to the wanted, a winner's, whose gain over it is then at equal cost.

    Args:
        cost: in the unit of the search's constraint.
        wanted: in the same unit.
        ratios: candidates; all there are, or those that a look-up table holds.

    Returns:
        ratio, widths, cost, and its share of the wanted cost.
    """
    ratio = min(ratios, key=lambda ratio: abs(cost(space.uniform(ratio)) - wanted))
    widths = space.uniform(ratio)
    found = cost(widths)
    return {"ratio": ratio, "widths": widths, "cost": found, "share": found / wanted}


def mean_ratios(space: SearchSpace, vectors: Sequence[Genes]) -> dict[str, float]:
    """Mean ratio of each free width over width vectors."""
    columns = zip(space.names, zip(*vectors, strict=True), strict=True)
    return {name: float(np.mean([space.ratios[gene] for gene in column])) for name, column in columns}


def preferences(space: SearchSpace, vectors: Sequence[Genes]) -> dict[str, float]:
    """Where width vectors keep more: mean ratios in points, of one group of free widths less those of the others.

    Returns:
        downsampling: maps that strided convolutions write, against the others (figures 5 and 6).
        late: the later half of the free widths by depth, against the earlier one (figures 5 and 7).
    """
    means, strided, order = mean_ratios(space, vectors), downsampling(space), by_depth(space)
    groups = {"downsampling": strided, "late": order[len(order) // 2 :]}
    return {
        key: 100 * float(np.mean([means[n] for n in group]) - np.mean([means[n] for n in order if n not in group]))
        for key, group in groups.items()
    }


def blind_preferences(space: SearchSpace, limit: Constraint, settings: Evolution, seed: int) -> list[dict[str, float]]:
    """The null of :func:`preferences`: best vectors of searches of the same length whose fitness is a random number.

    The constraint alone prefers widths: within a budget those that cost most for each map come out narrower, whatever
    the accuracy. No network is evaluated.
    """
    found = []
    for number in range(BLIND):
        draws = random.Random(f"{seed}/blind/{number}")
        search = evolve(space, lambda _: draws.random(), limit, settings, draws.randrange(2**32))  # noqa: B023
        found.append(preferences(space, [one.genes for one in search.top(TOP)]))
    return found
