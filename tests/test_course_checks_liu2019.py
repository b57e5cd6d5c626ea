"""The checks of the assignment on MetaPruning: the library passes, a student's likely mistakes are named."""

import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shrinkbook.course.checks import liu2019 as check
from shrinkbook.methods.metapruning import WeightGenerator
from shrinkbook.methods.metapruning_search import ROUNDS, crossover, mutation, offspring
from shrinkbook.training import data

CONV = check.conv_of(out=6, read=4, kernel=3)
DEPTHWISE = check.conv_of(out=8, read=8, kernel=3, groups=8)


def test_the_librarys_implementations_pass():
    for conv, crops in ((CONV, [(6, 4), (2, 3)]), (DEPTHWISE, [(3, 1)])):
        check.has_two_layers_with_biases(WeightGenerator, 2, conv, 8)
        for method in ("in_full", "forward"):
            check.takes_the_first_channels(WeightGenerator, method, crops, conv)
        check.multiplies_only_what_survives(WeightGenerator, *crops[-1], conv)
    for choices, probability in ((31, 0.1), (2, 0.2), (7, 1.0)):
        check.mutates_gene_by_gene(mutation, choices, probability)
    check.mixes_gene_by_gene(crossover)
    for seed in (0, 1):
        check.children_are_new_and_allowed(offspring, 0.15, seed)
        check.a_generation_is_full(offspring, seed=seed)
        check.parents_are_the_best_so_far(offspring, seed)
        check.ends_where_nothing_is_left(offspring, seed)


class Written(WeightGenerator):
    """A generator with one mistake in how it crops, the same in both methods."""

    def whole(self, code):
        return self.second(F.relu(self.first(code))).view(self.shape)

    def forward(self, code, out_channels, in_channels):
        return self.crop(code, out_channels, in_channels)

    in_full = forward


class LastChannels(Written):
    def crop(self, code, out, read):
        return self.whole(code)[-out:, -read:]


class LastOutputs(Written):
    def crop(self, code, out, read):
        return self.whole(code)[-out:, :read]


class LastInputs(Written):
    def crop(self, code, out, read):
        return self.whole(code)[:out, -read:]


class WithoutReLU(Written):
    def crop(self, code, out, read):
        return self.second(self.first(code)).view(self.shape)[:out, :read]


class ReLUBehind(Written):
    def crop(self, code, out, read):
        return self.whole(code).relu()[:out, :read]


class CroppedFlat(Written):
    def crop(self, code, out, read):
        flat = self.second(F.relu(self.first(code)))
        return flat[: out * read * 9].view(out, read, 3, 3)


class Whole(Written):
    def crop(self, code, out, read):
        return self.whole(code)


class Shared(Written):
    def crop(self, code, out, read):
        return self.second.bias.view(self.shape)[:out, :read]


@pytest.mark.parametrize("method", ["in_full", "forward"])
@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        (LastChannels, "not the last ones"),
        (LastOutputs, "the first output channels survive"),
        (LastInputs, "the first input channels survive"),
        (WithoutReLU, "a ReLU between the layers"),
        (ReLUBehind, "not behind them"),
        (CroppedFlat, "reshape to the full tensor first"),
        (Whole, "has shape"),
        (Shared, "expected"),
    ],
)
def test_crops_that_are_wrong(mistake, named, method):
    with pytest.raises(AssertionError, match=named):
        check.takes_the_first_channels(mistake, method, [(2, 3)], CONV)


def layers(first=None, second=None, more=False):
    """A generator whose layers differ from what was asked."""

    def make(inputs, conv, hidden):
        generator = WeightGenerator(inputs, conv, hidden)
        if first:
            generator.first = first(inputs, hidden)
        if second:
            generator.second = second(hidden, conv)
        if more:
            generator.third = nn.Linear(3, 3)
        return generator

    return make


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        (layers(first=lambda inputs, hidden: nn.Linear(inputs, hidden, bias=False)), "first has no bias"),
        (layers(first=lambda inputs, hidden: nn.Linear(inputs, inputs)), "first leads from 2 numbers to 2"),
        (layers(second=lambda hidden, conv: nn.Linear(hidden, math.prod(conv.weight.shape), bias=False)), "no bias"),
        (
            layers(second=lambda hidden, conv: nn.Linear(hidden, conv.out_channels * conv.in_channels * 9)),
            "second leads from 8 numbers to 576, not from 8 to 72",  # conv.in_channels of a depthwise convolution
        ),
        (layers(second=lambda hidden, conv: nn.Identity()), "no linear layer named second"),
        (layers(more=True), "12 parameters beside"),
    ],
)
def test_layers_that_are_wrong(mistake, named):
    with pytest.raises(AssertionError, match=named):
        check.has_two_layers_with_biases(mistake, 2, DEPTHWISE, 8)


