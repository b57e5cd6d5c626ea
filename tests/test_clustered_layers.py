"""Clustered convolutions: the dense layer they stand for, gradients by the paper's sums, sharing that survives."""

import copy
import pickle

import pytest
import torch
from torch import nn

from shrinkbook.measure.cost import cost, parameter_count
from shrinkbook.methods.clustered_layers import (
    ClusteredConv2d,
    Codebook,
    cluster_conv,
    clustered_layers,
    codebooks,
    expand,
    replace_layers,
)

FLIP = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8], [2, 1, 0, 5, 4, 3, 8, 7, 6]])
TURN = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8], [6, 3, 0, 7, 4, 1, 8, 5, 2]])  # not its own inverse


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(below: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def clustered(conv: nn.Conv2d, codebook: Codebook, scaled: bool = True, pruned: bool = False) -> ClusteredConv2d:
    """The layer with random codes, and half its kernels pruned if asked."""
    shape = conv.weight.shape[:2]
    k, transforms = len(codebook.centroids), len(codebook.permutations)
    scale = drawn(*shape, seed=3) if scaled else None
    kept = drawn(*shape, seed=4) > 0 if pruned else None
    return cluster_conv(conv, codebook, whole(k, *shape), whole(transforms, *shape, seed=2), scale, kept)


def by_hand(layer: ClusteredConv2d) -> torch.Tensor:
    """Oracle: one kernel after another."""
    centroids, perms = layer.codebook.centroids.detach(), layer.codebook.permutations
    weight = torch.zeros(*layer.index.shape, *centroids.shape[1:], dtype=centroids.dtype)
    for j in range(weight.shape[0]):
        for i in range(weight.shape[1]):
            if layer.kept is None or layer.kept[j, i]:
                kernel = centroids[int(layer.index[j, i])].flatten()[perms[int(layer.transform[j, i])]]
                scale = 1.0 if layer.scale is None else layer.scale[j, i].half().double()
                weight[j, i] = scale * kernel.view(centroids.shape[1:])
    return weight


def small_net(scaled: bool = True, pruned: bool = False) -> nn.Sequential:
    """Two layers on one codebook, a third on another, a 1x1 convolution and a batch norm between."""
    shared, own = Codebook(drawn(5, 3, 3), TURN), Codebook(drawn(300, 3, 3, seed=1))
    return nn.Sequential(
        clustered(nn.Conv2d(3, 8, 3, padding=1).double(), shared, scaled),
        nn.BatchNorm2d(8).double(),
        nn.ReLU(),
        nn.Conv2d(8, 6, 1).double(),
        clustered(nn.Conv2d(6, 8, 3, stride=2, bias=False).double(), shared, scaled, pruned),
        clustered(nn.Conv2d(8, 4, 3, padding=1).double(), own, scaled, pruned),
    ).eval()


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("pruned", [True, False])
def test_weight_is_the_scaled_transformed_centroid(scaled, pruned):
    for layer in clustered_layers(small_net(scaled, pruned)).values():
        assert torch.equal(layer.weight, by_hand(layer))
        if layer.kept is not None:
            assert not layer.weight[~layer.kept].any() and layer.weight[layer.kept].any()


@pytest.mark.parametrize(
    "geometry",
    [
        {"stride": 2, "padding": 1},
        {"padding": "same", "dilation": 2},
        {"groups": 2, "bias": False},
        {"padding": (2, 1), "padding_mode": "reflect", "groups": 3},
        {"padding": 1, "padding_mode": "circular"},
    ],
)
def test_geometry_and_bias_survive(geometry):
    conv = nn.Conv2d(6, 12, 3, **geometry).double()
    layer = clustered(conv, Codebook(drawn(4, 3, 3), FLIP))
    x = drawn(2, 6, 9, 8)
    twin = copy.deepcopy(conv)
    twin.weight.data = by_hand(layer)
    assert torch.equal(layer(x), twin(x))
    assert (layer.bias is None) == (conv.bias is None) and layer.bias is not conv.bias or conv.bias is None
    assert isinstance(layer, nn.Conv2d) and layer.extra_repr() == conv.extra_repr()


def test_other_kernel_sizes():
    layer = clustered(nn.Conv2d(3, 8, 7, stride=2, padding=3).double(), Codebook(drawn(6, 7, 7)), pruned=True)
    assert torch.equal(layer.weight, by_hand(layer)) and layer(drawn(1, 3, 16, 16)).shape == (1, 8, 8, 8)


def test_gradients_are_the_sums_of_the_paper():
    """Centroid: sum over its kernels of s_ij times the gradient with the transform undone; scale: inner product."""
    model = small_net(pruned=True)
    x, towards = drawn(2, 3, 8, 8, seed=8), drawn(2, 4, 3, 3, seed=9)
    (model(x) * towards).sum().backward()
    dense = expand(model)
    (dense(x) * towards).sum().backward()
    expected = {id(book): torch.zeros_like(book.centroids) for book in codebooks(model)}
    for path, layer in clustered_layers(model).items():
        gradient = dense.get_submodule(path).weight.grad
        scales = torch.zeros_like(layer.scale)
        for j in range(layer.out_channels):
            for i in range(layer.in_channels):
                if layer.kept is not None and not layer.kept[j, i]:
                    continue
                n, perm = int(layer.index[j, i]), layer.codebook.permutations[int(layer.transform[j, i])]
                flat = gradient[j, i].flatten()
                scales[j, i] = layer.codebook.centroids[n].flatten()[perm] @ flat
                undone = torch.empty_like(flat)
                undone[perm] = flat
                expected[id(layer.codebook)][n] += layer.scale[j, i].half().double() * undone.view(3, 3)
        torch.testing.assert_close(layer.scale.grad, scales, rtol=1e-10, atol=1e-10)
    for book in codebooks(model):
        torch.testing.assert_close(book.centroids.grad, expected[id(book)], rtol=1e-10, atol=1e-10)


def test_gradient_of_the_expanded_weights_by_numbers():
    """Full autograd of s * mu[permuted], written with plain indexing, agrees."""
    layer = clustered(nn.Conv2d(6, 8, 3).double(), Codebook(drawn(5, 3, 3), TURN))
    x = drawn(1, 6, 5, 5)
    layer(x).square().sum().backward()
    centroids = layer.codebook.centroids.detach().clone().requires_grad_()
    scale = layer.scale.detach().half().double().requires_grad_()
    flat = centroids.flatten(1)[layer.index.long()[..., None], TURN[layer.transform.long()]]
    weight = (scale[..., None] * flat).view(8, 6, 3, 3)
    nn.functional.conv2d(x, weight, layer.bias).square().sum().backward()
    torch.testing.assert_close(layer.codebook.centroids.grad, centroids.grad)
    torch.testing.assert_close(layer.scale.grad, scale.grad)


def test_scales_are_rounded_where_used_and_trained_in_full():
    codebook = Codebook(torch.ones(1, 3, 3))
    values = torch.tensor([[0.1, -1.0004882, 3e-8, 2e-8, 65504.0, 1e-4, -0.0]])
    layer = cluster_conv(nn.Conv2d(7, 1, 3), codebook, torch.zeros(1, 7, dtype=torch.int64), scale=values)
    assert torch.equal(layer.used_scale(), values.half().float())
    assert torch.equal(layer.scale, values) and not torch.equal(layer.used_scale(), values)
    layer.weight.sum().backward()
    assert torch.equal(layer.scale.grad, torch.full((1, 7), 9.0))
    torch.optim.SGD(layer.parameters(), lr=1e-5).step()  # far below half precision at 1
    assert layer.scale[0, 1] != values[0, 1]


def test_a_codebook_stays_shared_and_counts_once():
    model = small_net()
    others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).to(torch.float64)]
    for twin in others:
        assert twin[0].codebook is twin[4].codebook is not twin[5].codebook
        assert twin[0].codebook is not model[0].codebook
    assert len(codebooks(model)) == 2
    scales, biases = 8 * 3 + 8 * 6 + 4 * 8, 8 + 4
    assert parameter_count(model) == 9 * (5 + 300) + scales + biases + (16 + 8 * 6 + 6)
    for parameter in others[0].parameters():
        parameter.data.zero_()
    others[0].load_state_dict(model.state_dict())
    x = drawn(1, 3, 8, 8)
    assert torch.equal(others[0](x), model(x))


