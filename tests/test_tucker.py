"""Tucker decomposition: full rank is the layer itself, planted ranks are found, costs follow the paper's formulas."""

import copy
import itertools
from decimal import Decimal

import pytest
import torch
from torch import nn

from shrinkbook import nets
from shrinkbook.course.checks import kim2016 as checks
from shrinkbook.evidence import claims
from shrinkbook.evidence.statistics import agree
from shrinkbook.measure.cost import cost
from shrinkbook.methods import tucker
from shrinkbook.methods import tucker_layers as layers

# Kim et al. 2016, table 2
ALEXNET = {"conv1": 26, "conv2": (25, 59), "conv3": (105, 112), "conv4": (49, 46), "conv5": (40, 34)}
ALEXNET |= {"fc6": (210, 584), "fc7": 301, "fc8": 195}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted_kernel(outputs: int, inputs: int, side: int, ranks: tuple[int, int], noise: float = 0.0) -> torch.Tensor:
    return checks.planted_kernel(outputs, inputs, side, ranks, noise, seed=0)


def with_weight(module, weight: torch.Tensor):
    module.weight.data = weight.reshape(module.weight.shape).to(module.weight.dtype)
    return module


def small_net() -> nn.Sequential:
    return nets.initialize(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, padding=1, stride=2, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 10, 1),
            nn.Flatten(),
            nn.Linear(10 * 16, 14),
            nn.Linear(14, 5),
        ),
        0,
    ).eval()


SHAPES = [
    shape
    for shape in itertools.product(
        [1, 3, (1, 3), (3, 2)], [1, 2], [1, 2, (2, 1)], [1, 2], [0, 1, "same"], [True, False]
    )
    if shape[4] != "same"
    or (shape[2] == 1 and shape[0] != (3, 2))  # PyTorch has no strided one, and pads even ones oddly
]


@pytest.mark.parametrize(("kernel", "groups", "stride", "dilation", "padding", "bias"), SHAPES)
def test_full_rank_is_the_convolution(kernel, groups, stride, dilation, padding, bias):
    conv = nn.Conv2d(6, 8, kernel, stride, padding, dilation, groups, bias).double()
    x = drawn(2, 6, 9, 8)
    for count in (1,) if kernel == 1 else (1, 2):
        full = layers.full_ranks(tuple(conv.weight.shape), groups, count)
        chain, error = layers.low_rank_conv(conv, full)
        torch.testing.assert_close(chain(x), conv(x), rtol=1e-9, atol=1e-9)
        assert error < 1e-12
        assert [name for name, _ in chain.named_children()] == ["first", "core", "last"][2 - count :]
        assert (chain.last.bias is not None) == bias and chain.core.bias is None


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes_survive(mode):
    conv = nn.Conv2d(4, 6, 3, padding=2, padding_mode=mode).double()
    x = drawn(1, 4, 7, 7)
    torch.testing.assert_close(layers.low_rank_conv(conv, (4, 6))[0](x), conv(x), rtol=1e-9, atol=1e-9)


def test_full_rank_of_one_side_only_and_more_outputs_than_the_kernel_can_fill():
    wide = nn.Conv2d(2, 40, 3).double()  # at most 18 independent filters
    assert layers.full_ranks((40, 2, 3, 3), 1, 1) == (18,)
    x = drawn(1, 2, 6, 6)
    for ranks in ((18,), (2, 18), (2, 40)):
        torch.testing.assert_close(layers.low_rank_conv(wide, ranks)[0](x), wide(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(12, 5), (5, 12), (7, 7)])
def test_full_rank_is_the_linear_layer(inputs, outputs, bias):
    linear = nn.Linear(inputs, outputs, bias=bias).double()
    x = drawn(3, inputs)
    chain, error = layers.low_rank_linear(linear, min(inputs, outputs))
    torch.testing.assert_close(chain(x), linear(x), rtol=1e-9, atol=1e-9)
    assert error < 1e-12


