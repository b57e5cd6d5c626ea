"""The checks of the assignment on LCCL: the library passes, a student's mistake is told in a sentence."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shrinkbook.course.checks import dong2017 as check
from shrinkbook.methods.lccl import LCCL, LCCLConv2d
from shrinkbook.methods.lccl_saving import overhead
from shrinkbook.methods.lccl_skip import im2col, skip_indexed

shapes = partial(check.gate_has_the_shapes, kind="kxkxCx1", kernel=3, stride=2)
formula = partial(check.gate_is_the_formula, kind="kxkxCx1", stride=1, seed=0)
product = partial(check.output_is_the_product, maps=1, stride=1, seed=0)
readings = partial(check.other_readings, seed=0)
patches = partial(check.patches_are_cut_out, kernel=3, stride=1, padding=1, seed=0)
counts = partial(check.overheads_are_counted, kernel=3, outputs=16)


def exact(skip, maps=1, relu=False):
    for zeros in (0, 0.6, 1):
        check.skipping_is_exact(skip, *check.example(maps, zeros, 1), relu)


def skipped(skip, maps=1):
    for zeros in (0, 0.6, 1):
        check.closed_positions_are_not_computed(skip, *check.example(maps, zeros, 1))


RIGHT = [
    *((partial(shapes, kind=kind, kernel=k, stride=s), LCCL) for kind in check.KINDS for k in (1, 3) for s in (1, 2)),
    *((partial(formula, kind=kind, stride=stride), LCCL) for kind in check.KINDS for stride in (1, 2)),
    (product, LCCLConv2d),
    (partial(product, maps=6, stride=2), LCCLConv2d),
    (readings, LCCLConv2d),
    (patches, im2col),
    (partial(patches, kernel=1, stride=2, padding=0), im2col),
    (exact, skip_indexed),
    (partial(exact, maps=6), skip_indexed),
    (partial(exact, relu=True), skip_indexed),
    (skipped, skip_indexed),
    (partial(skipped, maps=6), skip_indexed),
    (counts, overhead),
]


@pytest.mark.parametrize(("check", "function"), RIGHT)
def test_the_library_passes(check, function):
    check(function)


def gate_with(forward=None, **options):
    """The library's gate with another forward pass, or with another convolution."""

    class Gate(LCCL):
        def __init__(self, main, kind="kxkxCx1", norm=True):
            super().__init__(main, kind, norm)
            if options:
                old = self.conv
                kept = {name: getattr(old, name) for name in ("kernel_size", "stride", "padding")}
                kept |= {"bias": False, "out_channels": old.out_channels} | options
                self.conv = nn.Conv2d(old.in_channels, **kept)

        def forward(self, x):
            return forward(self, x) if forward else super().forward(x)

    return Gate


def gate_always_with_norm(main, kind="kxkxCx1", norm=True):
    return LCCL(main, kind, True)


def gate_with_the_norm_of_all(main, kind="kxkxCx1", norm=True):
    gate = LCCL(main, kind, norm)
    gate.norm = nn.BatchNorm2d(main.out_channels) if norm else gate.norm
    return gate


def gated_by(forward):
    class Gated(nn.Module):
        def __init__(self, main, gate, hard=False, relu=False):
            super().__init__()
            self.main, self.gate, self.hard, self.relu = main, gate, hard, relu

        def forward(self, x):
            return forward(self, self.main(x), self.gate(x))

    return Gated


def unfolded(x, window):
    """im2col with the channels in front of the pixels of a patch."""
    kh, kw, sh, sw, ph, pw = window
    return F.pad(x.permute(0, 2, 3, 1), (0, 0, pw, pw, ph, ph)).unfold(1, kh, sh).unfold(2, kw, sw)


def skip_by(open_rows=True, factor=True, bias=True, late=False):
    """Skipping of a shared gate with things left out."""

    def skip(x, conv, gate, relu=False):
        rows = im2col(x, (*conv.kernel_size, *conv.stride, *conv.padding))
        matrix = conv.weight.permute(0, 2, 3, 1).flatten(1)
        values = gate[:, 0]
        kept = values != 0
        output = matrix.new_zeros(*rows.shape[:3], len(matrix))
        response = rows[kept].flatten(1) @ matrix.T if open_rows else (rows.flatten(3) @ matrix.T)[kept]
        response = response + conv.bias if bias else response
        response = F.relu(response) if relu and not late else response
        output[kept] = response * values[kept][:, None] if factor else response
        return output.permute(0, 3, 1, 2)

    return skip


def skip_by_sums(x, conv, gate, relu=False):
    """No product of matrices anywhere."""
    rows = im2col(x, (*conv.kernel_size, *conv.stride, *conv.padding)).flatten(3)
    matrix = conv.weight.permute(0, 2, 3, 1).flatten(1)
    return ((rows[:, :, :, None] * matrix).sum(-1) + conv.bias).permute(0, 3, 1, 2) * gate


