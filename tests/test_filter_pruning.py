"""Filter pruning: the arithmetic of the paper, masks against surgery, fast forms against slow ones."""

import copy
import functools

import pytest
import torch
from torch import nn

from shrinkbook import nets
from shrinkbook.course.checks import li2017 as checks
from shrinkbook.experiments.networks import NETS
from shrinkbook.measure.cost import cost
from shrinkbook.methods import filter_criteria as criteria
from shrinkbook.methods import filter_pruning as pruning
from shrinkbook.methods import filter_surgery as surgery


def small_vgg() -> nn.Module:
    return nets.VGG(((6, 6), (8, 9)), hidden=12, in_channels=1, side=8)  # leaves 2x2 pixels before the linear layer


def small_resnet(projection: bool) -> nn.Module:
    return nets.ResNet((2, 2), (6, 12), in_channels=1, projection=projection)


def awake(model: nn.Module) -> nn.Module:
    return checks.awake(model, seed=0).float()


CASES = [
    (small_vgg, {"conv_1": 0.5, "conv_2": 0.2, "conv_4": 0.6}),
    (lambda: small_resnet(False), {"conv_2": 0.5, "conv_6": 0.3, "conv_8": 0.9}),
    (lambda: small_resnet(True), {"conv_4": 0.5, "conv_6": 0.25, "stage_2": 0.4}),
]


