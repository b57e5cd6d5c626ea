"""Search over width vectors: the evolutionary algorithm of Liu et al. 2019 (section 3.3, algorithm 1) and its controls.

What a vector is worth and what it costs come in as functions; nothing here knows of networks or data.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence

from shrinkbook.methods.metapruning_candidates import Candidate, Constraint, Evolution, Search
from shrinkbook.methods.metapruning_space import Genes, SearchSpace

Fitness = Callable[[Genes], float]
Spread = Callable[[Fitness, Sequence[Genes]], Iterable[float]]
"""How a generation is evaluated: `map`, or a process pool's."""

TRIES = 200  # draws in a row that must fail before random genes are drawn from a smaller range
ROUNDS = 10  # of mutation and crossover for every child wanted, as in the authors' code


def evolve(
    space: SearchSpace,
    fitness: Fitness,
    constraint: Constraint,
    settings: Evolution | None = None,
    seed: int = 0,
    search: Search | None = None,
    save: Callable[[Search], None] | None = None,
    spread: Spread = map,
) -> Search:
    """Algorithm 1: random vectors first, then mutations and crossovers of the best so far, all within the constraint.

    Random numbers depend on seed and generation only: a search continued from what ``save`` was given ends like one
    that was never interrupted.

    Args:
        fitness: of a vector, larger is better; accuracy with generated weights on held-out training images.
        search: what an interrupted search had evaluated.
        save: called after every generation.
        spread: evaluates a generation.

    Raises:
        ValueError: no vector meets the constraint, or fewer than a first generation needs.
    """
    settings, search = settings or Evolution(), search or Search()
    possible(space, constraint, settings)
    for number in range(len(search.generations), settings.generations):
        draws = random.Random(f"{seed}/{number}")
        children = offspring(space, constraint, settings, search, draws) if search.generations else {}
        taken = {one.genes for one in search.candidates} | set(children)
        wanted = settings.population - len(children)
        fresh = random_vectors(space, constraint, wanted, draws, taken, settings)
        children |= dict.fromkeys(fresh, "random")
        if not number:
            _enough(len(children), settings.parents, constraint)
        if not children:
            break  # a small space may be exhausted
        search.generations.append(_evaluated(children, fitness, constraint, spread))
        if save:
            save(search)
    return search


def _evaluated(
    vectors: Mapping[Genes, str], fitness: Fitness, constraint: Constraint, spread: Spread
) -> list[Candidate]:
    values = spread(fitness, list(vectors))
    return [
        Candidate(genes, float(value), float(constraint.cost(genes)), origin)
        for (genes, origin), value in zip(vectors.items(), values, strict=True)
    ]


def random_search(
    space: SearchSpace,
    fitness: Fitness,
    constraint: Constraint,
    evaluations: int,
    seed: int = 0,
    settings: Evolution | None = None,
    spread: Spread = map,
) -> Search:
    """The control: as many random vectors within the constraint, all different; fewer if no more are found.

    Raises:
        ValueError: no vector meets the constraint, or none was found.
    """
    settings = settings or Evolution()
    possible(space, constraint, settings)
    draws = random.Random(f"{seed}/random")
    found = random_vectors(space, constraint, evaluations, draws, set(), settings)
    _enough(len(found), 1, constraint)
    return Search([_evaluated(dict.fromkeys(found, "random"), fitness, constraint, spread)])


def offspring(
    space: SearchSpace, constraint: Constraint, settings: Evolution, search: Search, draws: random.Random
) -> dict[Genes, str]:
    """Mutations, then crossovers of the best so far: new, within the constraint, from a limited number of attempts."""
    parents = [one.genes for one in search.top(settings.parents)]
    seen = {one.genes for one in search.candidates}
    children: dict[Genes, str] = {}
    for origin, count in (("mutation", settings.mutations), ("crossover", settings.crossovers)):
        most = len(children) + count
        for _ in range(ROUNDS * count):
            if len(children) == most:
                break
            if origin == "mutation":
                genes = mutation(draws.choice(parents), len(space.ratios), settings.probability, draws)
            else:
                genes = crossover(draws.sample(parents, 2), draws)
            if genes not in seen and genes not in children and constraint.meets(genes):
                children[genes] = origin
    return children


def mutation(parent: Genes, choices: int, probability: float, draws: random.Random) -> Genes:
    """Each gene, with this probability, becomes another one of the choices."""
    return tuple(
        (gene + draws.randrange(1, choices)) % choices if draws.random() < probability and choices > 1 else gene
        for gene in parent
    )


def crossover(parents: Sequence[Genes], draws: random.Random) -> Genes:
    """Each gene from one of two parents, evenly."""
    return tuple(draws.choice(pair) for pair in zip(*parents, strict=True))


def random_vectors(
    space: SearchSpace,
    constraint: Constraint,
    count: int,
    draws: random.Random,
    seen: set[Genes],
    settings: Evolution,
) -> list[Genes]:
    """New random vectors within the constraint, fewer if the space has no more.

    Uniform by rejection, as in the paper. Where 200 draws in a row fail, a small budget say, genes are from then on
    drawn from a range one choice smaller at the end that misses, so that the search ends.
    """
    low, high = settings.range_of(len(space.ratios))
    found: dict[Genes, None] = {}
    costly = failed = 0
    while len(found) < count:
        genes = tuple(draws.randint(low, high) for _ in space.names)
        if genes not in seen and genes not in found and constraint.meets(genes):
            found[genes] = None
            costly = failed = 0
            continue
        failed += 1
        costly += constraint.cost(genes) > constraint.most
        if failed == TRIES:
            if high == low:
                break
            low, high = (low, high - 1) if 2 * costly > failed or constraint.least == 0 else (low + 1, high)
            costly = failed = 0
    return list(found)


def possible(space: SearchSpace, constraint: Constraint, settings: Evolution | None = None) -> None:
    """Raise a ValueError unless some uniform network of the settings' range is cheap enough and some dear enough.

    All of them are asked: measured times need not rise with the width.
    """
    low, high = (settings or Evolution()).range_of(len(space.ratios))
    costs = [constraint.cost((gene,) * len(space.names)) for gene in range(low, high + 1)]
    if min(costs) > constraint.most:
        raise ValueError(
            f"no network meets a budget of {constraint.most:,.6g} {constraint.unit}: "
            f"the narrowest takes {min(costs):,.6g}; raise the budget, or lower `lowest` (gene {low})"
        )
    if max(costs) < constraint.least or constraint.least > constraint.most:
        raise ValueError(
            f"no network lies between {constraint.least:,.6g} and {constraint.most:,.6g} {constraint.unit}: "
            f"the widest takes {max(costs):,.6g}; widen the band, or raise `highest` (gene {high})"
        )


def _enough(found: int, wanted: int, constraint: Constraint) -> None:
    if found < wanted:
        raise ValueError(
            f"only {found} vectors were found between {constraint.least:,.6g} and {constraint.most:,.6g} "
            f"{constraint.unit}, {wanted} are needed: widen the band, lower `lowest` or raise `highest`"
        )
