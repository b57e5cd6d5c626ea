"""The evolutionary search: constraints, origins, resuming, controls; and the latency table it may search by."""

import json

import pytest
import torch

from shrinkbook import nets
from shrinkbook.course.checks import liu2019 as check
from shrinkbook.measure.lookup import LatencyTable, measure_table
from shrinkbook.methods.metapruning_candidates import Constraint, Evolution, Search
from shrinkbook.methods.metapruning_search import crossover, evolve, mutation, offspring, random_search
from shrinkbook.methods.metapruning_space import Genes, MacCount, SearchSpace

SMALL = Evolution(population=20, mutations=8, crossovers=8, generations=6, parents=5)


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return check.small_space()


@pytest.fixture(scope="module")
def half(space) -> Constraint:
    count = MacCount(space, (1, 8, 8))
    return Constraint(count, 0.5 * count((6,) * 5))


def planted(genes: Genes) -> float:
    """Best at narrow early and wide late layers."""
    return -sum((gene - wanted) ** 2 for gene, wanted in zip(genes, (1, 2, 3, 5, 6), strict=True))


def test_numbers_of_the_paper() -> None:
    settings = Evolution()
    assert (settings.population, settings.mutations, settings.crossovers, settings.generations) == (50, 25, 25, 20)
    assert (settings.probability, settings.parents) == (0.1, 10)


def test_every_candidate_meets_the_constraint_once_and_evolution_finds_what_is_planted(space, half) -> None:
    search = evolve(space, planted, half, SMALL, seed=0)
    vectors = [one.genes for one in search.candidates]
    assert len(vectors) == len(set(vectors)) == 120
    assert all(one.cost == half.cost(one.genes) <= half.most for one in search.candidates)
    assert {one.origin for one in search.generations[0]} == {"random"}
    origins = [one.origin for one in search.generations[1]]
    assert origins.count("mutation") == 8 and origins.count("crossover") == 8 and origins.count("random") == 4
    progress = search.progress()
    assert progress == sorted(progress) and progress[-1] == search.best.fitness
    control = random_search(space, planted, half, 120, seed=0)
    assert len({one.genes for one in control.candidates}) == 120
    better = [
        evolve(space, planted, half, SMALL, seed).best.fitness
        - random_search(space, planted, half, 120, seed).best.fitness
        for seed in range(5)
    ]
    assert sum(better) > 0


def test_an_interrupted_search_ends_like_a_whole_one(space, half) -> None:
    whole = evolve(space, planted, half, SMALL, seed=4)
    saved: list[str] = []

    def save(search: Search) -> None:
        saved.append(json.dumps(search.plain()))
        if len(saved) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve(space, planted, half, SMALL, seed=4, save=save)
    resumed = evolve(space, planted, half, SMALL, seed=4, search=Search.restored(json.loads(saved[-1])))
    assert resumed == whole
    assert evolve(space, planted, half, SMALL, seed=5) != whole


def test_mutation_and_crossover_are_the_papers() -> None:
    for choices, probability in ((31, 0.1), (2, 0.5), (7, 1.0)):
        check.mutates_gene_by_gene(mutation, choices, probability)
    check.mixes_gene_by_gene(crossover)


def test_a_generation_is_made_of_new_vectors_within_the_constraint_by_the_best_so_far() -> None:
    check.children_are_new_and_allowed(offspring)
    check.a_generation_is_full(offspring)
    check.parents_are_the_best_so_far(offspring)
    check.ends_where_nothing_is_left(offspring)


def test_budgets_that_no_network_meets(space, half) -> None:
    with pytest.raises(
        ValueError, match=r"meets a budget of 10 multiply-acc.*: the narrowest takes .*; raise the budget"
    ):
        evolve(space, planted, Constraint(half.cost, 10), SMALL)
    uneven = Constraint(lambda genes: {0: 5.0, 1: 2.0}.get(genes[0], 9.0), 3.0, unit="seconds")  # a measured table
    assert {one.genes[0] for one in random_search(space, planted, uneven, 20).candidates} == {1}
    with pytest.raises(ValueError, match="no network lies between"):
        random_search(space, planted, Constraint(half.cost, 1e12, 1e11), 5)
    narrowest = half.cost((0,) * 5)
    with pytest.raises(ValueError, match="only 1 vectors were found .* 5 are needed: widen the band, lower `lowest`"):
        evolve(space, planted, Constraint(half.cost, narrowest), SMALL)
    with pytest.raises(ValueError, match="at least 2 parents"):
        Evolution(parents=1)
    with pytest.raises(ValueError, match=r"30 \+ 30 children do not fit"):
        Evolution(mutations=30, crossovers=30)