def test_linear_layer_as_a_convolution_over_the_map():
    linear = nn.Linear(4 * 3 * 2, 9).double()
    x = drawn(5, 24)
    chain, error = layers.tucker_linear(linear, (4, 3, 2), (4, 9))
    torch.testing.assert_close(chain(x), linear(x), rtol=1e-9, atol=1e-9)
    assert chain.core.kernel_size == (3, 2) and error < 1e-12
    exact = with_weight(linear, torch.einsum("abij,ta,sb->tsij", drawn(3, 2, 3, 2), drawn(9, 3), drawn(4, 2)))
    assert layers.tucker_linear(exact, (4, 3, 2), (2, 3))[1] < 1e-12


def test_truncated_matrix_is_the_best_of_its_rank():
    for shape in ((12, 30), (30, 12)):
        matrix = drawn(*shape)
        values = torch.linalg.svdvals(matrix)
        u, b = layers.truncated_svd(matrix, 5)
        torch.testing.assert_close((matrix - u @ b).norm(), values[5:].norm(), rtol=1e-9, atol=0)


def test_planted_multilinear_rank_is_found_and_exact():
    kernel = planted_kernel(24, 16, 3, (4, 7), noise=0.05)
    assert tucker.estimate(kernel) == (4, 7)
    assert tucker.estimate(kernel, tucker1=True) == (7,)
    core, u4, u3 = layers.tucker2(planted_kernel(24, 16, 3, (4, 7)), (4, 7))
    assert (core.shape, u4.shape, u3.shape) == ((7, 4, 3, 3), (24, 7), (16, 4))
    _, error = layers.low_rank_conv(with_weight(nn.Conv2d(16, 24, 3), kernel), (4, 7))
    assert error == pytest.approx(0.05 * 24**0.5 * 16**0.5 * 3 / kernel.norm().item(), rel=0.1)


def test_groups_are_decomposed_apart_and_share_the_largest_rank():
    kernel = torch.cat([planted_kernel(24, 16, 3, (4, 7), 0.05), planted_kernel(24, 16, 3, (6, 5), 0.05)])
    assert tucker.estimate(kernel, groups=2) == (6, 7)
    conv = with_weight(nn.Conv2d(32, 48, 3, groups=2, bias=False).double(), kernel)
    chain, _ = layers.low_rank_conv(conv, (6, 7))
    x = drawn(1, 32, 8, 8)
    halves = []
    for part, channels in zip(kernel.chunk(2), x.chunk(2, dim=1), strict=True):
        core, u4, u3 = layers.tucker2(part, (6, 7))
        halves.append(nn.functional.conv2d(channels, torch.einsum("abij,ta,sb->tsij", core, u4, u3)))
    torch.testing.assert_close(chain(x), torch.cat(halves, dim=1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (3, 7, 1, 5)])
def test_unfoldings(shape):
    checks.unfolds(layers.output_unfolding, 0, shape, seed=0)
    checks.unfolds(layers.input_unfolding, 1, shape, seed=0)


@pytest.mark.parametrize("ranks", [(3, 5), (6, 2), (1, 1), (12, 14)])
def test_hosvd_projects_on_the_leading_vectors(ranks):
    checks.factors_are_those_of_hosvd(layers.hosvd, planted_kernel(14, 12, 3, (4, 6), noise=2.0), ranks)
    checks.planted_kernel_is_exact(layers.hosvd, 14, 12, ranks, seed=0)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "bias": False}])
def test_chain_of_given_factors(options):
    checks.chain_is_the_rebuilt_convolution(layers.conv_chain, seed=0, **options)


