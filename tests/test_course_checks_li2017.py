"""The checks of the assignment on filter pruning: the library passes, a student's mistake is told in a sentence."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from shrinkbook.course.checks import li2017 as check
from shrinkbook.methods.filter_criteria import filter_l1
from shrinkbook.methods.filter_pruning import keep_highest, kept_count, select, slim
from shrinkbook.methods.filter_surgery import keep_entries, keep_filters, keep_inputs, keep_norm

scores = partial(check.l1_scores, shape=(6, 4, 3, 3), seed=1)
counts = partial(check.kept_counts, filters=(16, 64, 10, 20), percents=(10, 40, 60, 80, 90))
highest = partial(check.highest_kept, scores=(0.3, 2.0, 0.1, 1.0, 1.5), kept=3)
filters = partial(check.filters_cut, kept=(0, 2, 5), bias=True, seed=1)
norm = partial(check.norm_cut, kept=(0, 2, 5), seed=1)
convolution = partial(check.inputs_cut, kept=(0, 2, 5), pixels=0, seed=1)
linear = partial(check.inputs_cut, kept=(0, 2, 5), pixels=4, seed=1)


def chain(slim):
    check.slimmed_equals_silenced(slim, *check.small_vgg(1))


def residual(slim):
    for projection, layers in ((True, ("conv_4", "conv_6", "stage_2")), (False, ("conv_2", "conv_6"))):
        check.slimmed_equals_silenced(slim, *check.small_resnet(1, layers, projection))


def original(slim):
    check.original_is_left_alone(slim, *check.small_vgg(1))


greedily = partial(select, strategy="greedy")
greedy = partial(check.greedy_counts_survivors, seed=1)

RIGHT = [
    (scores, filter_l1),
    (counts, kept_count),
    (check.impossible_ratios_are_refused, kept_count),
    (highest, keep_highest),
    (partial(highest, scores=[1.0, 2.0, 1.0, 1.0], kept=2), keep_highest),
    (filters, keep_filters),
    (norm, keep_norm),
    (convolution, keep_inputs),
    (linear, keep_inputs),
    (chain, slim),
    (residual, slim),
    (original, slim),
    (greedy, greedily),
]


@pytest.mark.parametrize(("check", "function"), RIGHT)
def test_the_library_passes(check, function):
    check(function)


def only(*names, axis=0, size=None):
    """A cut of these tensors alone."""

    def cut(module, kept, *_):
        keep_entries(module, names, kept, axis)
        if size:
            setattr(module, size, len(kept))

    return cut


def first_maps(module, kept, *_):
    keep_filters(module, torch.arange(len(kept)))


def as_a_buffer(module, kept):
    keep_filters(module, kept)
    weight = module.weight.detach()
    del module.weight
    module.weight = weight


def pixels_apart(reader, kept, maps):
    """The columns of a layout (pixels, maps) in place of (maps, pixels)."""
    pixels = reader.in_features // maps
    columns = (torch.arange(pixels)[:, None] * maps + kept).flatten()
    keep_entries(reader, ("weight",), columns, axis=1)
    reader.in_features = len(columns)


def slim_without(part: str):
    """The library's surgery that forgets one part of each coupling."""

    def cut(model, selection):
        smaller = copy.deepcopy(model)
        for name, kept in selection.items():
            coupling = smaller.couplings()[name]
            maps = len(smaller.get_submodule(coupling.ranked_by).weight)
            for path in coupling.producers[:1] if part == "other producers" else coupling.producers:
                keep_filters(smaller.get_submodule(path), kept)
            for path in () if part == "norms" else coupling.norms:
                keep_norm(smaller.get_submodule(path), kept)
            for path in () if part == "readers" else coupling.consumers:
                keep_inputs(smaller.get_submodule(path), kept, maps)
        return smaller

    return cut


def slim_in_place(model, selection):
    for name, kept in selection.items():
        coupling = model.couplings()[name]
        maps = len(model.get_submodule(coupling.ranked_by).weight)
        for path in coupling.producers:
            keep_filters(model.get_submodule(path), kept)
        for path in coupling.norms:
            keep_norm(model.get_submodule(path), kept)
        for path in coupling.consumers:
            keep_inputs(model.get_submodule(path), kept, maps)
    return model