def test_a_band_that_no_draw_hits_is_named_by_every_search(space, half) -> None:
    between = Constraint(half.cost, half.most + 0.75, half.most // 1 + 0.25)  # costs are whole numbers
    assert between.most // 1 == between.least // 1
    with pytest.raises(ValueError, match="only 0 vectors were found between .* 5 are needed: widen the band"):
        evolve(space, planted, between, SMALL)
    with pytest.raises(ValueError, match="only 0 vectors were found between .* 1 are needed: widen the band"):
        random_search(space, planted, between, 5)
    few = random_search(space, planted, Constraint(half.cost, half.cost((0,) * 5)), 5)
    assert [one.genes for one in few.candidates] == [(0,) * 5]


def test_the_range_of_random_genes_bounds_what_is_possible(space, half) -> None:
    dear, cheap = Evolution(lowest=5), Evolution(highest=1)
    with pytest.raises(ValueError, match=r"the narrowest takes .*; raise the budget, or lower `lowest` \(gene 5\)"):
        random_search(space, planted, half, 5, settings=dear)
    wide = Constraint(half.cost, 2 * half.most, 0.9 * half.most)
    with pytest.raises(ValueError, match=r"the widest takes .*; widen the band, or raise `highest` \(gene 1\)"):
        evolve(space, planted, wide, cheap)
    for wrong in (Evolution(lowest=3, highest=2), Evolution(highest=7), Evolution(lowest=-1)):
        with pytest.raises(ValueError, match="they must rise and lie in 0 to 6"):
            random_search(space, planted, half, 5, settings=wrong)


def test_small_budgets_and_bands_are_searched_too(space, half) -> None:
    full = half.cost((6,) * 5)
    tight = evolve(space, planted, Constraint(half.cost, 0.25 * full), SMALL)
    assert tight.candidates and all(one.cost <= 0.25 * full for one in tight.candidates)
    band = random_search(space, planted, Constraint(half.cost, 0.5 * full, 0.45 * full), 30)
    assert len(band.candidates) == 30 and all(0.45 * full <= one.cost <= 0.5 * full for one in band.candidates)
    limited = random_search(space, planted, half, 30, settings=Evolution(lowest=2, highest=4))
    assert {gene for one in limited.candidates for gene in one.genes} == {2, 3, 4}


def test_a_search_by_a_latency_table(space) -> None:
    torch.manual_seed(0)
    model = nets.MobileNetV1((8, 16, 16, 32, 32, 64), (1, 2, 1, 2, 1, 1), classes=10, in_channels=1)
    shapes = {path: space.possible_shapes(path) for path in space.convolutions}
    assert len(shapes["conv1"]) == 7 and len(shapes["blocks.0.depthwise"]) == 7
    assert len(shapes["blocks.0.pointwise"]) == 49 and len(shapes["blocks.4.pointwise"]) == 7
    table = measure_table(space.convolutions, shapes, model, torch.randn(1, 1, 8, 8), "here", runs=1, warmup=0)
    again = LatencyTable.restored(json.loads(json.dumps(table.plain())))
    assert again == table

    def seconds(genes: Genes) -> float:
        return table.total(space.shapes(space.widths(genes)))

    by_hand = table.rest + sum(table.layers[path][space.shape(path, space.base)] for path in space.convolutions)
    assert seconds((6,) * 5) == pytest.approx(by_hand)
    budget = Constraint(seconds, 1.2 * seconds((0,) * 5) + 1, unit="seconds")
    assert evolve(space, planted, budget, SMALL).candidates
    lacking = LatencyTable("a phone", table.rest, {k: v for k, v in table.layers.items() if k != "conv1"})
    with pytest.raises(ValueError, match="look-up table of a phone lacks layer conv1"):
        lacking.total(space.shapes(space.base))
    with pytest.raises(ValueError, match=r"lacks conv1 with 1 -> 9 channels: measure it"):
        table.total({"conv1": (9, 1)})
    with pytest.raises(ValueError, match="not a look-up table"):
        LatencyTable.restored({"where": "x"})