WRONG = [
    (shapes, gate_with(stride=1), "stride and padding of W"),
    (shapes, gate_with(padding=0), "stride and padding of W"),
    (shapes, gate_with(bias=True), "has a bias"),
    (shapes, gate_with(out_channels=6), r"weight has shape \(6, 4, 3, 3\); expected \(1, 4, 3, 3\)"),
    (partial(shapes, kind="1x1xCxT"), gate_with(kernel_size=3), r"expected \(6, 4, 1, 1\)"),
    (partial(shapes, kind="1x1xCxT"), gate_with(padding=1), "stride and padding of W"),
    (shapes, gate_always_with_norm, "norm=False should leave"),
    (shapes, gate_with_the_norm_of_all, "the batch norm has 6 maps; the gate has 1"),
    (formula, gate_with(lambda gate, x: gate.norm(F.relu(gate.linear(x)))), "the ReLU comes before the batch norm"),
    (formula, gate_with(lambda gate, x: gate.norm(gate.linear(x))), "the ReLU is missing"),
    (formula, gate_with(lambda gate, x: F.relu(gate.linear(x))), "the batch norm is missing"),
    (formula, gate_with(lambda gate, x: gate.norm(gate.linear(x)).sigmoid()), "expected"),
    (product, gated_by(lambda layer, y, m: y * (m > 0)), "the gate's value is a factor"),
    (product, gated_by(lambda layer, y, m: y), "without the gate"),
    (product, gated_by(lambda layer, y, m: y + m), "added"),
    (product, gated_by(lambda layer, y, m: F.relu(y) * m), "a ReLU of the response was taken"),
    (product, gated_by(lambda layer, y, m: F.relu(y * m)), "a ReLU of the response was taken"),
    (product, gated_by(lambda layer, y, m: y * m), "lower than the response raises RuntimeError; it should be a Value"),
    (readings, gated_by(lambda layer, y, m: y * m), "there is no ReLU"),
    (readings, gated_by(lambda layer, y, m: (F.relu(y) if layer.relu else y) * m), "the factor is M, not 1"),
    (
        readings,
        gated_by(lambda layer, y, m: (F.relu(y) if layer.relu else y) * ((m > 0).double() if layer.hard else m)),
        "the gate gets no gradient",
    ),
    (
        readings,
        gated_by(lambda layer, y, m: (F.relu(y) if layer.relu else y) * (m + (m.sign() - m) * layer.hard)),
        "gate gets no gradient",
    ),
    (patches, lambda x, window: im2col(x, window).transpose(3, 4), "exchanged"),
    (patches, unfolded, r"has shape \(2, 7, 6, 3, 3, 3\)|the channels come last"),
    (patches, lambda x, window: im2col(x, (*window[:4], 0, 0)), "has shape"),
    (patches, lambda x, window: im2col(x, window).flatten(1, 2), "has shape"),
    (exact, skip_by(factor=False), "without the gate's value"),
    (exact, skip_by(bias=False), "the bias is missing"),
    (partial(exact, relu=True), skip_by(late=True), "relu=True takes the ReLU"),
    (exact, lambda x, conv, gate, relu: conv(x) * gate.sqrt(), "expected"),
    (skipped, skip_by(open_rows=False), "everything was computed"),
    (skipped, lambda x, conv, gate, relu: conv(x) * gate, "everything was computed"),
    (skipped, skip_by_sums, "multiply rows of patches with the matrix by @"),
    (counts, lambda kind, k, t: 1 / overhead(kind, k, t), "this is its inverse"),
    (counts, lambda kind, k, t: 1 - overhead(kind, k, t), "the share that is left"),
    (counts, lambda kind, k, t: 1 / k**2, "expected"),
]


@pytest.mark.parametrize(("check", "function", "sentence"), WRONG)
def test_a_mistake_is_told(check, function, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check(function)


def shift(gate, x, zeros):
    """Half of what the stretch task asks: the quantile of the batch norm's output, on the gate itself."""
    with torch.no_grad():
        gate.norm.bias -= gate.norm(gate.linear(x)).flatten().quantile(zeros)
    return gate


def test_the_check_of_the_stretch_task():
    gate = LCCL(check.convolution())
    for zeros in (0.25, 0.6):
        check.shuts_the_share(lambda gate, x, share: shift(copy.deepcopy(gate), x, share), gate, zeros)
        with pytest.raises(AssertionError, match="of the gate are 0, not"):
            check.shuts_the_share(lambda gate, x, share: gate, gate, zeros + 0.01)
    with pytest.raises(AssertionError, match="the gate that was given, afterwards"):
        check.shuts_the_share(shift, gate, 0.5)


def test_multiplications_are_counted_where_matrices_are_multiplied():
    a, b, main, x = torch.ones(2, 3), torch.ones(3, 5), nn.Conv2d(4, 6, 3, padding=1), torch.ones(2, 4, 7, 5)
    acts = {
        30: [
            lambda: a @ b,
            lambda: torch.einsum("ij, jk -> ik", a, b),
            lambda: torch.addmm(torch.ones(5), a, b),
            lambda: F.linear(a, b.T),
            lambda: a[None].bmm(b[None]),
        ],
        2 * 6 * 35 * 36: [lambda: main(x)],
        6: [lambda: a @ b[:, 0], lambda: a.mv(b[:, 0])],
        0: [lambda: a * a + a, lambda: main.weight.sum()],
    }
    for right, calls in acts.items():
        for call in calls:
            with check.Multiplications() as counter:
                call()
            assert counter.count == right