def test_codes_take_little_room_and_are_not_trained():
    layer, model = small_net()[0], small_net()
    assert layer.index.dtype == layer.transform.dtype == torch.uint8 and model[5].index.dtype == torch.int16
    assert model.float()[5].index.dtype == torch.int16
    assert {name for name, _ in layer.named_parameters()} == {"bias", "scale", "codebook.centroids"}


def test_costs_and_hooks_see_a_convolution():
    model = small_net(pruned=True)
    plain = cost(expand(model.float()), (3, 8, 8))
    assert cost(model, (3, 8, 8)) == plain and plain.layers[0].mac == 9 * 3 * 8 * 64


def test_expand_gives_plain_layers_and_the_same_outputs():
    model = small_net(pruned=True).train()
    x = drawn(2, 3, 8, 8)
    dense = expand(model.eval())
    assert torch.equal(dense(x), model(x)) and not clustered_layers(dense)
    assert type(dense[0]) is nn.Conv2d and set(clustered_layers(model)) == {"0", "4", "5"}
    assert dense[0].weight.is_leaf and dense[0].bias is not model[0].bias and not dense[0].training
    assert type(expand(model[0])) is nn.Conv2d


def test_a_module_used_twice_is_replaced_in_both_places():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1).double(), nn.ReLU())
    model.append(model[0])
    layer = clustered(model[0], Codebook(drawn(3, 3, 3)))
    assert replace_layers(model, {"0": layer}) is model
    assert model[0] is model[2] is layer
    dense = expand(model)
    assert dense[0] is dense[2] and type(dense[0]) is nn.Conv2d