@pytest.mark.parametrize(("build", "ratios"), CASES)
@pytest.mark.parametrize("strategy", ["independent", "greedy"])
def test_masked_network_equals_the_smaller_one_and_the_silenced_one(build, ratios, strategy):
    model = awake(build())
    x = torch.randn(5, 1, 8, 8)
    full = model(x)
    selection = pruning.select(model, ratios, strategy=strategy)
    smaller = pruning.slim(model, selection)
    with pruning.masked(model, selection):
        masked = model(x)
    with checks.silenced(model, selection):
        torch.testing.assert_close(masked, model(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(full, masked, atol=1e-3)
    torch.testing.assert_close(model(x), full, rtol=0, atol=0)
    assert cost(smaller, (1, 8, 8)).mac < cost(model, (1, 8, 8)).mac
    checks.slimmed_equals_silenced(pruning.slim, model.double(), selection)
    checks.original_is_left_alone(pruning.slim, model, selection)


def test_surgery_removes_exactly_the_smallest_filters_and_their_entries():
    model = awake(small_vgg())
    smaller, report = pruning.compress(model, {"conv_3": 0.5})
    norms = model.features.conv_3.weight.abs().sum((1, 2, 3))
    kept = sorted(sorted(range(8), key=lambda j: norms[j].item())[4:])
    assert torch.equal(smaller.features.conv_3.weight, model.features.conv_3.weight[kept])
    assert torch.equal(smaller.features.bn_3.running_var, model.features.bn_3.running_var[kept])
    assert torch.equal(smaller.features.conv_4.weight, model.features.conv_4.weight[:, kept])
    assert (report.filters, report.filters_after) == ({"conv_3": 8}, {"conv_3": 4})
    assert smaller.features.conv_3.out_channels == smaller.features.bn_3.num_features == 4


@pytest.mark.parametrize("kept", [(0, 2, 5), (6,), range(7)])
def test_cutting_one_layer(kept):
    for bias in (True, False):
        checks.filters_cut(surgery.keep_filters, kept, bias, seed=0)
    checks.norm_cut(surgery.keep_norm, kept, seed=0)
    for pixels in (0, 1, 4):
        checks.inputs_cut(surgery.keep_inputs, kept, pixels, seed=0)


def test_what_is_frozen_stays_frozen():
    model = nets.initialize(nets.resnet_cifar(8), 0)
    model.conv1.requires_grad_(False)
    model.get_submodule("layer1.0.conv1").requires_grad_(False)
    smaller, _ = pruning.compress(model, dict.fromkeys(pruning.couplings_of(model), 0.5))
    free = {name: one.requires_grad for name, one in model.named_parameters()}
    assert {name: one.requires_grad for name, one in smaller.named_parameters()} == free
    assert smaller.get_submodule("layer1.0.conv1").weight.shape != model.get_submodule("layer1.0.conv1").weight.shape


def test_kept_count_is_floor_in_decimal():
    checks.kept_counts(pruning.kept_count, range(1, 130), range(0, 100))
    assert [pruning.kept_count(n, p) for n, p in ((64, 0.8), (32, 0.4), (256, 0.4), (5, 0.0))] == [12, 19, 153, 5]
    checks.impossible_ratios_are_refused(pruning.kept_count)


@pytest.mark.parametrize("ratio", [1, 1.5, -0.1, "half", torch.tensor(0.5)])
def test_ratio_out_of_range(ratio):
    with pytest.raises(ValueError, match=r"layer conv_1: pruning ratio .* is no number in \[0, 1\)"):
        pruning.select(small_vgg(), {"conv_1": ratio})


def test_no_filter_left_and_unknown_layer():
    with pytest.raises(ValueError, match="layer conv_1: .* leaves none of 6 filters; use at most 0.833"):
        pruning.select(small_vgg(), {"conv_1": 0.99})
    assert pruning.kept_count(6, 0.833) == 1
    with pytest.raises(ValueError, match="none of 1 filters; leave the layer out"):
        pruning.kept_count(1, 0.5)
    with pytest.raises(ValueError, match="no prunable layer 'conv_5'; this network has conv_1, conv_2"):
        pruning.select(small_vgg(), {"conv_5": 0.5})
    with pytest.raises(ValueError, match="unknown selection strategy"):
        pruning.select(small_vgg(), {"conv_1": 0.5}, strategy="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="couplings"):
        pruning.select(nn.Linear(2, 2), {})


def test_greedy_counts_surviving_channels_only():
    for seed in range(3):
        checks.greedy_counts_survivors(functools.partial(pruning.select, strategy="greedy"), seed)
    model = awake(small_vgg())
    first = pruning.select(model, {"conv_1": 0.5})["conv_1"]
    weight = model.features.conv_2.weight.data
    weight[0] = (
        10 * torch.eye(6)[:, :, None, None].expand(6, 6, 3, 3)[5 - first.tolist()[0]]
    )  # big only on some channels
    alone = {
        name: pruning.select(model, {"conv_2": 0.5}, strategy=name)["conv_2"].tolist()
        for name in ("greedy", "independent")
    }
    assert alone["greedy"] == alone["independent"], "nothing pruned before: the two strategies are one"


@pytest.mark.parametrize("net", ["ResNet-34", "ResNet-50", "digits ResNet with projections", "ResNet-20"])
def test_layers_are_listed_before_those_that_read_their_maps(net):
    with torch.device("meta"):
        couplings = list(pruning.couplings_of(NETS[net]()).values())
    for place, one in enumerate(couplings):
        assert not any(one.ranked_by in later.consumers for later in couplings[place + 1 :]), one.ranked_by


def test_greedy_takes_a_stage_before_the_blocks_that_read_it():
    """A network that describes itself and the same one found by following its forward pass choose the same filters."""

    class Wrapped(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x)

    model = awake(small_resnet(True))
    wrapped = Wrapped(model)
    ratios = dict.fromkeys(pruning.couplings_of(model), 0.5)
    own = pruning.select(model, ratios, strategy="greedy")
    described = {one.ranked_by for one in pruning.couplings_of(model).values()}  # all but the stem
    names = {n: k for n, one in pruning.couplings_of(wrapped).items() if (k := one.ranked_by[6:]) in described}
    traced = pruning.select(wrapped, dict.fromkeys(names, 0.5), strategy="greedy")
    by_kernel = {kernel: traced[name] for name, kernel in names.items()}
    independent = pruning.select(model, ratios)
    for name, one in pruning.couplings_of(model).items():
        assert torch.equal(own[name], by_kernel[one.ranked_by]), name
    assert any(not torch.equal(own[name], independent[name]) for name in own)


def test_greedy_equals_independent_for_first_convolutions_of_blocks():
    model = awake(small_resnet(False))
    ratios = {"conv_2": 0.5, "conv_4": 0.5, "conv_6": 0.5}
    greedy, independent = (pruning.select(model, ratios, strategy=name) for name in ("greedy", "independent"))
    assert all(torch.equal(greedy[layer], independent[layer]) for layer in ratios)


def test_scores_against_loops():
    weight = torch.randn(4, 3, 3, 3)
    checks.l1_scores(criteria.filter_l1, (4, 3, 3, 3), seed=0)
    l2 = [sum(v * v for v in weight[j].flatten().tolist()) ** 0.5 for j in range(4)]
    torch.testing.assert_close(criteria.filter_l2(weight), torch.tensor(l2))
    assert criteria.largest_first(weight).argmin() == criteria.filter_l1(weight).argmax()
    shuffled = torch.randperm(4)
    assert torch.equal(criteria.filter_l1(weight[shuffled]), criteria.filter_l1(weight)[shuffled])


def test_random_control_repeats_by_seed_and_differs_by_layer():
    weight = torch.zeros(8, 1, 1, 1)
    first, again, other = criteria.random_filters(1), criteria.random_filters(1), criteria.random_filters(2)
    a, b = first(weight), first(weight)
    assert torch.equal(a, again(weight))
    assert not torch.equal(a, b)
    assert not torch.equal(a, other(weight))


def test_highest_scores_stay_and_of_equal_ones_the_lower_index():
    for kept in range(1, 6):
        checks.highest_kept(pruning.keep_highest, [0.3, 2.0, 0.1, 1.0, 1.5, 0.3], kept)
    checks.highest_kept(pruning.keep_highest, [1.0, 2.0, 1.0, 1.0], 2)


def test_activation_scores_against_the_whole_tensor():
    model = awake(small_vgg())
    x = torch.randn(10, 1, 8, 8)
    got = criteria.activation_scores(model, {"conv_2": "features.conv_2"}, x.split(4))
    with torch.no_grad():
        maps = model.features[:4](x).flatten(2)  # conv_1, bn_1, relu_1, conv_2: before its batch norm
    l2 = maps.norm(dim=2)
    want = {
        "mean-mean": maps.mean(2).mean(0),
        "mean-std": maps.std(2, correction=0).mean(0),
        "mean-l1": maps.abs().sum(2).mean(0),
        "mean-l2": l2.mean(0),
        "var-l2": l2.var(0, correction=0),
    }
    assert tuple(got) == tuple(want)
    for name, value in want.items():
        torch.testing.assert_close(got[name]["conv_2"], value, rtol=1e-3, atol=1e-5)
    assert not model.features.conv_2._forward_hooks
    with pytest.raises(ValueError, match="no image"):
        criteria.activation_scores(model, {"conv_2": "features.conv_2"}, [])


def test_sensitivity_by_mask_equals_sensitivity_by_surgery():
    model = awake(small_resnet(True))
    x = torch.randn(6, 1, 8, 8)
    layers, ratios = ["conv_2", "stage_2"], [0.0, 0.5, 0.8]
    by_mask = pruning.sensitivity(model, layers, ratios, lambda m: m(x).detach())
    by_surgery = pruning.sensitivity(model, layers, ratios, lambda m: m(x).detach(), retrain=lambda m: None)
    for layer in layers:
        for one, other in zip(by_mask[layer], by_surgery[layer], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(by_mask["conv_2"][0], model(x).detach())


def test_retraining_a_scan_leaves_the_original_alone():
    model = awake(small_vgg())
    before = copy.deepcopy(model.state_dict())
    seen = []
    pruning.sensitivity(
        model, ["conv_2"], [0.5], lambda m: 0.0, retrain=lambda m: seen.append(m.features.conv_2.out_channels)
    )
    assert seen == [3]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("build", "ratios"), CASES)
def test_scan_through_the_tail_equals_the_whole_network(build, ratios):
    model = awake(build())
    x = torch.randn(5, 1, 8, 8)
    for layer, ratio in ratios.items():
        head, tail = pruning.split_before(model, layer)
        kept = head(x).clone()
        torch.testing.assert_close(tail(kept.clone()), model(x), rtol=1e-5, atol=1e-6)
        with pruning.masked(model, pruning.select(model, {layer: ratio})):
            torch.testing.assert_close(tail(kept.clone()), model(x), rtol=1e-5, atol=1e-6)
