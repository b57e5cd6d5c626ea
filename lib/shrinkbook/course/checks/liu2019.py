"""Checks of the assignment on Liu et al. 2019: written weights number by number, and what one generation may hold."""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from shrinkbook import nets
from shrinkbook.course.checks.compare import Number, agree
from shrinkbook.measure.cost import parameter_count
from shrinkbook.methods.metapruning_candidates import Candidate, Constraint, Evolution, Search
from shrinkbook.methods.metapruning_space import Genes, SearchSpace
from shrinkbook.training import data

Make = Callable[[int, nn.Conv2d, int], nn.Module]
"""Makes a weight generator from the number of ratios, the full convolution, and the hidden units."""
Offspring = Callable[[SearchSpace, Constraint, Evolution, Search, random.Random], Mapping[Genes, str]]

PATIENCE = 200_000  # random numbers after which a generation of a few children counts as endless


class Bounded(random.Random):
    """A source of random numbers that complains where a loop would draw for ever."""

    drawn = 0

    def random(self) -> float:
        self._count()
        return super().random()

    def getrandbits(self, k: int, /) -> int:
        self._count()
        return super().getrandbits(k)

    def _count(self) -> None:
        self.drawn += 1
        if self.drawn > PATIENCE:
            raise AssertionError("offspring goes on drawing where no child can be found: bound the number of attempts")


def conv_of(out: int, read: int, kernel: int, groups: int = 1) -> nn.Conv2d:
    """The full convolution whose weights are to be written."""
    return nn.Conv2d(read, out, kernel, groups=groups, bias=False)


def layers_of(generator: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    """The layers `first` and `second` of a generator."""
    layers = [getattr(generator, name, None) for name in ("first", "second")]
    for name, layer in zip(("first", "second"), layers, strict=True):
        assert isinstance(layer, nn.Linear), f"the generator has no linear layer named {name}: set self.{name}"
        assert layer.bias is not None, f"{name} has no bias: without it the encoding scales every weight"
    return cast(tuple[nn.Linear, nn.Linear], tuple(layers))


def has_two_layers_with_biases(make: Make, inputs: int, conv: nn.Conv2d, hidden: int) -> None:
    """`first` leads from the ratios to the hidden units, `second` from there to one number for every weight."""
    generator = make(inputs, conv, hidden)
    sizes = {"first": (inputs, hidden), "second": (hidden, conv.weight.numel())}
    for layer, (name, (read, out)) in zip(layers_of(generator), sizes.items(), strict=True):
        found = layer.in_features, layer.out_features
        assert found == (read, out), (
            f"{name} leads from {found[0]} numbers to {found[1]}, not from {read} to {out}, for a full weight of shape "
            f"{tuple(conv.weight.shape)}"
        )
    more = parameter_count(generator) - sum((read + 1) * out for read, out in sizes.values())
    assert more == 0, f"the generator has {more} parameters beside those of its two layers"


def full(generator: nn.Module, code: Tensor, shape: Sequence[int], rectify: bool = True) -> Tensor:
    """All weights of a generator one after the other, each a sum over the hidden units."""
    first, second = layers_of(generator)
    hidden = [(row * code).sum() + bias for row, bias in zip(first.weight, first.bias, strict=True)]
    if rectify:
        hidden = [value.clamp_min(0) for value in hidden]
    weights = []
    for number in range(second.out_features):
        terms = [value * factor for value, factor in zip(hidden, second.weight[number], strict=True)]
        weights.append(torch.stack(terms).sum() + second.bias[number])
    return torch.stack(weights).reshape(*shape)


def takes_the_first_channels(
    make: Make, method: str, crops: Sequence[tuple[int, int]], conv: nn.Conv2d, inputs: int = 2, seed: int = 0
) -> None:
    """The weights of the first output and input channels of the full tensor, for any code.

    Args:
        method: ``in_full`` or ``forward``.
        crops: (output, input) channels that are asked for.
    """
    has_two_layers_with_biases(make, inputs, conv, 4)
    torch.manual_seed(seed)
    generator, code = make(inputs, conv, 4), torch.rand(inputs) / 2
    with torch.no_grad():
        layers_of(generator)[0].bias.copy_(torch.tensor([1.0, -1.0, 1.0, -1.0]))  # every second unit rests
        whole, kernel = full(generator, code, conv.weight.shape), conv.weight.shape[2:]
        bent = full(generator, code, conv.weight.shape, rectify=False)
        for out, read in crops:
            wanted = whole[:out, :read]
            mistakes: dict[str, Number] = {
                "the first channels survive, not the last ones": whole[-out:, -read:],
                "the first output channels survive, not the last ones": whole[-out:, :read],
                "the first input channels survive, not the last ones": whole[:out, -read:],
                "there is a ReLU between the layers": bent[:out, :read],
                "a ReLU belongs between the layers, not behind them": wanted.relu(),
                "reshape to the full tensor first, then crop": whole.flatten()[: wanted.numel()].view(
                    out, read, *kernel
                ),
            }
            what = f"{method} for {out} of {len(whole)} output and {read} of {whole.shape[1]} input channels"
            agree(what, getattr(generator, method)(code, out, read), wanted, mistakes, rtol=1e-4, atol=1e-6)


def multiplies_only_what_survives(make: Make, out: int, read: int, conv: nn.Conv2d, seed: int = 0) -> None:
    """What the crop cuts off takes no part in forward: NaN in those weights must not even reach a gradient."""
    torch.manual_seed(seed)
    generator = make(2, conv, 4)
    (first, second), kept = layers_of(generator), torch.zeros(conv.weight.shape, dtype=torch.bool)
    kept[:out, :read] = True
    with torch.no_grad():
        first.bias.fill_(1)
        second.weight[~kept.flatten()] = torch.nan
    found = generator(torch.tensor([0.3, 0.7]), out, read)
    assert found.isfinite().all(), "forward gives numbers of rows that the crop cuts off"
    found.square().sum().backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), f"no gradient reaches {name}"
    assert first.weight.grad is not None and second.bias.grad is not None
    assert first.weight.grad.isfinite().all(), (
        "forward multiplies rows of the second layer that are cut off afterwards: choose the rows of its weight and "
        "bias first, then multiply"
    )
    used = second.bias.grad.view(conv.weight.shape) != 0
    assert torch.equal(used, kept), "a gradient goes to weights that the crop cuts off, or not to all that survive"