def slim_with_the_statistics_of_others(model, selection):
    smaller = slim(model, selection)
    for name, kept in selection.items():
        for path in model.couplings()[name].norms:
            smaller.get_submodule(path).running_mean = model.get_submodule(path).running_mean[: len(kept)].clone()
    return smaller


WRONG = [
    (scores, lambda weight: None, "None: is there a return"),
    (scores, lambda weight: weight.sum((1, 2, 3)), "cancel"),
    (scores, lambda weight: weight.sum((1, 2, 3)).abs(), "absolute value of a sum"),
    (scores, lambda weight: weight.square().sum((1, 2, 3)).sqrt(), "Euclidean"),
    (scores, lambda weight: weight.abs().mean((1, 2, 3)), "mean"),
    (partial(scores, shape=(5, 5, 3, 3)), lambda weight: weight.abs().sum((0, 2, 3)), "axis 0"),
    (scores, lambda weight: weight.abs().sum((2, 3)), r"shape \(6, 4\); expected \(6,\)"),
    (counts, lambda n, p: round(n * (1 - p)), "round down"),
    (counts, lambda n, p: n - kept_count(n, p), "how many go"),
    (counts, lambda n, p: int(n * (1 - p)), r"kept_count\(10, 0.8\) is 1, not 2: .*Fraction"),
    (check.impossible_ratios_are_refused, lambda n, p: int(n * (1 - p)), "should raise a ValueError"),
    (highest, lambda s, k: s.argsort()[:k].sort().values, "lowest scores stay"),
    (highest, lambda s, k: s.argsort(descending=True)[:k], "must ascend"),
    (partial(highest, scores=[1.0, 2.0, 1.0], kept=2), lambda s, k: torch.tensor([1, 2]), "stable=True"),
    (filters, only("weight", size="out_channels"), "the bias after keep_filters"),
    (filters, only("weight", "bias"), "out_channels is 7; 3 filters are left"),
    (filters, only("weight", axis=1), r"the weight after keep_filters .* shape \(7, 3, 3, 3\)"),
    (filters, first_maps, "the weight after keep_filters"),
    (filters, as_a_buffer, "no nn.Parameter"),
    (norm, only("weight", "bias", size="num_features"), "running_mean after keep_norm"),
    (norm, only("weight", "running_mean", "running_var", size="num_features"), "bias after keep_norm"),
    (norm, only("weight", "bias", "running_mean", "running_var"), "num_features is 7; 3 maps are left"),
    (convolution, only("weight", axis=1), "in_channels of the convolution is 7, not 3"),
    (convolution, only("weight", axis=0, size="in_channels"), "input maps are axis 1"),
    (linear, only("weight", axis=1, size="in_features"), r"the columns of map m are"),
    (linear, pixels_apart, "the output of the cut linear layer"),
    (chain, slim_without("norms"), "features.bn_1 writes 6 maps of conv_1, 3 are kept"),
    (chain, slim_without("readers"), "features.conv_2 reads 6 inputs, 3 are left of conv_1"),
    (chain, slim_with_the_statistics_of_others, "did biases and norms follow"),
    (chain, lambda model, selection: None, "should return the smaller network"),
    (residual, slim_without("other producers"), "of stage_2, 6 are kept"),
    (original, slim_in_place, "work on a copy"),
    (original, lambda model, selection: copy.copy(model), "of the original changed"),
    (greedy, select, "that conv_1 still writes"),
]


@pytest.mark.parametrize(("check", "function", "sentence"), WRONG)
def test_a_mistake_is_told(check, function, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check(function)


def test_silence_is_the_networks_own_output_where_all_maps_stay():
    model, _ = check.small_resnet(2)
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    with check.silenced(model, {"stage_2": torch.arange(12)}):
        torch.testing.assert_close(model(x), model(x))
    with check.silenced(model, {"stage_2": torch.arange(6)}):
        silent = model(x)
    assert not torch.allclose(silent, model(x))
    assert not any(module._forward_hooks for module in model.modules() if isinstance(module, nn.Module))