class Wasteful(Written):
    def crop(self, code, out, read):
        return self.whole(code)[:out, :read]


class Detached(Written):
    def crop(self, code, out, read):
        return WeightGenerator.forward(self, code, out, read).detach() + self.second.bias[0]


def test_a_forward_that_does_too_much_or_too_little():
    check.takes_the_first_channels(Wasteful, "forward", [(2, 3)], CONV)
    with pytest.raises(AssertionError, match="cut off afterwards"):
        check.multiplies_only_what_survives(Wasteful, 2, 3, CONV)
    with pytest.raises(AssertionError, match="no gradient reaches first.weight"):
        check.multiplies_only_what_survives(Detached, 2, 3, CONV)
    with pytest.raises(AssertionError, match="rows that the crop cuts off"):
        check.multiplies_only_what_survives(LastChannels, 2, 3, CONV)


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        (lambda p, n, q, d: tuple(d.randrange(n) if d.random() < q else g for g in p), "has to become another one"),
        (lambda p, n, q, d: mutation(p, n, 1.0, d) if d.random() < q else p, "not once for the whole vector"),
        (lambda p, n, q, d: mutation(p, n, 1 - q, d), "of the genes moved at a probability of 30 %"),
        (lambda p, n, q, d: list(mutation(p, n, q, d)), "gives a tuple"),
        (lambda p, n, q, d: tuple(g + 1 if d.random() < q else g for g in p), "lies between 0 and 4"),
        (lambda p, n, q, d: tuple((g + 1) % n if d.random() < q else g for g in p), "all others alike"),
        (lambda p, n, q, d: mutation(p, n, q, d) if n > 1 else d.randrange(1, n), "empty range|with a single choice"),
    ],
)
def test_mutations_that_are_wrong(mistake, named):
    with pytest.raises((AssertionError, ValueError), match=named):
        check.mutates_gene_by_gene(mistake, choices=5, probability=0.3)


def one_point(parents, draws):
    point = draws.randrange(len(parents[0]))
    return parents[0][:point] + parents[1][point:]


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        (lambda parents, draws: parents[0], "all genes come from one parent"),
        (lambda parents, draws: draws.choice(parents), "all genes come from one parent"),
        (one_point, "long runs from one parent"),
        (lambda parents, draws: tuple((a + b) // 2 for a, b in zip(*parents, strict=True)), "neither parent has"),
        (lambda parents, draws: tuple(draws.choice(draws.choice(parents)) for _ in parents[0]), "in that place"),
        (lambda parents, draws: crossover([*parents, parents[0]], draws), "half were expected"),
        (lambda parents, draws: tuple(pair[i % 2] for i, pair in enumerate(zip(*parents, strict=True))), "regularly"),
    ],
)
def test_crossovers_that_are_wrong(mistake, named):
    with pytest.raises(AssertionError, match=named):
        check.mixes_gene_by_gene(mistake)


def generation(feasible=True, new=True, retry=True, parents=lambda search, count: search.top(count), pair=2):
    """Offspring with one mistake."""

    def made(space, constraint, settings, search, draws):
        best = [one.genes for one in parents(search, settings.parents)]
        seen = {one.genes for one in search.candidates}
        children = {}
        for origin, count in (("mutation", settings.mutations), ("crossover", settings.crossovers)):
            most = len(children) + count
            for _ in range(ROUNDS * count if retry else count):
                if len(children) == most:
                    break
                if origin == "mutation":
                    genes = mutation(draws.choice(best), len(space.ratios), settings.probability, draws)
                else:
                    genes = crossover(draws.sample(best, pair), draws)
                if (not new or genes not in seen) and (not feasible or constraint.meets(genes)):
                    children[genes] = origin
        return children

    return made


