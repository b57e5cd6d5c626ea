"""Clustering the kernels of a network: how kernels are normalised, which codebook they get, how many bits they take."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shrinkbook import nets
from shrinkbook.course.checks import son2018 as checks
from shrinkbook.methods import filter_pruning, kernel_sizes
from shrinkbook.methods import kernel_clustering as kc
from shrinkbook.methods.clustered_layers import clustered_layers
from shrinkbook.methods.kernel_transforms import permutations


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_net() -> nn.Sequential:
    """3x3 layers of 24, 96 and 96 kernels, one of them grouped, a 5x5 layer of 32, and two layers to leave alone."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)]
    layers += [nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2, groups=2), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 4, 5, padding=2)]
    net = nn.Sequential(*layers, nn.Conv2d(4, 2, 2), nn.Flatten(), nn.Linear(2 * 9, 5))
    return nets.initialize(net, 0).eval()


IMAGES = drawn(2, 3, 10, 10, seed=7)
SMALL = {5: 8}  # k of the 5x5 layer


def on_meta(make) -> nn.Module:
    with torch.device("meta"):
        return make()


def dense(model: nn.Module, path: str) -> torch.Tensor:
    return model.get_submodule(path).weight.detach()


def test_normalised_kernels_have_norm_one_and_a_positive_centre():
    for side in (1, 3, 5):
        checks.splits_into_units_and_scales(kc.normalise, 100, side, seed=0)
    checks.normalises_zeros(kc.normalise)
    negative_zero = torch.ones(1, 3, 3).index_fill(1, torch.tensor([1]), -0.0)
    assert kc.normalise(negative_zero)[1] > 0


def test_a_kernel_its_negative_and_its_multiples_coincide():
    kernels = drawn(50, 3, 3)
    units, scales = kc.normalise(kernels)
    for factor in (-1.0, 4.0, -1e-30):
        others, others_scales = kc.normalise(factor * kernels)
        torch.testing.assert_close(others, units)
        torch.testing.assert_close(others_scales, factor * scales)
    weight = torch.cat([kernels, -3 * kernels]).view(10, 10, 3, 3)
    _, codes = kc.cluster_kernels({"layer": weight}, 6, transforms=8)
    first, second = codes["layer"].index.view(2, 50)
    assert torch.equal(first, second) and torch.equal(*codes["layer"].transform.view(2, 50))