@pytest.mark.parametrize("ranks", [(3, 5), (6, 2), (1, 1), (9, 11), (10, 1), (1, 11)])
def test_turns_improve_on_hosvd_and_reach_the_oracle(ranks, recwarn):
    kernel = planted_kernel(14, 12, 3, (4, 6), noise=2.0)
    core, u4, u3 = layers.tucker2(kernel, ranks)
    assert not recwarn.list  # no vectors made up for ranks that the other side cannot fill
    checks.turns_improve(layers.tucker2, kernel, ranks)
    found = (kernel - checks.rebuilt(core, u4, u3)).norm().item()
    values = [torch.linalg.svdvals(unfold(kernel)) for unfold in (layers.input_unfolding, layers.output_unfolding)]
    lost = sum(value[rank:].square().sum() for value, rank in zip(values, ranks, strict=True))
    assert found <= lost.sqrt() + 1e-9


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("ranks", [(3, 4), (5,)])
def test_counted_cost_follows_the_formulas(stride, ranks):
    conv = nn.Conv2d(8, 12, 3, stride=stride, padding=1)
    _, report = tucker.compress(nn.Sequential(conv), {"0": ranks}, input_shape=(8, 10, 10))
    row, inside, outside = report.layer("0"), 100, 100 // stride**2
    if len(ranks) == 2:
        weights, mac = 8 * 3 + 9 * 3 * 4 + 12 * 4, 8 * 3 * inside + (9 * 3 * 4 + 12 * 4) * outside
    else:
        weights, mac = 5 * (9 * 8 + 12), 5 * (9 * 8 + 12) * outside
    assert (row.weights_after, row.mac_after) == (weights, mac)
    assert (row.weights, row.mac) == (9 * 8 * 12, 9 * 8 * 12 * outside)
    assert row.compression == pytest.approx(9 * 8 * 12 / weights)
    assert row.speedup == pytest.approx(9 * 8 * 12 * outside / mac)
    assert sum(part.weights for part in row.parts) == weights


@pytest.mark.parametrize("groups", [1, 2])
def test_weights_of_the_factors(groups):
    checks.factor_weights_are_counted(layers.factor_weights, (12, 8, 3, 2), groups)


def by_shapes(build, ranks, side: int, maps=None) -> tuple[nn.Module, tucker.Report]:
    with torch.device("meta"):
        model = build()
    return tucker.compress(model, ranks, input_shape=(3, side, side), as_convolution=maps)


def test_alexnet_with_the_printed_ranks_by_shapes_alone():
    smaller, report = by_shapes(nets.alexnet, ALEXNET, 227, {"fc6": (256, 6, 6)})
    assert [row.kind for row in report.layers] == ["tucker1", *["tucker2"] * 5, "svd", "svd"]
    assert (report.total("weights_after"), report.total("mac_after")) == (10_724_888, 165_750_248)
    assert cost(smaller, (3, 227, 227)).mac == 165_750_248
    assert all(row.error is None for row in report.layers)
    with torch.device("meta"), pytest.raises(ValueError, match="meta device"):
        tucker.compress(nets.alexnet(), input_shape=(3, 227, 227))


def test_every_cost_of_table_2_follows_from_shapes_and_ranks_but_for_two():
    paper = claims.load("kim2016")
    report = by_shapes(nets.alexnet, ALEXNET, 227, {"fc6": (256, 6, 6)})[1]
    ours = {}
    for row in report.layers:
        ours |= {f"{row.name}/weights": row.weights, f"{row.name}/flop": row.mac}
        ours |= {f"{row.name}*/weights": row.weights_after, f"{row.name}*/flop": row.mac_after}
        ours |= {f"{row.name} change/weights": row.compression, f"{row.name} change/flop": row.speedup}
        ours |= {f"{row.name}*/flop_{part.name.split('.')[1]}": part.mac for part in row.parts}
    claimed = [cell for key in "abc" for cell in paper.cells(paper.claim(f"kim2016.4{key}"))]
    printed = {c.address for c in paper.tables["table2"].cells if c.value and c.column.startswith(("weights", "flop"))}
    assert {cell.address for cell in claimed} == printed
    off = [cell.address for cell in claimed if agree(ours[f"{cell.row}/{cell.column}"], cell.value) != "reproduced"]
    assert off == ["table2/conv5/flop", "table2/conv3*/weights"]
    ranks = {row.name: row.ranks for row in report.layers}
    for cell in paper.tables["table2"].cells:
        if cell.unit == "rank":
            assert int(cell.value) == ranks[cell.row[:-1]][0 if cell.column == "input_side" else -1]


