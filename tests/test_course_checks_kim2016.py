"""The checks of the assignment on Tucker and EVBMF: the library passes, a student's mistake is told in a sentence."""

import math
from collections import OrderedDict
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from shrinkbook.course.checks import kim2016 as check
from shrinkbook.methods.tucker_layers import (
    conv_chain,
    factor_weights,
    hosvd,
    input_unfolding,
    leading_vectors,
    output_unfolding,
    tucker2,
)
from shrinkbook.methods.vbmf import RankEstimate, evbmf, free_energy, smallest_kept

inputs = partial(check.unfolds, axis=1, shape=(6, 4, 3, 3), seed=0)
outputs = partial(check.unfolds, axis=0, shape=(6, 4, 3, 3), seed=0)
threshold = partial(check.threshold_is_near_the_root, ratio=0.5)
energies = partial(check.energies_add_up, rows=8, columns=25, seed=0)
noise = partial(check.noise_has_rank_zero, trials=5, seed=0)
planted = partial(check.planted_rank_is_found, rows=40, columns=120, rank=5, noise=0.5, seed=0)
scaled = partial(check.scale_changes_the_variance_only, scale=1e3)
exact = partial(check.exact_rank_has_no_noise, rows=20, columns=50, rank=4)
noisy = check.planted_kernel(14, 12, 3, (4, 6), 2.0, seed=0)
factors = partial(check.factors_are_those_of_hosvd, kernel=noisy, ranks=(3, 5))
rebuilds = partial(check.planted_kernel_is_exact, outputs=10, inputs=8, ranks=(2, 3), seed=0)
turns = partial(check.turns_improve, kernel=noisy, ranks=(3, 5))
chain = partial(check.chain_is_the_rebuilt_convolution, seed=0)
strided = partial(chain, stride=2, padding=1)
weights = partial(check.factor_weights_are_counted, shape=(12, 8, 3, 3), groups=1)

RIGHT = [
    (inputs, input_unfolding),
    (outputs, output_unfolding),
    (threshold, smallest_kept),
    (energies, free_energy),
    (noise, evbmf),
    (planted, evbmf),
    (scaled, evbmf),
    (exact, evbmf),
    (factors, hosvd),
    (rebuilds, hosvd),
    (rebuilds, tucker2),
    (turns, tucker2),
    (chain, conv_chain),
    (strided, conv_chain),
    (partial(chain, bias=False, dilation=2), conv_chain),
    (weights, factor_weights),
]


@pytest.mark.parametrize(("check", "function"), RIGHT)
def test_the_library_passes(check, function):
    check(function)


def jumbled(kernel):
    """The right numbers in each row, every row in an order of its own."""
    rows = input_unfolding(kernel)
    return torch.stack([row.roll(number) for number, row in enumerate(rows)])


def energy(twice=False, signal=True, threshold=True):
    def free_energy(values, columns, variances):
        a = len(values) / columns
        x = np.square(values) / (columns * variances[:, None])
        kept = x > (smallest_kept(a) if threshold else (1 + math.sqrt(a)) ** 2)
        shifted = np.where(kept, x, smallest_kept(a)) - (1 + a)
        t = (shifted + np.sqrt(np.maximum(shifted**2 - 4 * a, 0))) / 2
        gain = np.where(kept, np.log1p(t) + a * np.log1p(t / a) - t, 0.0) * signal
        total = columns * (len(values) * np.log(2 * np.pi * variances) + x.sum(1) + gain.sum(1))
        return total if twice else total / 2

    return free_energy


def changed(**change):
    """EVBMF with fields of its answer changed by functions of the answer."""
    return lambda matrix: replace(evbmf(matrix), **{name: make(evbmf(matrix)) for name, make in change.items()})


def largest_share(matrix):
    """A rank by a threshold of a tenth of the largest singular value."""
    values = torch.linalg.svdvals(matrix).numpy()
    return RankEstimate(int((values > 0.1 * values[0]).sum()), 0.25, 0.1 * values[0], values)


def hosvd_with(
    u4_of=output_unfolding, u3_of=input_unfolding, lead=leading_vectors, exchange=False, core="tsij,ta,sb->abij"
):
    def hosvd(kernel, ranks):
        r3, r4 = ranks[::-1] if exchange else ranks
        u4, u3 = lead(u4_of(kernel), r4), lead(u3_of(kernel), r3)
        return torch.einsum(core, kernel, u4, u3), u4, u3

    return hosvd


def smallest_vectors(matrix, rank):
    return torch.linalg.eigh(matrix @ matrix.T).eigenvectors[:, :rank]


def scaled_vectors(matrix, rank):
    u, s, _ = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank]


