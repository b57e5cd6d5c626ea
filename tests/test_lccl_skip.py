"""Skipping: the same output as the dense product, multiplications counted where they are done equal those kept."""

import math
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shrinkbook import nets
from shrinkbook.course.checks import dong2017 as checks
from shrinkbook.methods.lccl import LCCLConv2d, add_lccl, gates, responses, with_zeros
from shrinkbook.methods.lccl_skip import (
    BLOCK,
    Im2colConv,
    SkippingConv,
    WholeIm2colConv,
    im2col,
    skip_indexed,
    skipping,
)
from shrinkbook.nets.preact_resnet import PreactBottleneckBlock, PreactResNet
from shrinkbook.training.data import load

TIGHT = {"rtol": 1e-10, "atol": 1e-10}  # of sums in float64 that are added in another order


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv(inputs: int, outputs: int, *shape, bias: bool = True) -> nn.Conv2d:
    layer = nets.initialize(nn.Sequential(nn.Conv2d(inputs, outputs, *shape, bias=bias)), 0)[0].double()
    if bias:
        nn.init.normal_(layer.bias, generator=torch.Generator().manual_seed(1))
    return layer


def gate_map(*shape: int, zeros: float) -> torch.Tensor:
    return checks.gate_map(shape, zeros, seed=2)


def dense(x, layer, gate, relu=False):
    response = layer(x)
    return (F.relu(response) if relu else response) * gate


SHAPES = [  # C, T, kernel, stride, padding, side: odd maps, empty borders, more rows than a block
    (3, 5, 3, 1, 1, (7, 6)),
    (8, 4, 3, 2, 1, (9, 9)),
    (4, 6, 1, 1, 0, (5, 5)),
    (4, 6, 1, 2, 0, (6, 7)),
    (2, 3, 5, 2, 2, (8, 11)),
    (4, 4, 3, 1, 0, (6, 6)),
    (2, 4, (3, 2), (1, 2), (2, 0), (7, 8)),
    (3, 4, 3, 1, 1, (24, 23)),
]


@pytest.mark.parametrize("zeros", [0, 0.6, 1])
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_skipping_is_exact_and_does_only_what_is_kept(shape, each, zeros):
    inputs, outputs, *window, side = shape
    layer, x = conv(inputs, outputs, *window), drawn(2, inputs, *side)
    size = layer(x).shape
    gate = gate_map(2, outputs if each else 1, *size[2:], zeros=zeros)
    fast = Im2colConv(layer)
    for relu in (False, True):
        expected = dense(x, layer, gate, relu).detach()
        torch.testing.assert_close(fast(x, gate, relu), expected, **TIGHT)
        checks.skipping_is_exact(skip_indexed, layer, x, gate, relu)
    kept = int((gate != 0).sum())
    assert kept == gate.numel() - round(zeros * gate.numel())
    assert fast.positions == kept
    assert fast.multiplications == kept * inputs * math.prod(layer.kernel_size) * (1 if each else outputs)
    checks.closed_positions_are_not_computed(skip_indexed, layer, x, gate)
    torch.testing.assert_close(fast(x, gate, hard=True), dense(x, layer, (gate != 0).double()).detach(), **TIGHT)


@pytest.mark.parametrize("shape", SHAPES)
def test_dense_rows_are_the_convolution(shape):
    inputs, outputs, *window, side = shape
    for bias in (False, True):
        layer, x = conv(inputs, outputs, *window, bias=bias), drawn(3, inputs, *side)
        fast = Im2colConv(layer)
        for pixels in (x, x.contiguous(memory_format=torch.channels_last), x.requires_grad_()):
            torch.testing.assert_close(fast(pixels), layer(x).detach(), **TIGHT)
        assert fast.multiplications == layer(x).numel() * layer.weight[0].numel()
    assert fast(x.detach()[:0]).shape == (0, *layer(x).shape[1:]) and fast.multiplications == 0
    assert fast(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 0), (1, 2, 0), (5, 1, 2)])
def test_rows_are_what_lies_under_the_kernel(kernel, stride, padding):
    checks.patches_are_cut_out(im2col, kernel, stride, padding, seed=0)


def test_blocks_of_rows_end_at_every_remainder():
    layer, fast = conv(2, 3, 3, 1, 1), Im2colConv(conv(2, 3, 3, 1, 1))
    x = drawn(1, 2, 24, 23)
    for kept in (1, 2, 3, 4, 5, 63, 64, 65, BLOCK - 1, BLOCK, BLOCK + 1, 552):
        for maps in (1, 3):
            gate = gate_map(1, maps, 24, 23, zeros=0)
            gate.flatten(2)[..., kept:] = 0
            torch.testing.assert_close(fast(x, gate), dense(x, layer, gate).detach(), **TIGHT)
            assert fast.positions == kept * maps