def test_vgg16_with_the_remembered_ranks_has_the_printed_weights_only():
    paper = claims.load("kim2016")
    table = paper.tables["appendix_vgg16"]
    ranks = {row: tuple(int(table.cell(row, column).value) for column in ("r3", "r4")) for row in table.rows[1:]}
    report = by_shapes(nets.vgg16_imagenet, ranks, 224)[1]
    ours = {"weights": report.total("weights_after"), "flop": report.total("mac_after")}
    words = {column: agree(value, paper.cell(f"table1/VGG-16*/{column}").value) for column, value in ours.items()}
    assert words == {"weights": "reproduced", "flop": "differs"}
    assert round(ours["flop"] / 1e6) == 3833
    assert agree(report.compression, paper.cell("table1/VGG-16 change/weights").value) == "reproduced"


def test_printed_changes_follow_from_the_rows_but_for_two():
    """A slip of the pen in a cell breaks the paper's own arithmetic; each cell may be off by one last digit."""
    paper, off = claims.load("kim2016"), []
    for table in (paper.tables["table1"], paper.tables["table2"]):
        for cell in table.cells:
            if not cell.row.endswith("change") or not cell.value:
                continue
            name = cell.row.removesuffix(" change")
            values = [Decimal(table.cell(row, cell.column).value) for row in (name, f"{name}*")]
            (before, one), (after, other) = ((value, Decimal(1).scaleb(value.as_tuple().exponent)) for value in values)
            if cell.unit == "points":
                low = high = after - before
            else:
                low, high = (before - one) / (after + other), (before + one) / (after - other)
            if not low - Decimal("0.01") <= Decimal(cell.value) <= high + Decimal("0.01"):
                off.append(cell.address)
    assert off == ["table1/GoogLeNet change/weights", "table2/conv3 change/weights"]


def test_the_whole_network_at_full_rank_is_the_network():
    model = small_net()
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = copy.deepcopy(model.state_dict())
    full = {"0": 8, "2": (8, 12), "5": 10, "7": 14, "8": [5]}
    state = torch.random.get_rng_state()
    smaller, report = tucker.compress(model, full, input_shape=(3, 8, 8))
    assert torch.equal(state, torch.random.get_rng_state())
    torch.testing.assert_close(smaller(x), model(x), rtol=1e-4, atol=1e-5)
    assert [row.kind for row in report.layers] == ["tucker1", "tucker2", "svd", "svd", "svd"]
    assert all(row.note.startswith("no gain, M = 0.") for row in report.layers)
    assert type(model[2]) is nn.Conv2d
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    same, _ = tucker.compress(model, full, input_shape=(3, 8, 8), inplace=True)
    assert same is model and type(model[2]) is nn.Sequential
    torch.testing.assert_close(same(x), smaller(x))


def test_untrained_network_is_clamped_and_shows_no_gain():
    _, report = tucker.compress(nets.initialize(small_net(), 1), input_shape=(3, 8, 8))
    conv = report.layer("2")
    assert (conv.estimated, conv.ranks, conv.clamped) == ((0, 0), (1, 1), True)
    assert conv.note == "estimated rank 0 clamped to 1"
    assert conv.compression is conv.speedup is report.compression is report.speedup is None
    assert report.clamped == ["0", "2", "5", "7", "8"]
    assert [row.kind for row in report.layers] == ["tucker1", "tucker2", "svd", "svd", "svd"]