def mutates_gene_by_gene(mutation: Callable[..., Genes], choices: int, probability: float, seed: int = 0) -> None:
    """Each gene for itself, with the probability, to each of the other choices alike; within five deviations."""
    count, gene = 20_000, choices - 1
    parent = (gene,) * count
    child = mutation(parent, choices, probability, random.Random(seed))
    assert isinstance(child, tuple) and len(child) == count, "mutation gives a tuple of as many genes as the parent has"
    assert set(child) <= set(range(choices)), f"with {choices} choices a gene lies between 0 and {choices - 1}"
    rate = sum(one != gene for one in child) / count
    error = 5 * (probability * (1 - probability) / count) ** 0.5
    assert rate not in (0, 1) or probability in (0, 1), (
        f"{'all' if rate else 'none'} of the genes moved: draw for each gene, not once for the whole vector"
    )
    assert abs(rate - probability) <= error, (
        f"{100 * rate:.1f} % of the genes moved at a probability of {100 * probability:g} %"
        + (": a gene that mutates has to become another one" if rate < probability else "")
    )
    counts = Counter(one for one in child if one != gene)
    share = rate * count / (choices - 1)
    uneven = [one for one in range(choices - 1) if abs(counts[one] - share) > 5 * share**0.5 + 1]
    assert not uneven, (
        f"choice {uneven[0]} came up {counts[uneven[0]]} times, {share:.0f} were expected: all others alike"
    )
    assert mutation((0, 0), 1, 1.0, random.Random(seed)) == (0, 0), "with a single choice there is nothing to change to"


