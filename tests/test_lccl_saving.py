"""What gates save: zeros over images, the formulas of each kind against counted operations, the paper's networks."""

import pytest
import torch
from torch import nn

from shrinkbook import nets
from shrinkbook.measure.cost import cost
from shrinkbook.methods.lccl import LCCLConv2d, add_lccl, gates, responses
from shrinkbook.methods.lccl_saving import dead_gates, idle_gates, overhead, saving, share_removed, sparsity
from shrinkbook.nets.preact_resnet import PreactResNet


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_resnet(kind: str = "kxkxCx1") -> nn.Module:
    return add_lccl(nets.initialize(PreactResNet((1, 1), (4, 8), in_channels=1), 0), kind=kind).eval()


@pytest.mark.parametrize("kind", ["kxkxCx1", "1x1xCxT"])
def test_sparsity_is_the_share_of_zeros_of_each_image(kind):
    model, x = small_resnet(kind), drawn(10, 1, 8, 8)
    measured = sparsity(model, [x[:4], x[4:]])
    maps = responses(model, x)
    assert list(measured) == list(gates(model))
    for path, layer in measured.items():
        shares = [float((image == 0).double().mean()) for image in maps[path]]
        assert layer.shares.tolist() == pytest.approx(shares)
        assert layer.mean == pytest.approx(sum(shares) / 10)
        ordered = sorted(shares)
        assert layer.spread[0] == pytest.approx(0.1 * ordered[0] + 0.9 * ordered[1])
        assert layer.spread[1] == pytest.approx(0.9 * ordered[8] + 0.1 * ordered[9])
        channels = [float((maps[path][:, t] == 0).double().mean()) for t in range(maps[path].shape[1])]
        assert layer.channels.tolist() == pytest.approx(channels)
    assert any(0.1 < layer.mean < 0.9 for layer in measured.values())


def test_gates_that_decide_nothing_are_told_apart():
    model, x = small_resnet("1x1xCxT"), drawn(6, 1, 8, 8)
    first, second, third, _ = gates(model).values()
    with torch.no_grad():
        first.norm.bias -= 100
        second.norm.bias += 100
        third.norm.bias[:3] -= 100
    found = idle_gates(sparsity(model, [x]))
    assert found == {"layer1.0.conv1": "closed", "layer1.0.conv2": "open", "layer2.0.conv1": "3 of 8 closed"}


@pytest.mark.parametrize("kind", ["kxkxCx1", "1x1xCxT"])
def test_a_gate_closed_by_running_statistics_is_not_dead(kind):
    model, x = small_resnet(kind), drawn(6, 1, 8, 8)
    gates(model)["layer1.0.conv2"].norm.running_mean.fill_(100)
    with torch.no_grad():
        gates(model)["layer2.0.conv2"].norm.bias[:3] -= 100  # below all that batch norm can give
    dead = {"layer2.0.conv2": "3 of 8 closed" if kind == "1x1xCxT" else "closed"}
    found = idle_gates(sparsity(model, [x]))
    assert {path: how for path, how in found.items() if path in ("layer1.0.conv2", *dead)} == {
        "layer1.0.conv2": "closed", **dead
    }  # fmt: skip
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert dead_gates(model, [x[:3], x[3:]]) == dead
    assert not model.training and all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.train()(x).sum().backward()
    reached = [bool(gates(model)[path].norm.bias.grad[:3].any()) for path in ("layer1.0.conv2", "layer2.0.conv2")]
    assert reached == [True, False]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", ["kxkxCx1", "1x1xCxT", "1x1xCx1"])
