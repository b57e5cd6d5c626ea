"""Low-cost collaborative layers: shapes, placement and both readings of the product; gradients reach both branches."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shrinkbook import nets
from shrinkbook.course.checks import dong2017 as checks
from shrinkbook.measure.cost import cost
from shrinkbook.methods.lccl import LCCL, LCCLConv2d, add_lccl, gates, placed, responses, with_zeros
from shrinkbook.nets.preact_resnet import PreactBottleneckBlock, PreactResNet


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def conv(inputs: int = 4, outputs: int = 6, kernel=3, stride=1, padding=1, seed: int = 0, **options) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, **options)
    return nets.initialize(nn.Sequential(layer), seed)[0]


def gated(main: nn.Conv2d, kind: str = "kxkxCx1", **options) -> LCCLConv2d:
    return add_lccl(nn.Sequential(copy.deepcopy(main)), ["0"], kind, **options)[0]


def small_resnet(block=None) -> PreactResNet:
    options = {} if block is None else {"block": block, "projection": True}
    return nets.initialize(PreactResNet((1, 1), (4, 8), in_channels=1, **options), 0)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", checks.KINDS)
def test_gate_and_output_follow_the_formula(kind, stride):
    for kernel in (1, 3):
        checks.gate_has_the_shapes(LCCL, kind, kernel, stride)
    for seed in range(2):
        checks.gate_is_the_formula(LCCL, kind, stride, seed)
    checks.output_is_the_product(LCCLConv2d, 6 if kind == "1x1xCxT" else 1, stride, seed=0)
    layer, x = gated(conv(stride=stride), kind).eval(), drawn(2, 4, 7, 5)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer.main(x) * layer.gate(x))
        maps = layer.gate(x)
    assert (maps >= 0).all() and (maps == 0).any() and (maps > 0).any()


@pytest.mark.parametrize("kind", checks.KINDS)
def test_batch_norm_centres_the_gate_to_about_half_zeros_and_has_one_channel_if_shared(kind):
    layer = gated(conv(16, 16), kind, seed=3)
    shares = (layer.gate(drawn(16, 16, 12, 12).relu()) == 0).float().mean()
    assert 0.4 < shares < 0.6
    assert layer.gate.norm.num_features == (16 if kind == "1x1xCxT" else 1)
    plain = gated(conv(16, 16), kind, norm=False)
    x = drawn(2, 16, 12, 12)
    torch.testing.assert_close(plain.gate(x), F.relu(plain.gate.conv(x)))


def test_grid_pools_the_input_and_enlarges_the_response():
    main, x = conv(), drawn(2, 4, 7, 6)
    for grid in (0, 2, 4):
        layer = gated(main, "1x1xCx1", norm=False, grid=grid)
        weight = layer.gate.conv.weight[0, :, 0, 0]
        if grid == 0:
            expected = torch.einsum("c,nc->n", weight, x.amax((2, 3)))[:, None, None, None].expand(-1, -1, 7, 6)
        else:
            pooled = torch.stack(
                [
                    torch.stack([x[..., i : i + grid, j : j + grid].amax((2, 3)) for j in range(0, 6, grid)], -1)
                    for i in range(0, 7, grid)
                ],
                2,
            )
            small = torch.einsum("c,nchw->nhw", weight, pooled)[:, None]
            rows = [torch.linspace(0, side - 1, full) for side, full in zip(small.shape[2:], (7, 6), strict=True)]
            expected = torch.zeros(2, 1, 7, 6)
            for i, y in enumerate(rows[0].tolist()):
                for j, z in enumerate(rows[1].tolist()):
                    y0, z0 = min(int(y), small.shape[2] - 2), min(int(z), small.shape[3] - 2)
                    dy, dz = y - y0, z - z0
                    top = small[..., y0, z0] * (1 - dz) + small[..., y0, z0 + 1] * dz
                    low = small[..., y0 + 1, z0] * (1 - dz) + small[..., y0 + 1, z0 + 1] * dz
                    expected[..., i, j] = top * (1 - dy) + low * dy
        torch.testing.assert_close(layer.gate(x), F.relu(expected), rtol=1e-4, atol=1e-5)
        assert layer(x).shape == (2, 6, 7, 6)
    strided = gated(conv(stride=2), "1x1xCx1", norm=False, grid=2)
    torch.testing.assert_close(strided.gate(x), F.relu(strided.gate.conv(x)))


def test_grid_makes_the_gate_cheaper():
    macs = [cost(nn.Sequential(gated(conv(8, 8), "1x1xCx1", grid=grid)), (8, 8, 8)).layers[0].mac for grid in (1, 2, 0)]
    assert macs == [8 * 64, 8 * 16, 8]


def test_both_readings_of_the_product():
    checks.other_readings(LCCLConv2d, seed=0)
    main, x = conv(), drawn(2, 4, 8, 8)
    after, before = gated(main).eval(), gated(main, relu=True).eval()
    assert (after(x) < 0).any() and (before(x) >= 0).all()
    torch.testing.assert_close(F.relu(after(x)), before(x))  # a ReLU that follows directly makes them one


def test_gradients_of_the_product_reach_both_branches_as_finite_differences_say():
    layer = gated(conv(3, 2, stride=2)).double().eval()
    x = drawn(1, 3, 5, 5).double().requires_grad_()
    weights = [layer.main.weight, layer.gate.conv.weight, layer.gate.norm.bias]

    def output(x, *values):
        return torch.func.functional_call(
            layer, dict(zip(("main.weight", "gate.conv.weight", "gate.norm.bias"), values, strict=True)), x
        )

    assert torch.autograd.gradcheck(output, (x, *weights))
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(layer(x).sum(), weights))


def test_a_closed_gate_gives_no_gradient_to_either_branch():
    layer = with_zeros(gated(conv()), drawn(2, 4, 8, 8), 1)
    layer(drawn(2, 4, 8, 8)).sum().backward()
    assert not any(p.grad.any() for p in layer.parameters() if p.grad is not None)


def test_own_weights_stay_and_gates_depend_on_the_seed_alone():
    plain = small_resnet()
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    twins = [add_lccl(plain, seed=seed) for seed in (1, 1, 2)]
    assert not gates(plain) and all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    for path in gates(twins[0]):
        torch.testing.assert_close(twins[0].get_submodule(path).main.weight, plain.get_submodule(path).weight)
        drawn_weights = [gates(twin)[path].conv.weight for twin in twins]
        assert torch.equal(*drawn_weights[:2]) and not torch.equal(*drawn_weights[1:])
    twins[0].get_submodule("layer1.0.conv1").main.weight.data.zero_()
    assert plain.layer1[0].conv1.weight.any()
    wide = gated(conv(64, 64)).gate.conv.weight
    assert wide.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.1)  # sqrt(2 / (k k T')), T' = 1


def test_placement_in_basic_blocks_and_bottlenecks():
    basic = small_resnet()
    both = [f"layer{stage}.0.conv{i}" for stage in (1, 2) for i in (1, 2)]
    assert placed(basic, "both") == both
    assert placed(basic, "first") == both[::2] and placed(basic, "second") == both[1::2]
    assert list(gates(add_lccl(basic, "second"))) == both[1::2]
    bottleneck = small_resnet(PreactBottleneckBlock)
    assert placed(bottleneck, "both") == [f"layer{stage}.0.conv{i}" for stage in (1, 2) for i in (2, 3)]
    twin = add_lccl(bottleneck)
    assert [gate.conv.kernel_size for gate in gates(twin).values()] == [(3, 3), (1, 1)] * 2
    assert twin(drawn(2, 1, 8, 8)).shape == (2, 10)
    assert placed(nets.resnet_cifar(8), "first") == [f"layer{stage}.0.conv1" for stage in (1, 2, 3)]
    assert len(gates(add_lccl(basic, ["stem.0", "layer1.0.conv2"]))) == 2


@pytest.mark.parametrize("kind", checks.KINDS)
def test_networks_train_on_with_gates_and_stay_on_the_meta_device(kind):
    model = add_lccl(small_resnet(), kind=kind)
    assert model.layer2[0].conv1(drawn(2, 4, 8, 8)).shape == (2, 8, 4, 4)
    loss = F.cross_entropy(model(drawn(4, 1, 8, 8)), torch.arange(4))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.device("meta"):
        meta = nets.preact_resnet_cifar(20)
    assert all(p.is_meta for p in add_lccl(meta, kind=kind).parameters())


def test_responses_are_the_gates_maps():
    model, x = add_lccl(small_resnet()).eval(), drawn(3, 1, 8, 8)
    found = responses(model, x)
    first = F.relu(model.layer1[0].bn1(model.stem(x)))
    torch.testing.assert_close(found["layer1.0.conv1"], gates(model)["layer1.0.conv1"](first))
    assert [tuple(gate.shape) for gate in found.values()] == [(3, 1, 8, 8)] * 2 + [(3, 1, 4, 4)] * 2
    assert not any(gate.requires_grad for gate in found.values())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("kind", checks.KINDS)
@pytest.mark.parametrize("zeros", [0, 0.25, 0.6, 1])
def test_a_gate_can_be_shifted_to_any_share_of_zeros(kind, zeros):
    x, layer = drawn(2, 4, 10, 10), gated(conv(), kind)
    shares = (with_zeros(layer, x, zeros).gate(x) == 0).float().mean((0, 2, 3))
    torch.testing.assert_close(shares, torch.full_like(shares, zeros))
    assert layer.training and not layer.gate.norm.bias.any()


def wide_block() -> nn.Module:
    parts = {f"conv{n}": conv() for n in (1, 2, 3, 4)}
    return nn.ModuleDict({"block": nn.ModuleDict({**parts, "shortcut": nn.Identity()})})


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: add_lccl(small_resnet(), kind="5x5"), "unknown kind '5x5'; there are kxkxCx1"),
        (lambda: LCCL(conv(), "5x5"), "LCCL: unknown kind '5x5'; there are kxkxCx1"),
        (lambda: LCCL(conv(), "kxkxCx1", grid=2), "LCCL: grid 2 with kind kxkxCx1; only 1x1xCx1 has a grid"),
        (lambda: add_lccl(small_resnet(), "third"), "unknown place 'third'"),
        (lambda: add_lccl(small_resnet(), grid=2), "only 1x1xCx1 has a grid"),
        (lambda: add_lccl(small_resnet(), kind="1x1xCx1", grid=-1), "grid -1"),
        (lambda: add_lccl(small_resnet(), ["layer1.0.conv9"]), "no convolution 'layer1.0.conv9' in PreactResNet"),
        (lambda: add_lccl(small_resnet(), ["linear"]), "no convolution 'linear'"),
        (lambda: add_lccl(conv(), [""]), "no convolution ''"),
        (lambda: add_lccl(add_lccl(small_resnet()), ["layer1.0.conv1"]), "layer layer1.0.conv1: LCCLConv2d cannot"),
        (lambda: gated(conv(4, 6, groups=2)), "layer 0: groups, dilation.*; leave it out"),
        (lambda: gated(conv(dilation=2)), "layer 0: groups, dilation"),
        (lambda: gated(conv(padding="same")), "layer 0: groups, dilation"),
        (lambda: gated(conv(padding_mode="reflect")), "layer 0: groups, dilation"),
        (lambda: gated(conv(padding=0), "1x1xCxT"), r"layer 0: a 1x1 gate needs padding \(k - 1\) / 2"),
        (lambda: gated(conv(kernel=1, padding=0), "1x1xCxT"), "costs as much as this 1x1 convolution"),
        (
            lambda: placed(nets.vgg16(), "both"),
            "VGG has no residual blocks.*; give the module paths of the layers instead",
        ),
        (lambda: placed(nets.alexnet(), "both"), "Sequential has no residual blocks"),
        (
            lambda: placed(wide_block(), "both"),
            "block block: conv1, conv2, conv3, conv4 make neither.*; give the module paths",
        ),
        (lambda: add_lccl(small_resnet(), []), "no layers named; PreactResNet has stem.0, layer1.0.conv1"),
        (
            lambda: LCCLConv2d(conv(stride=2), LCCL(conv()), name="a.b"),
            r"layer a.b: the gate has stride \(1, 1\).*make it by LCCL\(main\)",
        ),
        (lambda: LCCLConv2d(conv(), LCCL(conv(5)), name="a.b"), "layer a.b: the gate is 5 -> 1 channels"),
        (lambda: LCCLConv2d(conv(), LCCL(conv(4, 3), "1x1xCxT"), name="a"), "layer a: the gate is 4 -> 3 channels"),
        (
            lambda: LCCLConv2d(conv(), LCCL(conv(padding=0)), name="a.b")(drawn(1, 4, 8, 8)),
            r"layer a.b: the gate's map is \(6, 6\), the convolution's \(8, 8\); make it by LCCL\(main\)",
        ),
        (lambda: responses(small_resnet(), drawn(1, 1, 8, 8)), "PreactResNet has no gates; add_lccl makes them"),
        (
            lambda: with_zeros(gated(conv(), norm=False), drawn(1, 4, 8, 8), 0.5),
            "without batch norm .*; build it with norm=True",
        ),
        (lambda: with_zeros(gated(conv()), drawn(1, 4, 8, 8), 1.5), "a share of zeros of 1.5; give 0 to 1"),
    ],
)
def test_bad_input_is_refused_in_one_line(act, message):
    with pytest.raises(ValueError, match=message) as caught:
        act()
    assert "\n" not in str(caught.value)


def test_gates_follow_the_mode_of_the_network():
    for training in (True, False):
        twin = add_lccl(nets.preact_resnet_cifar(8).train(training))
        layer = twin.layer1[0].conv1
        assert [layer.training, layer.gate.training, layer.gate.norm.training] == [training] * 3
