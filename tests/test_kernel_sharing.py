"""Sharing computation: both orders equal the dense layer, and do as many convolutions as counted."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from shrinkbook import nets
from shrinkbook.measure.cost import cost
from shrinkbook.methods import kernel_sharing
from shrinkbook.methods.clustered_layers import ClusteredConv2d, Codebook, cluster_conv, expand, replace_layers
from shrinkbook.methods.kernel_sharing import (
    AddThenConv,
    ConvThenAdd,
    add_then_conv,
    conv_then_add,
    counts,
    shared_cost,
)

ORDERS = pytest.mark.parametrize("order", [AddThenConv, ConvThenAdd])
PERMUTATIONS = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(i)) for i in range(4)])


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clustered(
    conv: nn.Conv2d, k: int, transforms: int = 1, scaled: bool = True, kept: torch.Tensor | None = None, seed: int = 0
) -> ClusteredConv2d:
    random, shape = torch.Generator().manual_seed(seed), conv.weight.shape[:2]
    book = Codebook(drawn(k, *conv.kernel_size).to(conv.weight), PERMUTATIONS[:transforms] if transforms > 1 else None)
    index = torch.randint(k, shape, generator=random)
    transform = torch.randint(transforms, shape, generator=random)
    return cluster_conv(conv, book, index, transform, drawn(*shape, seed=1) if scaled else None, kept)


def counted_by_hand(layer: ClusteredConv2d) -> tuple[list[int], list[int]]:
    """Oracle: one set of (centroid, transform) for each output and each input."""
    outputs = [set() for _ in range(layer.out_channels)]
    inputs = [set() for _ in range(layer.in_channels)]
    for j in range(layer.out_channels):
        for i in range(layer.index.shape[1]):
            if layer.kept is None or layer.kept[j, i]:
                code = int(layer.index[j, i]), int(layer.transform[j, i])
                outputs[j].add(code)
                inputs[i + j // (layer.out_channels // layer.groups) * layer.index.shape[1]].add(code)
    return [len(codes) for codes in outputs], [len(codes) for codes in inputs]


@ORDERS
@pytest.mark.parametrize(
    "geometry",
    [
        {"padding": 1},
        {"padding": 1, "stride": 2, "bias": False},
        {"padding": "same", "dilation": 2},
        {"groups": 3},
        {"padding": (2, 1), "padding_mode": "reflect", "groups": 2},
        {"padding": 1, "padding_mode": "circular", "stride": (1, 2)},
        {"kernel_size": 7, "padding": 3, "stride": 2},
        {"kernel_size": 1},
    ],
)
@pytest.mark.parametrize(("k", "transforms", "scaled", "pruned"), [(1, 1, True, False), (4, 4, True, True)])
def test_both_orders_are_the_dense_layer(order, geometry, k, transforms, scaled, pruned, monkeypatch):
    conv = nn.Conv2d(6, 12, **({"kernel_size": 3} | geometry)).double()
    transforms = transforms if conv.kernel_size == (3, 3) else 1
    kept = drawn(*conv.weight.shape[:2], seed=5) > 0 if pruned else None
    layer = clustered(conv, k, transforms, scaled, kept)
    x = drawn(3, 6, 9, 8)
    for block in (2**18, 200):  # all at once, and cut into pieces
        monkeypatch.setattr(kernel_sharing, "BLOCK", block)
        torch.testing.assert_close(order(layer)(x), expand(layer)(x), rtol=1e-10, atol=1e-10)


@ORDERS
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("what", ["all", "one output", "one input"])
def test_wholly_pruned_parts(order, scaled, what):
    kept = torch.ones(8, 6, dtype=torch.bool)
    kept[{"all": ..., "one output": 3, "one input": (slice(None), 2)}[what]] = False
    layer = clustered(nn.Conv2d(6, 8, 3, stride=2).double(), 5, scaled=scaled, kept=kept)
    x = drawn(2, 6, 9, 8)
    torch.testing.assert_close(order(layer)(x), expand(layer)(x), rtol=1e-10, atol=1e-10)
    assert counts(layer).shared == 0 or what != "all"


def test_functions_and_single_precision():
    layer = clustered(nn.Conv2d(32, 48, 3, padding=1), 8, 2)
    x = drawn(2, 32, 14, 14).float()
    dense = layer(x).detach()
    for sharing in (add_then_conv, conv_then_add):
        y = sharing(x, layer)
        assert not y.requires_grad
        torch.testing.assert_close(y, dense, rtol=1e-5, atol=1e-4)


@ORDERS
def test_other_map_sizes_and_precisions_after_the_first(order):
    layer = clustered(nn.Conv2d(6, 8, 3), 5)
    module = order(layer)
    for side in (12, 5, 12):
        x = drawn(1, 6, side, side).float()
        torch.testing.assert_close(module(x), layer(x).detach(), rtol=1e-5, atol=1e-5)
    x = drawn(1, 6, 12, 12)
    layer = copy.deepcopy(layer).double()
    torch.testing.assert_close(copy.deepcopy(module).double()(x), layer(x).detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize(("k", "transforms"), [(1, 1), (3, 4), (40, 1)])
def test_counts(groups, pruned, k, transforms):
    conv = nn.Conv2d(12, 18, 3, groups=groups)
    kept = drawn(*conv.weight.shape[:2], seed=5) > 0 if pruned else None
    layer = clustered(conv, k, transforms, kept=kept)
    count = counts(layer)
    per_output, per_input = counted_by_hand(layer)
    assert (count.per_output.tolist(), count.per_input.tolist()) == (per_output, per_input)
    assert (count.add_then_conv, count.conv_then_add) == (sum(per_output), sum(per_input))
    assert count.shared == min(sum(per_output), sum(per_input)) and count.dense == 12 * 18 // groups


def convolution_mac(module: nn.Module, x: torch.Tensor) -> int:
    """Multiply-accumulates of the convolutions that PyTorch was asked to do."""
    with FlopCounterMode(display=False) as counter:
        module(x)
    return counter.get_flop_counts()["Global"][torch.ops.aten.convolution] // 2


@pytest.mark.parametrize(("stride", "positions"), [(1, 64), (2, 16)])
@pytest.mark.parametrize("block", [2**18, 500])
def test_as_many_multiplications_are_done_as_counted(stride, positions, block, monkeypatch):
    monkeypatch.setattr(kernel_sharing, "BLOCK", block)
    layer = clustered(nn.Conv2d(12, 20, 3, padding=1, stride=stride), 3, 2)
    count, x = counts(layer), drawn(1, 12, 8, 8).float()
    assert convolution_mac(layer, x) == 9 * positions * count.dense == cost(layer, (12, 8, 8)).mac
    assert convolution_mac(AddThenConv(layer), x) == 9 * positions * count.add_then_conv
    assert convolution_mac(ConvThenAdd(layer), x) == 9 * positions * count.conv_then_add
    assert count.shared == count.conv_then_add < count.add_then_conv < count.dense


def test_cost_of_a_network_by_output_positions():
    model = nn.Sequential(
        clustered(nn.Conv2d(3, 20, 3, padding=1), 2),
        nn.Conv2d(20, 10, 1),
        clustered(nn.Conv2d(10, 8, 3, padding=1, stride=2), 2, seed=1),
        nn.Flatten(),
        nn.Linear(8 * 16, 5),
    )
    first, second = counts(model[0]), counts(model[2])
    total = shared_cost(model, (3, 8, 8))
    assert [(row.name, row.clustered, row.output) for row in total.layers] == [
        ("0", True, (20, 8, 8)),
        ("1", False, (10, 8, 8)),
        ("2", True, (8, 4, 4)),
        ("4", False, (5,)),
    ]
    row = total.layers[2]
    assert (row.dense, row.add_then_conv) == (9 * 16 * 80, 9 * 16 * second.add_then_conv)
    assert (row.conv_then_add, row.shared) == (9 * 16 * second.conv_then_add, 9 * 16 * second.shared)
    dense, shared = 9 * (64 * 60 + 16 * 80), 9 * (64 * first.shared + 16 * second.shared)
    others = 64 * 200 + 8 * 16 * 5
    assert total.acceleration == dense / shared > 1
    assert total.acceleration_of_everything == (dense + others) / (shared + others)
    assert total.total("dense", True) == cost(expand(model), (3, 8, 8)).mac
    assert total.rows()[1]["shared"] == total.rows()[1]["dense"] == 64 * 200
    # each layer takes its own better order
    assert first.shared == first.conv_then_add and total.total("shared", False) == shared
    assert shared <= min(total.total("add_then_conv", False), total.total("conv_then_add", False))


@pytest.mark.parametrize(
    ("network", "k", "expected"),
    [
        (nets.vgg16, 64, 3.55),
        (nets.vgg16, 128, 2.27),
        (nets.vgg16, 256, 1.63),
        (lambda: nets.resnet_cifar(56), 128, 1.14),
    ],
)
def test_random_codes_give_the_acceleration_expected_of_them(network, k, expected):
    """The data-free figures: expected distinct codes among n draws, k (1 - (1 - 1/k)^n), weighted by map size."""
    model = network()
    convs = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    for number, (path, conv) in enumerate(convs):
        replace_layers(model, {path: clustered(conv, k, seed=number)})
    assert shared_cost(model, (3, 32, 32)).acceleration == pytest.approx(expected, rel=0.01)


def test_nothing_to_share():
    with pytest.raises(ValueError, match="shared_cost: Sequential has no clustered layer; cluster it first"):
        shared_cost(nn.Sequential(nn.Conv2d(3, 8, 3)), (3, 8, 8))