def test_overhead_follows_the_output_channels(kind, stride):
    model = add_lccl(nn.Sequential(nn.Conv2d(8, 12, 3, stride, 1)), ["0"], kind)
    layer = saving(model, (8, 6, 6), {"0": 0.5}).layers[0]
    assert layer.mac == 8 * 12 * 9 * (6 // stride) ** 2
    assert layer.break_even == pytest.approx(overhead(kind, 3, 12))
    assert layer.removed == pytest.approx(0.5 - {"kxkxCx1": 1 / 12, "1x1xCxT": 1 / 9, "1x1xCx1": 1 / 108}[kind])
    pixels = 9 if kind == "kxkxCx1" else 1
    assert layer.gate_mac_published == layer.mac / 8 * pixels / 9  # the code divides by the 8 inputs


@pytest.mark.parametrize(("grid", "published"), [(1, 16 * 36), (2, 16 * 9 + 20 * 36), (0, 16 + 20 * 36)])
def test_the_authors_count_of_a_grid_has_pooling_and_enlargement_in_it(grid, published):
    """By hand, 4 -> 16 channels on 6 x 6: T numbers on 36, 9 or 1 positions; C H W to pool, T H W to enlarge."""
    convs = nn.Sequential(nn.Conv2d(4, 16, 3, 1, 1), nn.Conv2d(16, 8, 3, 2, 1))
    model = add_lccl(convs, ["0", "1"], "1x1xCx1", grid=grid)
    first, strided = saving(model, (4, 6, 6), {"0": 0.5, "1": 0.5}).layers
    assert first.gate_mac_published == pytest.approx(published)
    assert first.gate_mac == {1: 4 * 36, 2: 4 * 9, 0: 4}[grid]
    assert strided.gate_mac_published == pytest.approx(8 * 9)  # never on the grid; MAC / 16 inputs / 9


def test_saving_of_a_network_is_the_mean_weighted_by_mac():
    model = small_resnet()
    zeros = dict(zip(gates(model), (0.2, 0.4, 0.6, 0.8), strict=True))
    result = saving(model, (1, 8, 8), zeros)
    macs = [4 * 4 * 9 * 64, 4 * 4 * 9 * 64, 4 * 8 * 9 * 16, 8 * 8 * 9 * 16]
    overheads = [1 / 4, 1 / 4, 1 / 8, 1 / 8]
    kept = [(z - o) * m for z, o, m in zip(zeros.values(), overheads, macs, strict=True)]
    plain = cost(PreactResNet((1, 1), (4, 8), in_channels=1), (1, 8, 8)).mac
    assert [layer.mac for layer in result.layers] == macs and result.mac == plain
    assert result.removed == pytest.approx(sum(kept) / plain)
    assert result.removed_of_gated == pytest.approx(sum(kept) / sum(macs))
    assert result.mac_after == pytest.approx(plain - sum(kept))
    assert result.faster == pytest.approx(plain / (plain - sum(kept)) - 1)
    published = [z * m - m / c for z, m, c in zip(zeros.values(), macs, (4, 4, 4, 8), strict=True)]
    assert result.removed_published == pytest.approx(sum(published) / sum(macs))


@pytest.mark.parametrize(
    ("net", "gated", "overheads", "needed"),
    [
        ("ResNet-20", 0.989, (0.111, 0.037, 0.004), 0.381),
        ("ResNet-56", 0.996, (0.111, 0.037, 0.004), 0.378),
        ("ResNet-110", 0.998, (0.111, 0.037, 0.004), 0.377),
    ],
)
def test_arithmetic_of_the_papers_networks(net, gated, overheads, needed):
    with torch.device("meta"):
        plain = nets.preact_resnet_cifar(int(net.split("-")[1]))
    costs = []
    for kind in ("1x1xCxT", "kxkxCx1", "1x1xCx1"):
        model = add_lccl(plain, kind=kind)
        result = saving(model, (3, 32, 32), dict.fromkeys(gates(model), 0.0))
        costs.append(-result.removed_of_gated)
        if kind == "kxkxCx1":
            assert sum(layer.mac for layer in result.layers) / result.mac == pytest.approx(gated, abs=5e-4)
            at = saving(model, (3, 32, 32), dict.fromkeys(gates(model), needed))
            assert at.removed == pytest.approx(0.34, abs=6e-4)
    assert costs == pytest.approx(overheads, abs=5e-4)


def test_two_readings_of_a_printed_speed_up():
    assert share_removed(34.6, "removed") == pytest.approx(0.346)
    assert share_removed(34.6, "faster") == pytest.approx(0.25706, abs=1e-5)
    model = small_resnet()
    result = saving(model, (1, 8, 8), dict.fromkeys(gates(model), 0.5))
    assert share_removed(100 * result.faster, "faster") == pytest.approx(result.removed)


def spoiled(model: nn.Module) -> nn.Module:
    layer = model.get_submodule("layer1.0.conv2")
    assert isinstance(layer, LCCLConv2d)
    layer.gate.conv.weight.data[0, 0, 0, 0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: sparsity(small_resnet().train(), [drawn(1, 1, 8, 8)]), r"in training mode.*call eval\(\) first"),
        (lambda: sparsity(nets.resnet_cifar(8).eval(), [drawn(1, 3, 8, 8)]), "ResNet has no gates"),
        (lambda: sparsity(small_resnet(), []), "sparsity: no images; give"),
        (lambda: sparsity(spoiled(small_resnet()), [drawn(1, 1, 8, 8)]), "layer layer1.0.conv2: the gate holds NaN"),
        (lambda: saving(small_resnet(), (1, 8, 8), {"layer1.0.conv1": 0.5}), "gates are .*; give one a gate"),
        (lambda: saving(small_resnet(), (1, 8, 8), dict.fromkeys(gates(small_resnet()), 1.2)), "layer1.0.conv1 .* 1.2"),
        (
            lambda: saving(small_resnet(), (1, 8, 8), dict.fromkeys(gates(small_resnet()), -0.1)),
            "share of zeros of -0.1",
        ),
        (lambda: saving(small_resnet().layer1[0].conv1, (16, 8, 8), {"": 0.5}), "a single gated layer"),
    ],
)
def test_bad_input_is_refused_in_one_line(act, message):
    with pytest.raises(ValueError, match=message) as caught:
        act()
    assert "\n" not in str(caught.value)