def test_trained_like_network_is_compressed_where_its_weights_have_structure():
    model = small_net()
    with_weight(model[2], planted_kernel(12, 8, 3, (2, 3), noise=0.05))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    smaller, report = tucker.compress(model, input_shape=(3, 8, 8), keep_out=["0", "5", "7", "8"])
    row = report.layer("2")
    assert row.estimated == row.ranks == (2, 3) and not row.clamped
    assert 0 < row.error < 0.03
    assert report.total("mac_after") == cost(smaller, (3, 8, 8)).mac
    assert report.speedup == pytest.approx(cost(model, (3, 8, 8)).mac / cost(smaller, (3, 8, 8)).mac)
    torch.testing.assert_close(smaller(x), model(x), rtol=0, atol=0.1 * model(x).abs().max().item())
    assert set(report.rows()[0]) >= {"name", "kind", "ranks", "mac_after", "error", "compression", "speedup", "note"}


def test_keeping_out_a_part_by_its_path():
    model = nn.Sequential()
    model.body, model.head = nn.Conv2d(3, 8, 3), nn.Sequential(nn.Flatten(), nn.Linear(8 * 36, 4), nn.Linear(4, 4))
    _, report = tucker.compress(model, input_shape=(3, 8, 8), keep_out=["head"])
    assert [(row.name, row.note) for row in report.layers][1:] == [("head.1", "kept out"), ("head.2", "kept out")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_types_survive(dtype):
    conv, linear = nn.Conv2d(4, 6, 3).to(dtype), nn.Linear(8, 6).to(dtype)
    for chain, _ in (layers.decompose(conv, (2, 3)), layers.decompose(linear, (4,))):
        assert {parameter.dtype for parameter in chain.parameters()} == {dtype}


def test_modes_and_trainability_survive_and_gradients_flow():
    model = small_net().train()
    model[2].weight.requires_grad_(False)
    smaller, _ = tucker.compress(model, {"0": 4, "2": (3, 4)}, input_shape=(3, 8, 8))
    assert not smaller[2].core.weight.requires_grad and smaller[0].core.weight.requires_grad
    assert smaller[2].core.training and model[2].training
    smaller(drawn(2, 3, 8, 8).float()).sum().backward()
    assert smaller[0].last.weight.grad.abs().sum() > 0
    assert not tucker.compress(model.eval(), {"0": 4}, input_shape=(3, 8, 8))[0][0].core.training


class Odd(nn.Module):
    """One of everything that stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.one, self.two = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.two.weight = self.one.weight
        self.up = nn.ConvTranspose2d(6, 4, 2)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.twice = nn.Conv2d(6, 6, 3, padding=1)
        self.idle = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.twice(self.twice(self.depthwise(self.two(self.one(self.conv(x)))))))


def test_what_cannot_be_decomposed_is_named():
    model = Odd()
    smaller, report = tucker.compress(model, input_shape=(3, 8, 8))
    notes = {row.name: row.note for row in report.layers if row.kind == "kept"}
    assert notes == {
        "one": "shares weights with two",
        "two": "shares weights with one",
        "up": "unsupported kind ConvTranspose2d",
        "depthwise": "no gain, M = 0.90",
        "idle": "does not run",
    }
    assert smaller.one.weight is smaller.two.weight
    assert report.layer("twice").mac == 2 * 9 * 36 * 64  # runs twice; its replacement does too
    assert report.total("mac_after") == cost(smaller, (3, 8, 8)).mac
    for name, why in (("one", "shares weights"), ("up", "unsupported kind"), ("idle", "does not run")):
        with pytest.raises(ValueError, match=f"layer {name} has ranks but is to be kept: {why}"):
            tucker.compress(model, {name: 1}, input_shape=(3, 8, 8))


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ({"2": (9, 4)}, r"layer 2: ranks \(9, 4\) are outside 1 to \(8, 12\)"),
        ({"2": (0, 4)}, r"layer 2: ranks \(0, 4\) are outside"),
        ({"2": 13}, r"layer 2: ranks \(13,\) are outside 1 to \(12,\)"),
        ({"2": (1, 2, 3)}, r"layer 2: ranks \(1, 2, 3\) must be one whole number or a pair"),
        ({"2": 2.5}, "must be one whole number"),
        ({"5": (2, 2)}, "layer 5: a 1x1 kernel is a matrix and has one rank"),
        ({"7": (2, 2)}, "layer 7: a 1x1 kernel is a matrix"),
        ({"9": 1}, "ranks: no layer '9' in Sequential; it has 0, 2, 5, 7, 8"),
        ({"1": 1}, "ranks: no layer '1' in Sequential; it has 0, 2, 5, 7, 8"),
        ("VBMF", "unknown ranks 'VBMF'; give 'vbmf' or a mapping"),
    ],
)
def test_ranks_that_cannot_be(ranks, words):
    with pytest.raises(ValueError, match=words):
        tucker.compress(small_net(), ranks, input_shape=(3, 8, 8))


def test_other_bad_input():
    model = small_net()
    with pytest.raises(ValueError, match="keep_out: no layer 'head'"):
        tucker.compress(model, input_shape=(3, 8, 8), keep_out=["head"])
    with pytest.raises(ValueError, match=r"keep_out takes several names; write \['2'\]"):
        tucker.compress(model, input_shape=(3, 8, 8), keep_out="2")
    with pytest.raises(ValueError, match="layer 2 has ranks but is to be kept: named in keep_out"):
        tucker.compress(model, {"2": 1}, input_shape=(3, 8, 8), keep_out=["2"])
    with pytest.raises(ValueError, match="as_convolution: '7' must be a linear layer that reads maps"):
        tucker.compress(model, input_shape=(3, 8, 8), as_convolution={"7": (10, 4, 5)})
    with pytest.raises(ValueError, match="got a bare Conv2d"):
        tucker.compress(nn.Conv2d(3, 8, 3), input_shape=(3, 8, 8))
    model[5].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="layer 5: the weights hold NaN or infinity"):
        tucker.compress(model, {"5": 2}, input_shape=(3, 8, 8))
    with pytest.raises(ValueError, match="layer 5: the weights hold NaN or infinity"):
        tucker.compress(model, input_shape=(3, 8, 8), inplace=True)
    assert type(model[0]) is nn.Conv2d  # nothing was replaced before the fault
    with pytest.raises(ValueError, match="no layer 'x' in the report; it has 0, 2"):
        tucker.compress(small_net(), {}, input_shape=(3, 8, 8))[1].layer("x")


def test_a_layer_of_zeros():
    model = small_net()
    with_weight(model[2], torch.zeros(12, 8, 3, 3))
    _, report = tucker.compress(model, {"2": (2, 2)}, input_shape=(3, 8, 8))
    assert report.layer("2").error == 0


def test_a_compressed_network_exports_saves_and_loads_like_any_other(tmp_path):
    def network():
        convs = nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3, groups=2)
        return nn.Sequential(*convs, nn.Flatten(), nn.Linear(256, 9))

    ranks, shape = {"0": 3, "2": (3, 4), "4": 5}, {"input_shape": (3, 8, 8)}
    smaller, _ = tucker.compress(network(), ranks, **shape)
    image = torch.randn(2, 3, 8, 8)
    exported = torch.export.export(smaller.eval(), (image,)).module()
    torch.testing.assert_close(exported(image), smaller(image))
    torch.save(smaller.state_dict(), tmp_path / "smaller.pt")
    with torch.device("meta"):
        shapes = network()
    twin = tucker.compress(shapes, ranks, **shape)[0].to_empty(device="cpu")
    twin.load_state_dict(torch.load(tmp_path / "smaller.pt", weights_only=True))
    assert torch.equal(twin.eval()(image), smaller(image))