def test_trainability_mode_and_inputs_are_respected():
    conv = nn.Conv2d(3, 8, 3).eval()
    conv.weight.requires_grad_(False)
    index, scale = whole(5, 8, 3), drawn(8, 3)
    before = conv.weight.clone()
    layer = cluster_conv(conv, Codebook(drawn(5, 3, 3).float()), index, scale=scale, kept=torch.ones(8, 3).bool())
    assert not layer.scale.requires_grad and not layer.training and layer.kept is None
    index.zero_(), scale.zero_()
    assert layer.index.any() and layer.scale.any() and layer.scale.dtype == torch.float32
    assert torch.equal(conv.weight, before)


ZEROS = torch.zeros(8, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"index": ZEROS.T}, r"index has the shape \(3, 8\), the layer has \(8, 3\)"),
        ({"index": ZEROS + 5}, "index runs from 5 to 5, the codebook allows 0 to 4"),
        ({"index": ZEROS - 1}, "index runs from -1 to -1"),
        ({"index": ZEROS.float()}, "index must be whole numbers, got torch.float32"),
        ({"transform": ZEROS + 2}, "transform runs from 2 to 2, the codebook allows 0 to 1"),
        ({"transform": ZEROS[:4]}, r"transform has the shape \(4, 3\)"),
        ({"scale": torch.full((8, 3), float("nan"))}, "a scale is not finite or beyond 65504"),
        ({"scale": torch.full((8, 3), 7e4)}, "a scale is not finite or beyond 65504"),
        ({"scale": torch.ones(8)}, r"scale has the shape \(8,\)"),
        ({"kept": torch.ones(8, 3)}, "kept must be bool, got torch.float32; compare with 0"),
        ({"codebook": Codebook(torch.ones(5, 5, 5))}, r"kernels are \(3, 3\), centroids \(5, 5\)"),
    ],
)
def test_codes_that_do_not_fit(given, words):
    arguments = {"codebook": Codebook(torch.ones(5, 3, 3), FLIP), "index": ZEROS} | given
    with pytest.raises(ValueError, match=words):
        cluster_conv(nn.Conv2d(3, 8, 3), **arguments)


@pytest.mark.parametrize(
    ("centroids", "permutations", "words"),
    [
        (torch.ones(5, 9), None, r"centroids must be floating \(k, h, w\), got torch.float32 \(5, 9\)"),
        (torch.ones(0, 3, 3), None, "centroids must be floating"),
        (torch.ones(5, 3, 3).long(), None, "centroids must be floating"),
        (torch.full((1, 3, 3), float("inf")), None, "the centroids hold NaN or infinity"),
        (torch.ones(5, 3, 3), FLIP[0], r"permutations must be \(T, 9\), got \(9,\)"),
        (torch.ones(5, 3, 3), FLIP[:0], r"permutations must be \(T, 9\), got \(0, 9\)"),
        (torch.ones(5, 3, 3), torch.zeros(2, 9), "each row of permutations must hold 0 to 8 once"),
    ],
)
def test_codebooks_that_cannot_be(centroids, permutations, words):
    with pytest.raises(ValueError, match=words):
        Codebook(centroids, permutations)