def test_as_many_centroids_as_kernels_keep_the_network():
    net = small_net()
    for scaled in (True, False):
        clustered, report = kc.compress(net, 24 + 96 + 96, sizes={5: 32}, scaled=scaled)
        assert [layer.error < (1e-3 if scaled else 1e-6) for layer in report.layers] == [True] * 4
        for name in ("0", "2", "5", "7"):
            assert F.mse_loss(dense(clustered, name), dense(net, name)) < 1e-6 * dense(net, name).square().mean()
        torch.testing.assert_close(clustered(IMAGES), net(IMAGES), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("transforms", [1, 2, 4, 8])
@pytest.mark.parametrize("scaled", [True, False])
def test_weights_are_scaled_transformed_centroids_with_the_error_of_the_clustering(transforms, scaled):
    weights = {"a": drawn(6, 5, 3, 3), "b": drawn(4, 7, 3, 3, seed=1)}
    found, codes = kc.cluster_kernels(weights, 5, transforms=transforms, scaled=scaled, seed=3)
    perms, total = permutations(3, transforms), 0.0
    for name, weight in weights.items():
        code = codes[name]
        assert (code.scale is None) != scaled and code.kept.all() and code.index.shape == weight.shape[:2]
        for output in range(weight.shape[0]):
            for channel in range(weight.shape[1]):
                kernel = weight[output, channel]
                centroid = found.centroids[code.index[output, channel]][perms[code.transform[output, channel]]]
                if scaled:
                    kernel = kernel / code.scale[output, channel]
                    norm = weight[output, channel].norm()
                    torch.testing.assert_close(code.scale[output, channel].abs(), norm)
                total += float((kernel - centroid.view(3, 3)).square().sum())
    assert total == pytest.approx(found.inertia, rel=1e-5)


@pytest.mark.parametrize("inplace", [False, True])
def test_compressed_layers_hold_what_the_clustering_found(inplace):
    net = small_net()
    before = copy.deepcopy(net)
    clustered, report = kc.compress(net, 16, transforms=4, sizes=SMALL, seed=2, inplace=inplace)
    assert (clustered is net) == inplace
    if not inplace:
        assert all(
            torch.equal(a, b) for a, b in zip(net.state_dict().values(), before.state_dict().values(), strict=True)
        )
    found, codes = kc.cluster_kernels({name: dense(before, name) for name in "025"}, 16, transforms=4, seed=2)
    layers = clustered_layers(clustered)
    assert list(layers) == ["0", "2", "5", "7"]
    assert layers["0"].codebook is layers["5"].codebook and layers["7"].codebook.centroids.shape == (8, 5, 5)
    assert torch.equal(layers["0"].codebook.centroids.flatten(1), found.centroids)
    for name in "025":
        assert torch.equal(layers[name].index.long(), codes[name].index) and layers[name].kept is None
        assert torch.equal(layers[name].transform.long(), codes[name].transform)
        layer = layers[name]
        error = (layer.weight.detach() - dense(before, name)).norm() / dense(before, name).norm()
        assert report.layers["025".index(name)].error == pytest.approx(float(error), rel=1e-5)
    assert report.codebooks[0].inertia == found.inertia and report.codebooks[0].kernels == 216
    assert clustered(IMAGES).isfinite().all()
    again = kc.compress(before, 16, transforms=4, sizes=SMALL, seed=2)[0]
    assert torch.equal(again(IMAGES), clustered(IMAGES))
    other = kc.compress(before, 16, transforms=4, sizes=SMALL, seed=3)[0]
    assert not torch.equal(other(IMAGES), clustered(IMAGES))


def test_double_precision_networks_stay_double():
    clustered, _ = kc.compress(small_net().double(), 16, sizes=SMALL)
    assert clustered(IMAGES.double()).dtype == torch.float64


def test_codebooks_one_per_layer_and_by_lists():
    net = small_net()
    one, each = (kc.compress(net, 30, sizes={5: 30}, codebooks=codebooks)[1] for codebooks in ("one", "per layer"))
    assert [layer.codebook for layer in one.layers] == [0, 0, 0, 1]
    assert [layer.codebook for layer in each.layers] == [0, 1, 2, 3]
    assert [layer.k for layer in each.layers] == [24, 30, 30, 30]  # the first layer has 24 kernels only
    model, split = kc.compress(net, 20, codebooks=[["5", "0"], ["2"]])
    assert [(layer.name, layer.codebook) for layer in split.layers] == [("0", 0), ("2", 1), ("5", 0)]
    assert [(group.k, group.kernels) for group in split.codebooks] == [(20, 120), (20, 96)]
    assert {other.name: other.note for other in split.others}["7"] == "in no codebook"
    layers = clustered_layers(model)
    assert layers["0"].codebook is layers["5"].codebook is not layers["2"].codebook
    assert sum(layer.error**2 for layer in each.layers[:3]) < sum(layer.error**2 for layer in one.layers[:3])


def test_transforms_lower_the_cost_at_equal_k():
    inertia = [kc.compress(small_net(), 8, transforms=t, sizes=SMALL)[1].codebooks[0].inertia for t in (1, 2, 4, 8)]
    assert inertia == sorted(inertia, reverse=True) and inertia[3] < 0.7 * inertia[0]


def test_layers_that_cannot_be_clustered_are_named_with_the_reason():
    net = small_net()
    net.append(nn.Conv2d(3, 3, (1, 3))).append(nn.ConvTranspose2d(3, 3, 3))
    net.append(nn.Conv2d(3, 4, 3)).append(nn.Conv2d(3, 4, 3))
    net[13].weight = net[14].weight
    assert list(kc.spatial_layers(net)) == ["0", "2", "5", "7"]
    others = {other.name: (other.weights, other.note) for other in kc.plan(net, 4).others}
    assert others == {
        "6": (128, "1x1"),
        "8": (32, "2x2 kernels have no centre or are not square"),
        "11": (27, "1x3 kernels have no centre or are not square"),
        "13": (108, "shares weights with 14"),
        "14": (108, "shares weights with 13"),
    }
    assert kc.spatial_layers(kc.compress(small_net(), 4)[0]) == {}


def test_zero_kernels_take_no_part_and_stay_zero():
    net = small_net()
    with torch.no_grad():
        net[2].weight[:, :4] = 0
        net[2].weight[0, 5, 1, 1] = 0  # a zero centre is no zero kernel
    for scaled in (True, False):
        clustered, report = kc.compress(net, 10, codebooks=[["2"]], scaled=scaled)
        weight = dense(clustered, "2")
        assert not weight[:, :4].any() and weight[:, 4:].flatten(2).any(2).all()
        assert (report.layers[0].kernels, report.layers[0].kept, report.mask_bits) == (96, 48, 96)
        rest, _ = kc.cluster_kernels({"2": dense(net, "2")[:, 4:]}, 10, scaled=scaled)
        assert torch.equal(clustered_layers(clustered)["2"].codebook.centroids.flatten(1), rest.centroids)
    with torch.no_grad():
        net[2].weight.zero_()
    with pytest.raises(ValueError, match=r"codebook 1 \(2\): k = 10 for 0 3x3 kernels"):
        kc.compress(net, 10, codebooks="per layer")


def test_pruning_keeps_the_larger_half_of_each_layer_but_the_first():
    net = small_net()
    pruned, masks = kc.prune_kernels(net)
    assert list(masks) == ["2", "5", "7"] and torch.equal(dense(pruned, "0"), dense(net, "0"))
    for name, mask in masks.items():
        norms = dense(net, name).abs().sum((2, 3))
        assert mask.sum() == mask.numel() // 2 and norms[mask].min() >= norms[~mask].max()
        assert torch.equal(dense(pruned, name), dense(net, name) * mask[:, :, None, None])
    odd = nn.Sequential(nn.Conv2d(5, 3, 3))
    assert kc.prune_kernels(odd)[1]["0"].sum() == 7  # floor(15 / 2)
    assert kc.prune_kernels(odd, 0.2)[1]["0"].sum() == 12
    clustered, report = kc.compress(pruned, 12, sizes=SMALL)
    assert [layer.kept for layer in report.layers] == [24, 48, 48, 16]
    for name, mask in masks.items():
        assert torch.equal(dense(clustered, name).flatten(2).any(2), mask)


def test_pruned_kernels_stay_zero_while_the_rest_is_retrained():
    pruned, masks = kc.prune_kernels(small_net())
    before = {name: dense(pruned, name).clone() for name in masks}

    def train(steps):
        optimiser = torch.optim.SGD(pruned.parameters(), lr=1e-3, momentum=0.9, weight_decay=0.01)
        for _ in range(steps):
            optimiser.zero_grad()
            pruned(IMAGES).square().sum().backward()
            optimiser.step()

    with kc.pruned_stay_zero(pruned, masks):
        train(3)
    for name, mask in masks.items():
        assert torch.equal(dense(pruned, name).flatten(2).any(2), mask)
        assert not torch.equal(dense(pruned, name), before[name])
    train(1)
    assert (dense(pruned, "2").flatten(2).any(2) & ~masks["2"]).any()


@pytest.mark.parametrize(
    ("k", "transforms", "expected"),
    [
        (32, 1, "13.71 4.292"),
        (64, 1, "13.08 4.497"),
        (128, 1, "12.51 4.704"),
        (256, 1, "11.98 4.913"),
        (512, 1, "11.48 5.126"),
        (1024, 1, "11.00 5.349"),
        (128, 2, "11.99 4.908"),
        (64, 4, "11.99 4.906"),
        (32, 8, "12.00 4.905"),
    ],
)
def test_sizes_of_vgg16_follow_the_formula(k, transforms, expected):
    report = kc.plan(on_meta(nets.vgg16), k, transforms=transforms)
    assert sum(layer.kernels for layer in report.layers) == 1_634_496
    assert f"{report.ratio():.2f} {report.bits_after() / 8e6:.3f}" == expected
    assert report.bits_after() == kernel_sizes.bits(1_634_496, k, 9, transforms)
    assert report.ratio() == kernel_sizes.ratio(1_634_496, k, 9, transforms) == report.whole_ratio()


@pytest.mark.parametrize(("k", "scaled", "printed"), [(256, True, 11.1), (1024, True, 10.3), (1024, False, 23.6)])
def test_printed_ratios_of_resnet18_count_every_convolution_at_16_bits(k, scaled, printed):
    report = kc.plan(on_meta(nets.resnet18), k, scaled=scaled, sizes={7: 64})
    assert [(group.k, group.area, group.kernels) for group in report.codebooks] == [(64, 49, 192), (k, 9, 1_220_608)]
    assert round(report.whole_ratio(pointwise_bits=16, codebook_bits=16), 1) == printed
    assert round(report.whole_ratio(), 1) != printed


def test_sizes_of_the_other_models_in_the_tables():
    def counted(make, k, **options):
        return kc.plan(on_meta(make), k, **options)

    assert round(counted(lambda: nets.resnet_cifar(56), 128).ratio(), 2) == 12.31
    assert round(counted(nets.densenet_12_40, 128).ratio(), 2) == 12.33
    unscaled = counted(nets.densenet_bc_100_12, 128, scaled=False)
    assert int(unscaled.ratio(codebook_bits=16) * 10) / 10 == 37.5
    assert unscaled.bits_after(16) == kernel_sizes.bits(27_720, 128, scaled=False, codebook_bits=16)
    pruned = kc.prune_kernels(nets.vgg16())[0]
    report = kc.plan(pruned, 128)
    assert f"{report.bits_after() / 8e6:.2f} {report.ratio():.1f}" == "2.35 25.0"
    per_layer = counted(nets.vgg16, 256, codebooks="per layer")
    assert [group.k for group in per_layer.codebooks] == [192] + 12 * [256]
    halved = {f"conv_{number}": 0.5 for number in (1, *range(8, 14))}
    filters = counted(lambda: filter_pruning.slim(nets.vgg16(), filter_pruning.select(nets.vgg16(), halved)), 512)
    assert sum(layer.kernels for layer in filters.layers) == 583_776
    assert filters.bits_after() == kernel_sizes.bits(583_776, 512)


def test_bits_by_the_formula():
    checks.index_bits_suffice(kernel_sizes.index_bits, 300)
    for transforms, scaled in ((1, True), (8, True), (4, False)):
        checks.bits_add_up(kernel_sizes.bits, 27_720, 192, 25, transforms, scaled)


def test_rows_hold_what_a_table_shows():
    clustered, report = kc.compress(small_net(), 16, transforms=2, sizes=SMALL)
    row = report.rows()[1]
    assert {name: row[name] for name in row if name != "error"} == {
        "name": "2",
        "kernels": 96,
        "kept": 96,
        "area": 9,
        "codebook": 0,
        "k": 16,
        "index_bits": 5,
        "scale_bits": 16,
    }
    planned = kc.plan(small_net(), 16, transforms=2, sizes=SMALL)
    assert planned.bits_after(16) == report.bits_after(16) and planned.layers[1].error is None
    assert report.codebooks[0].converged and report.codebooks[0].iterations > 1
    assert report.bits_before == (216 * 9 + 32 * 25) * 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k = 0 for 3x3 kernels"),
        ({"k": 2.5}, "k = 2.5 for 3x3 kernels"),
        ({"sizes": {5: 0}}, "k = 0 for 5x5 kernels"),
        ({"sizes": {7: 4}}, r"sizes: no 7x7 kernels; there are \[3, 5\]"),
        ({"k": 217}, r"codebook 0 \(0, 2, 5\): k = 217 for 216 3x3 kernels .* give at most 216"),
        ({"k": 33}, r"codebook 1 \(7\): k = 33 for 32 5x5 kernels .* sizes=\{5: ...\}"),
        ({"transforms": 3}, "transforms = 3 .*choose from 1, 2, 4, 8"),
        ({"codebooks": "two"}, "unknown codebooks 'two'"),
        ({"codebooks": [["0"], ["6"]]}, "no spatial layer '6'; there are 0, 2, 5, 7"),
        ({"codebooks": [["0", "2"], ["0"]]}, "layer 0 is named 2 times"),
        ({"codebooks": [["2", "7"]]}, r"one kernel size, got \[2 3x3, 7 5x5\]"),
        ({"codebooks": [["2"], []]}, r"one kernel size, got \[\]"),
        ({"start": "first"}, "unknown start 'first'"),
        ({"max_iterations": 0}, "max_iterations = 0"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        kc.compress(small_net(), **({"k": 4} | options))
    assert "\n" not in str(caught.value)


def test_bad_networks_are_refused():
    with pytest.raises(ValueError, match="Sequential has no spatial kernels to cluster"):
        kc.compress(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(4, 2)), 4)
    with pytest.raises(ValueError, match="layer 0 has no values on the meta device; use plan"):
        kc.compress(on_meta(lambda: nn.Sequential(nn.Conv2d(3, 8, 3))), 4)
    for value, message in ((float("nan"), "layer 2: the weights hold NaN"), (1e6, "layer 2: .*half precision")):
        net = small_net()
        net[2].weight.data[1, 1] = value
        with pytest.raises(ValueError, match=message):
            kc.compress(net, 4)
    with pytest.raises(ValueError, match="nothing to prune"):
        kc.prune_kernels(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(ValueError, match=r"layer 2: pruning ratio 1.0 is no number in \[0, 1\)"):
        kc.prune_kernels(small_net(), 1.0)