def mixes_gene_by_gene(crossover: Callable[..., Genes], seed: int = 0) -> None:
    """Each gene from the same place of one of the parents, evenly, and each drawn for itself."""
    count = 20_000
    source = random.Random(seed)
    mother = tuple(source.randrange(0, 10) for _ in range(count))
    father = tuple(source.randrange(10, 20) for _ in range(count))
    child = crossover([mother, father], source)
    assert isinstance(child, tuple) and len(child) == count, "crossover gives a tuple of as many genes as a parent has"
    strangers = [i for i, one in enumerate(child) if one not in (mother[i], father[i])]
    assert not strangers, f"gene {strangers[0]} is {child[strangers[0]]}, which neither parent has in that place"
    first = [one < 10 for one in child]
    share, changes = sum(first) / count, sum(a != b for a, b in zip(first, first[1:], strict=False)) / count
    assert 0.02 < share < 0.98, "all genes come from one parent"
    assert changes > 0.2, (
        "genes come in long runs from one parent: the paper draws for each gene, without cutting points"
    )
    assert abs(share - 0.5) < 0.02, f"{100 * share:.0f} % of the genes come from the first parent; half were expected"
    assert abs(changes - 0.5) < 0.02, "genes of one parent follow each other too regularly: draw for each gene"


def small_space() -> SearchSpace:
    """Five free widths, each one of seven eighths: 16,807 networks."""
    model = nets.MobileNetV1((8, 16, 16, 32, 32, 64), (1, 2, 1, 2, 1, 1), classes=10, in_channels=1)
    return SearchSpace(model, model.free_widths(), [n / 8 for n in range(2, 9)])


def budget(space: SearchSpace, share: float) -> Constraint:
    """Products of neighbouring widths, what 1x1 convolutions cost a pixel, up to a share of the full network's."""

    def products(genes: Genes) -> int:
        widths = list(space.widths(genes).values())
        return sum(read * out for read, out in zip(widths, widths[1:], strict=False))

    return Constraint(products, share * products((len(space.ratios) - 1,) * len(space.names)), unit="products")


def history(space: SearchSpace, constraint: Constraint, seed: int, count: int = 40) -> Search:
    """A first generation of different random vectors within the constraint; wide networks are worth more."""
    draws, found = random.Random(seed), set[Genes]()
    while len(found) < count:
        genes = tuple(draws.randrange(len(space.ratios)) for _ in space.names)
        if constraint.meets(genes):
            found.add(genes)
    return Search([[Candidate(genes, sum(genes), constraint.cost(genes), "random") for genes in sorted(found)]])


def children_of(
    offspring: Offspring, space: SearchSpace, constraint: Constraint, settings: Evolution, search: Search, seed: int
) -> dict[Genes, str]:
    """What offspring gives, if it is genes with their origin and the search is as it was."""
    before = search.plain()
    found = offspring(space, constraint, settings, search, Bounded(seed))
    assert isinstance(found, dict), "offspring gives a dictionary, from the genes of a child to its origin"
    assert search.plain() == before, "offspring may look at the search, not change it"
    for genes, origin in found.items():
        assert isinstance(genes, tuple) and len(genes) == len(space.names), f"{genes!r} is no tuple of all genes"
        assert origin in ("mutation", "crossover"), f"origin {origin!r}: there are 'mutation' and 'crossover'"
    return found


def children_are_new_and_allowed(offspring: Offspring, share: float = 0.15, seed: int = 0) -> None:
    """No child outside the constraint, none that was evaluated before; over several generations of a tight budget."""
    space = small_space()
    constraint, settings = budget(space, share), Evolution(30, 15, 15, probability=0.3, parents=5)
    search = history(space, constraint, seed)
    for number in range(4):
        children = children_of(offspring, space, constraint, settings, search, seed + number)
        assert children, "there are children within the constraint, but offspring found none"
        dear = [genes for genes in children if not constraint.meets(genes)]
        assert not dear, f"{len(dear)} of {len(children)} children cost too much: keep those that meet the constraint"
        old = children.keys() & {one.genes for one in search.candidates}
        assert not old, f"{len(old)} of {len(children)} children were evaluated before: keep only new vectors"
        made = [Candidate(genes, sum(genes), constraint.cost(genes), origin) for genes, origin in children.items()]
        search.generations.append(made)