def chain_with(stride_of="core", bias_of="last", names=("first", "core", "last"), padding=True):
    def chain(conv, core, u4, u3):
        layers = []
        for name, kernel in zip(
            ("first", "core", "last"), (u3.T[:, :, None, None], core, u4[:, :, None, None]), strict=True
        ):
            layer = nn.Conv2d(
                kernel.shape[1],
                kernel.shape[0],
                kernel.shape[-1],
                stride=conv.stride if name == stride_of else 1,
                padding=conv.padding if name == "core" and padding else 0,
                dilation=conv.dilation if name == "core" else 1,
                bias=name == bias_of,
            ).double()
            layer.weight.data = kernel
            if name == bias_of:
                layer.bias.data = conv.bias.data if name == "last" else torch.zeros(len(kernel)).double()
            layers.append((name, layer))
        return nn.Sequential(OrderedDict((new, layer) for new, (_, layer) in zip(names, layers, strict=True)))

    return chain


def other_order(conv, core, u4, u3):
    return conv_chain(conv, core, u4, u3.flip(1))


WRONG = [
    (inputs, lambda kernel: kernel.reshape(kernel.shape[1], -1), "row 0 does not hold the weights of channel 0"),
    (inputs, output_unfolding, r"has shape \(6, 36\); expected \(4, 54\)"),
    (inputs, lambda kernel: kernel.transpose(0, 1), "has shape"),
    (inputs, lambda kernel: None, "is there a return"),
    (inputs, jumbled, "need one order of columns"),
    (outputs, input_unfolding, "has shape"),
    (threshold, lambda a: 2.5129 * math.sqrt(a), r"this is t; x is"),
    (threshold, lambda a: (1 + 2.5129 * a) * (1 + 1 / 2.5129), "square root of a"),
    (threshold, lambda a: (1 + math.sqrt(a)) ** 2, "expected"),
    (energies, energy(twice=True), "the formula gives 2F"),
    (energies, energy(signal=False), "the sum over the kept components is missing"),
    (energies, energy(threshold=False), "below the threshold have no share"),
    (energies, lambda values, columns, variances: float(energy()(values, columns, variances)[0]), "should be an array"),
    (noise, largest_share, "of pure noise is"),
    (noise, changed(rank=lambda found: found.rank + 1), "of pure noise is 1, not 0"),
    (planted, changed(rank=lambda found: found.rank - 1), "the rank is 4: off by one"),
    (planted, changed(noise_variance=lambda found: found.noise_variance**0.5), "this is the standard deviation"),
    (planted, changed(threshold=lambda found: found.threshold**2), "is not between singular values 5 and 6"),
    (scaled, lambda matrix: largest_share(matrix), "planted 9"),
    (scaled, changed(noise_variance=lambda found: found.noise_variance**0.5), "times what it should be"),
    (exact, changed(rank=lambda found: 0), "no noise: the rank is 0"),
    (exact, changed(noise_variance=lambda found: 1e-3), "without noise the variance is 0.001"),
    (factors, hosvd_with(exchange=True), r"these are \(R3, R4\), input side first"),
    (factors, hosvd_with(lead=smallest_vectors), "largest singular values first"),
    (factors, hosvd_with(lead=scaled_vectors), "whose columns are orthonormal"),
    (factors, hosvd_with(core="tsij,ta,sb->baij"), "the core has shape"),
    (factors, hosvd_with(u3_of=lambda kernel: kernel.reshape(kernel.shape[1], -1)), "from their own unfoldings"),
    (factors, lambda kernel, ranks: None, "three tensors"),
    (rebuilds, hosvd_with(lead=smallest_vectors), "rebuilt from core, U4 and U3"),
    (turns, hosvd, "turns reach"),
    (turns, hosvd_with(lead=smallest_vectors), "HOSVD alone has"),
    (strided, chain_with(stride_of="first"), "the output of the chain"),
    (strided, chain_with(padding=False), "padding and dilation belong to the core alone"),
    (chain, chain_with(bias_of=None), "the bias is missing"),
    (chain, chain_with(bias_of="first"), "layer first has a bias"),
    (chain, chain_with(names=("0", "1", "2")), "expected first, core, last"),
    (chain, other_order, "the output of the chain"),
    (chain, lambda *given: None, "is there a return"),
    (weights, lambda shape, groups, ranks: math.prod(shape), "the layers have"),
    (partial(weights, groups=2), lambda shape, groups, ranks: factor_weights(shape, 1, ranks), "the layers have"),
]


@pytest.mark.parametrize(("check", "function", "sentence"), WRONG)
def test_a_mistake_is_told(check, function, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check(function)