def endless(space, constraint, settings, search, draws):
    children = {}
    while len(children) < settings.mutations:
        genes = mutation(draws.choice(search.top(settings.parents)).genes, len(space.ratios), 0.3, draws)
        if constraint.meets(genes):
            children[genes] = "mutation"
    return children


def last_generation(search, count):
    return sorted(search.generations[-1], key=lambda one: -one.fitness)[:count]


def worst(search, count):
    return sorted(search.candidates, key=lambda one: one.fitness)[:count]


def eager(space, constraint, settings, search, draws):
    children = offspring(space, constraint, settings, search, draws)
    search.generations.append([])
    return children


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        (generation(feasible=False), "children cost too much"),
        (generation(new=False), "were evaluated before"),
        (lambda *given: list(offspring(*given)), "gives a dictionary"),
        (lambda *given: {}, "offspring found none"),
        (lambda *given: dict.fromkeys(offspring(*given), "random"), "origin 'random'"),
        (
            lambda *given: {list(genes)[0]: origin for genes, origin in offspring(*given).items()},
            "no tuple of all genes",
        ),
        (eager, "not change it"),
    ],
)
def test_children_that_are_wrong(mistake, named):
    with pytest.raises(AssertionError, match=named):
        check.children_are_new_and_allowed(mistake)


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        (generation(retry=False), "try again when a child is rejected"),
        (lambda *given: {g: o for g, o in offspring(*given).items() if o == "mutation"}, "0 children by crossover"),
        (lambda *given: dict(reversed(offspring(*given).items())), "mutations come first"),
    ],
)
def test_generations_that_are_not_full(mistake, named):
    with pytest.raises(AssertionError, match=named):
        check.a_generation_is_full(mistake)


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        (generation(parents=last_generation), "does not descend from the three fittest"),
        (generation(parents=worst), "does not descend from the three fittest"),
        (generation(parents=lambda search, count: search.candidates), "does not descend from the three fittest"),
        (generation(parents=lambda search, count: search.top(2)), "only 2 of three parents"),
        (lambda *given: dict.fromkeys(generation(pair=3)(*given), "crossover"), "by crossover"),
    ],
)
def test_parents_that_are_wrong(mistake, named):
    with pytest.raises(AssertionError, match=named):
        check.parents_are_the_best_so_far(mistake)


def test_a_generation_that_never_ends_is_stopped():
    with pytest.raises(AssertionError, match="bound the number of attempts"):
        check.ends_where_nothing_is_left(endless)
    with pytest.raises(AssertionError, match="although no vector meets the constraint"):
        check.ends_where_nothing_is_left(generation(feasible=False))


@pytest.mark.parametrize("trained", [True, False])
def test_one_set_of_parameters_fits_every_width(trained):
    digits = data.load("digits")
    images, draws = digits.normalise(digits.x_train), random.Random(0)
    torch.manual_seed(0)
    made = [check.conv_of(16, 1, 3), check.conv_of(32, 16, 3)]
    net = nn.ModuleList([*(WeightGenerator(1, conv) for conv in made), nn.Linear(32, 10)])

    def predict(x, width):
        code = torch.tensor([width / 16])
        for layer, channels in zip(net[:2], ((width, 1), (32, width)), strict=True):
            x = F.max_pool2d(x, 2) if channels[1] == width else x
            x = F.batch_norm(F.conv2d(x, layer(code, *channels), padding=1), None, None, training=True).relu()
        return net[2](x.mean((2, 3)))

    optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    for _ in range(250 if trained else 0):
        batch = torch.randint(len(images), (100,))
        loss = F.cross_entropy(predict(images[batch], draws.randint(2, 16)), digits.y_train[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    if trained:
        assert len(check.fits_every_width(predict, [2, 4, 8, 16])) == 4
    else:
        with pytest.raises(AssertionError, match="% at 16: each should reach 60 %"):
            check.fits_every_width(predict, [2, 4, 8, 16])