def a_generation_is_full(offspring: Offspring, mutations: int = 12, crossovers: int = 7, seed: int = 0) -> None:
    """Where there is room, exactly as many children of each kind as the settings say, mutations first."""
    space = small_space()
    constraint, settings = budget(space, 1.0), Evolution(40, mutations, crossovers, probability=0.3, parents=10)
    children = children_of(offspring, space, constraint, settings, history(space, constraint, seed), seed)
    origins = list(children.values())
    for kind, wanted in (("mutation", mutations), ("crossover", crossovers)):
        found = origins.count(kind)
        assert found == wanted, (
            f"{found} children by {kind} where {wanted} were wanted and possible: try again when a child is rejected, "
            "and stop when there are enough"
        )
    assert origins == sorted(origins, reverse=True), "mutations come first, then crossovers"


def parents_are_the_best_so_far(offspring: Offspring, seed: int = 0) -> None:
    """Children of the fittest vectors of all generations, every one of them, and of no others."""
    space, settings = small_space(), Evolution(30, 10, 15, probability=0.05, parents=3)
    constraint = budget(space, 1.0)
    best = [(0, 0, 0, 0, 0), (2, 2, 2, 2, 2), (3, 3, 3, 3, 3)]
    worse = [(gene, 6, 6, 6, 5) for gene in range(7)]

    def evaluated(vectors: Sequence[Genes], fitness: float) -> list[Candidate]:
        return [Candidate(genes, fitness, constraint.cost(genes), "random") for genes in vectors]

    search = Search([evaluated(best[1:], 0.9) + evaluated(worse[:3], 0.2), evaluated([*worse[3:], best[0]], 0.1)])
    search.generations[1][-1] = Candidate(best[0], 0.95, constraint.cost(best[0]), "random")
    seen: Counter[int] = Counter()
    for number in range(4):
        children = children_of(offspring, space, constraint, settings, search, seed + number)
        for genes, origin in children.items():
            foreign = sum(gene not in (0, 2, 3) for gene in genes)
            assert foreign <= (0 if origin == "crossover" else 3), (
                f"{genes} by {origin} does not descend from the three fittest of all generations, {best}: parents are "
                "search.top(settings.parents)"
            )
            if origin == "crossover":
                assert len(set(genes)) == 2, (
                    f"{genes} by crossover has {len(set(genes))} parents, not two different ones"
                )
                seen.update(set(genes))
    assert set(seen) == {0, 2, 3}, f"only {len(seen)} of three parents had children by crossover in four generations"


def ends_where_nothing_is_left(offspring: Offspring, seed: int = 0) -> None:
    """No child fits, or hardly one: offspring gives up after a number of attempts."""
    space, settings = small_space(), Evolution(20, 8, 8, parents=2)
    search = history(space, budget(space, 1.0), seed)
    widest = (len(space.ratios) - 1,) * len(space.names)
    nothing = Constraint(lambda genes: 1.0, 0.0)
    assert not children_of(offspring, space, nothing, settings, search, seed), (
        "offspring gives a child although no vector meets the constraint"
    )
    single = Constraint(lambda genes: float(genes != widest), 0.5)
    assert set(children_of(offspring, space, single, settings, search, seed)) <= {widest}


def fits_every_width(
    predict: Callable[[Tensor, int], Tensor], widths: Sequence[int], least: float = 60.0
) -> list[float]:
    """Self-check of the stretch task: accuracy on digits in percent at each width, of one set of trained parameters."""
    digits = data.load("digits")
    images = digits.normalise(digits.x_test)
    with torch.no_grad():
        found = [100 * (predict(images, width).argmax(1) == digits.y_test).double().mean().item() for width in widths]
    shown = ", ".join(f"{accuracy:.0f} % at {width}" for accuracy, width in zip(found, widths, strict=True))
    assert min(found) >= least, f"{shown}: each should reach {least:g} %"
    return found