def gated(kind: str = "kxkxCx1", stride: int = 1, **options) -> LCCLConv2d:
    main = conv(4, 6, 3, stride, 1)
    layer = add_lccl(nn.Sequential(main), ["0"], kind, **options)[0]
    layer(3 * drawn(8, 4, 9, 9, seed=5) + 1)  # statistics away from 0 and 1
    if options.get("norm", True):
        nn.init.uniform_(layer.gate.norm.weight, -2, 2, generator=torch.Generator().manual_seed(6))
        nn.init.normal_(layer.gate.norm.bias, generator=torch.Generator().manual_seed(7))
    return layer.eval()


OPTIONS = [{}, {"hard": True}, {"relu": True}, {"norm": False}, {"relu": True, "hard": True}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", ["kxkxCx1", "1x1xCxT", "1x1xCx1"])
def test_a_skipping_layer_is_the_gated_layer(kind, stride, options):
    layer, x = gated(kind, stride, **options), drawn(3, 4, 9, 8)
    fast = SkippingConv(layer)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), layer(x), **TIGHT)
        kept = int((layer.gate(x) != 0).sum())
    assert 0 < kept < layer.gate(x).numel() and fast.main.positions == kept
    assert fast.main.multiplications == kept * 4 * 9 * (1 if kind == "1x1xCxT" else 6)


@pytest.mark.parametrize("grid", [0, 2])
def test_a_pooled_gate_skips_too(grid):
    layer, x = gated("1x1xCx1", grid=grid), drawn(8, 4, 9, 8)
    fast = SkippingConv(layer)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), layer(x), **TIGHT)
        assert fast.main.positions == int((layer.gate(x) != 0).sum())


@pytest.mark.parametrize("kind", ["kxkxCx1", "1x1xCxT"])
@pytest.mark.parametrize("zeros", [0, 1])
def test_a_batch_whose_gates_are_all_closed_or_all_open(kind, zeros):
    x = drawn(2, 4, 9, 8)
    layer = with_zeros(gated(kind), x, zeros)
    fast = SkippingConv(layer)
    torch.testing.assert_close(fast(x), layer(x).detach(), **TIGHT)
    assert fast.main.multiplications == (1 - zeros) * 2 * 72 * 36 * 6


@pytest.fixture(scope="module")
def digits():
    data = load("digits")
    images, few = data.x_train.float(), data.x_test[:300].float()
    return (images - images.mean()) / images.std(), data.y_train, (few - images.mean()) / images.std()


def trained(digits, kind: str, block=None) -> nn.Module:
    """A small gated network after a few epochs on digits, in evaluation mode."""
    options = {} if block is None else {"block": block, "projection": True}
    model = add_lccl(nets.initialize(PreactResNet((1, 1), (8, 16), in_channels=1, **options), 0), kind=kind)
    images, labels, _ = digits
    optimiser = torch.optim.SGD(model.parameters(), 0.2, momentum=0.9, nesterov=True)
    stream, losses = torch.Generator().manual_seed(0), []
    for _ in range(100):
        rows = torch.randint(len(images), (50,), generator=stream)
        loss = F.cross_entropy(model(images[rows]), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])  # trained through the product
    return model.eval()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("kind", "block"), [("kxkxCx1", None), ("1x1xCxT", None), ("kxkxCx1", PreactBottleneckBlock)])
def test_a_trained_network_skips_exactly_what_its_gates_close(digits, kind, block):
    model, x = trained(digits, kind, block), digits[2]
    fast, maps = skipping(model), responses(model, x)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    shares = []
    for path, gate in maps.items():
        layer, main = fast.get_submodule(path), model.get_submodule(path).main
        kept = int((gate != 0).sum())
        # float32 in another order: a gate within rounding of 0 may fall on the other side
        assert abs(layer.main.positions - kept) <= 2
        maps_a_gate = 1 if kind == "1x1xCxT" else main.out_channels
        assert layer.main.multiplications == layer.main.positions * main.weight[0].numel() * maps_a_gate
        shares.append(1 - kept / gate.numel())
    assert 0.1 < sum(shares) / len(shares) < 0.9, shares
    assert gates(model) and not gates(fast) and not fast.training


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_copy_keeps_its_weights_when_the_layer_changes(kernel):
    main, x = conv(4, 6, kernel, 1, kernel // 2), drawn(1, 4, 9, 8)
    layer = add_lccl(nn.Sequential(main), ["0"])[0].eval()
    fast, before = SkippingConv(layer), layer(x).detach()
    with torch.no_grad():
        for value in layer.state_dict().values():
            value.mul_(2)
    torch.testing.assert_close(fast(x), before, **TIGHT)


@pytest.mark.parametrize("shape", SHAPES)
def test_all_rows_at_once_are_the_convolution(shape):
    inputs, outputs, *window, side = shape
    for bias in (True, False):
        layer, x = conv(inputs, outputs, *window, bias=bias), drawn(2, inputs, *side)
        torch.testing.assert_close(WholeIm2colConv(layer)(x), layer(x), **TIGHT)


def test_a_gate_of_exactly_zero_is_closed():
    """Blank pixels give a gate without batch norm exactly 0."""
    layer = add_lccl(nn.Sequential(conv(4, 6, 3, 1, 1)), ["0"], norm=False)[0].eval()
    x = drawn(1, 4, 9, 8)
    x[..., :5] = 0
    fast = SkippingConv(layer)
    torch.testing.assert_close(fast(x), layer(x), **TIGHT)
    assert fast.main.positions == int((layer.gate(x) > 0).sum()) < 9 * 4


@pytest.mark.parametrize("relu", [False, True])
def test_a_response_that_is_not_a_number_stays_none(relu):
    layer = add_lccl(nn.Sequential(conv(4, 6, 3, 1, 1)), ["0"], relu=relu)[0].eval()
    layer.main.weight.data[2] = math.nan
    x = drawn(1, 4, 9, 8)
    assert torch.equal(SkippingConv(layer)(x)[:, 2].isnan(), (layer.gate(x) > 0)[:, 0])


def test_a_converted_or_training_copy_gates_as_before():
    network = add_lccl(nn.Sequential(conv(4, 6, 3, 1, 1)), ["0"]).eval()
    network[0].gate.conv.weight.data.mul_(1 / 3)
    x = drawn(2, 4, 9, 8)
    there_and_back = skipping(network.float()).double()
    torch.testing.assert_close(there_and_back(x), network.double()(x), **TIGHT)
    pointwise = add_lccl(nn.Sequential(conv(4, 6, 3, 1, 1)), ["0"], kind="1x1xCxT").eval()
    torch.testing.assert_close(skipping(pointwise).train()(x), pointwise(x), **TIGHT)
    torch.testing.assert_close(skipping(pointwise[0])(x), pointwise(x), **TIGHT)  # a layer by itself


def test_skipping_sixty_percent_saves_time():
    """The paper's point, with a wide margin: measured ratios are about 2, and 0.8 must never be lost."""
    x = drawn(4, 64, 28, 28).float().contiguous(memory_format=torch.channels_last)
    layer = with_zeros(add_lccl(nn.Sequential(conv(64, 64, 3, 1, 1).float()), ["0"])[0], x, 0.6)
    contenders = {"dense": Im2colConv(layer.main), "skipping": SkippingConv(layer)}
    best = dict.fromkeys(contenders, math.inf)
    for turn in range(12):
        for name, module in contenders.items():
            started = time.perf_counter()
            module(x)
            if turn:
                best[name] = min(best[name], time.perf_counter() - started)
    assert best["skipping"] < 0.8 * best["dense"]


def spoiled(kind: str, value: float) -> SkippingConv:
    layer = gated(kind)
    layer.gate.conv.weight.data[0, 0, 0, 0] = value
    layer.name = "layer1.0.conv2"
    return SkippingConv(layer)


def given(gate: torch.Tensor, x: torch.Tensor | None = None) -> torch.Tensor:
    return Im2colConv(conv(4, 6, 3, 1, 1), "a.b")(drawn(2, 4, 5, 5) if x is None else x, gate)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: spoiled("kxkxCx1", math.nan)(drawn(1, 4, 9, 8)), "layer layer1.0.conv2: the gate holds NaN"),
        (lambda: spoiled("kxkxCx1", math.inf)(drawn(1, 4, 9, 8)), "layer layer1.0.conv2: the gate holds NaN"),
        (lambda: spoiled("1x1xCxT", math.nan)(drawn(1, 4, 9, 8)), "layer layer1.0.conv2: the gate holds NaN"),
        (lambda: given(gate_map(2, 1, 5, 5, zeros=0.5) / 0), "layer a.b: the gate holds NaN or infinity"),
        (lambda: given(gate_map(2, 1, 3, 3, zeros=0.5)), r"the gate is torch.float64 \(2, 1, 3, 3\); give .* 5, 5\)"),
        (lambda: given(gate_map(2, 4, 5, 5, zeros=0.5)), r"give torch.float64 \(2, 1 or 6, 5, 5\)"),
        (lambda: given(gate_map(2, 1, 5, 5, zeros=0.5).float()), "the gate is torch.float32"),
        (lambda: given(gate_map(2, 1, 5, 5, zeros=0), drawn(2, 3, 5, 5)), r"layer a.b: the input .* \(2, 3, 5, 5\)"),
        (lambda: given(gate_map(2, 1, 5, 5, zeros=0), drawn(2, 4, 5, 5).half()), "the input is torch.float16"),
        (lambda: given(gate_map(2, 1, 5, 5, zeros=0), drawn(2, 4, 5, 5).to("meta")), "on meta; give .* on the CPU"),
        (lambda: Im2colConv(nn.Conv2d(4, 6, 3, groups=2), "a.b"), "layer a.b: groups, dilation and padding other"),
        (lambda: Im2colConv(nn.Conv2d(4, 6, 3).half(), "a.b"), "layer a.b: weights are torch.float16 on cpu; give"),
        (lambda: spoiled("kxkxCx1", 1)(drawn(1, 4, 0, 8)), "layer layer1.0.conv2: maps of .0, 8. are smaller than"),
        (lambda: skipping(nets.resnet_cifar(8)), "ResNet has no gates; add_lccl makes them"),
    ],
)
def test_bad_input_is_refused_in_one_line(act, message):
    with pytest.raises(ValueError, match=message) as caught:
        act()
    assert "\n" not in str(caught.value)
