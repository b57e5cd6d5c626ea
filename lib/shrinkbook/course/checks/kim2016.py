"""What Tucker decomposition and EVBMF must do (Kim et al. 2016): unfoldings, ranks, factors, the chain of layers."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from torch import Tensor, nn

from shrinkbook.course.checks.compare import agree, drawn

Floats = NDArray[np.float64]
Factors = tuple[Tensor, Tensor, Tensor]  # core (R4, R3, height, width), U4 (T, R4), U3 (S, R3)
Decompose = Callable[[Tensor, tuple[int, int]], Factors]


def planted_matrix(rows: int, columns: int, rank: int, noise: float, seed: int) -> Tensor:
    """A product of this rank, entries of variance ``rank``, plus noise of this standard deviation."""
    product = drawn(rows, rank, seed=seed) @ drawn(rank, columns, seed=seed + 1)
    return product + noise * drawn(rows, columns, seed=seed + 2)


def planted_kernel(outputs: int, inputs: int, side: int, ranks: tuple[int, int], noise: float, seed: int) -> Tensor:
    """A kernel (T, S, side, side) of multilinear rank (R3, R4) plus noise."""
    r3, r4 = ranks
    factors = drawn(r4, r3, side, side, seed=seed), drawn(outputs, r4, seed=seed + 1), drawn(inputs, r3, seed=seed + 2)
    return rebuilt(*factors) + noise * drawn(outputs, inputs, side, side, seed=seed + 3)


def rebuilt(core: Tensor, u4: Tensor, u3: Tensor) -> Tensor:
    """K(t, s, i, j) = sum over r4 and r3 of C(r4, r3, i, j) U4(t, r4) U3(s, r3)."""
    return torch.einsum("abij,ta,sb->tsij", core, u4, u3)


def unfolds(unfolding: Callable[[Tensor], Tensor], axis: int, shape: tuple[int, int, int, int], seed: int) -> None:
    """Row by row the numbers of one channel, in the same order of columns for all rows; which order is free.

    Args:
        axis: 0 for output channels, 1 for input channels.
    """
    kernel = drawn(*shape, seed=seed)
    found = unfolding(kernel)
    what = f"{'input' if axis else 'output'}_unfolding(kernel) for a kernel {shape}"
    expected = (shape[axis], kernel.numel() // shape[axis])
    assert isinstance(found, Tensor), f"{what} is {type(found).__name__}: is there a return?"
    assert tuple(found.shape) == expected, f"{what} has shape {tuple(found.shape)}; expected {expected}"
    for channel in range(shape[axis]):
        own = kernel.select(axis, channel).flatten().sort().values
        assert torch.equal(found[channel].sort().values, own), (
            f"{what}: row {channel} does not hold the weights of channel {channel}; reshape alone cuts the memory "
            "in its own order, so that the axis must come first"
        )
    right = torch.tensor([[float((a * b).sum()) for b in kernel.unbind(axis)] for a in kernel.unbind(axis)]).double()
    agree(f"{what}: the products of its rows, which need one order of columns,", found @ found.T, right, rtol=1e-5)


def threshold_is_near_the_root(smallest_kept: Callable[[float], float], ratio: float) -> None:
    """Within 2.1 % below the x at which ln(t+1)/t + ln(t/a+1) a/t = 1, where a component begins to pay."""

    def zero(t: float) -> float:
        return math.log1p(t) / t + math.log1p(t / ratio) * ratio / t - 1

    t = brentq(zero, 1e-9, 50)
    exact = (1 + t) * (1 + ratio / t)
    agree(
        f"smallest_kept({ratio}), which is at most 2.1 % below the exact value,",
        smallest_kept(ratio),
        exact,
        {
            "this is t; x is (1 + t)(1 + a / t)": 2.5129 * math.sqrt(ratio),
            "t has the square root of a": _x(2.5129 * ratio, ratio),
        },
        rtol=0.021,
    )


def energies_add_up(free_energy: Callable[[Floats, int, Floats], Floats], rows: int, columns: int, seed: int) -> None:
    """The free energy of every variance, singular value by singular value."""
    values = torch.linalg.svdvals(planted_matrix(rows, columns, 2, 0.5, seed)).numpy()
    variances = np.geomspace(0.02, 4.0, 7)
    found = free_energy(values, columns, variances)
    assert isinstance(found, np.ndarray), f"free_energy gives {type(found).__name__}; it should be an array"

    def energy(variance: float, slip: str = "") -> float:
        a = rows / columns
        least = {"gain": math.inf, "threshold": (1 + math.sqrt(a)) ** 2}.get(slip, _x(2.5129 * math.sqrt(a), a))
        total = rows * columns * math.log(2 * math.pi * variance)
        for value in values.tolist():
            x = value**2 / (columns * variance)
            total += columns * x
            if x > least:
                t = (x - 1 - a + math.sqrt((x - 1 - a) ** 2 - 4 * a)) / 2
                total += columns * (math.log(t + 1) + a * math.log(t / a + 1) - t)
        return total / 2

    def all_of(slip: str = "") -> Tensor:
        return torch.tensor([energy(variance, slip) for variance in variances.tolist()]).double()

    mistakes = {
        "the sum over the kept components is missing": all_of("gain"),
        "components below the threshold have no share in the last sum": all_of("threshold"),
        "the formula gives 2F": 2 * all_of(),
    }
    agree("free_energy(...)", torch.from_numpy(found), all_of(), mistakes)


def noise_has_rank_zero(evbmf: Callable[[Tensor], Any], trials: int, seed: int) -> None:
    """Nothing stands out of noise; of small matrices one in a hundred does by chance, so these are larger."""
    generator = torch.Generator().manual_seed(seed)
    for trial in range(trials):
        rows, columns = (int(torch.randint(low, 4 * low, (), generator=generator)) for low in (30, 60))
        found = evbmf(drawn(rows, columns, seed=seed + trial))
        assert found.rank == 0, f"the rank of {rows} x {columns} numbers of pure noise is {found.rank}, not 0"


def planted_rank_is_found(
    evbmf: Callable[[Tensor], Any], rows: int, columns: int, rank: int, noise: float, seed: int
) -> None:
    """Rank and noise variance are found; the threshold lies between the last component and the noise."""
    found = evbmf(planted_matrix(rows, columns, rank, noise, seed))
    case = f"{rows} x {columns}, rank {rank}, noise {noise}"
    why = ""
    if abs(found.rank - rank) == 1:
        why = ": off by one; count the singular values above the threshold"
    assert found.rank == rank, f"{case}: the rank is {found.rank}{why}"
    variance = found.noise_variance
    hint = " (this is the standard deviation)" if abs(variance / noise - 1) < 0.1 and noise != 1 else ""
    assert abs(variance / noise**2 - 1) < 0.1, f"{case}: the noise variance is {variance:.4g}, not {noise**2:.4g}{hint}"
    values = found.singular_values
    assert values[rank - 1] > found.threshold > values[rank], (
        f"{case}: the threshold {found.threshold:.4g} is not between singular values {rank} and {rank + 1}, "
        f"{values[rank - 1]:.4g} and {values[rank]:.4g}"
    )


def scale_changes_the_variance_only(evbmf: Callable[[Tensor], Any], scale: float) -> None:
    """A matrix in other units has the same rank, and its noise variance in the square of these units."""
    matrix = planted_matrix(48, 300, 9, 0.8, seed=0)
    found, scaled = evbmf(matrix), evbmf(matrix * scale)
    assert found.rank == scaled.rank == 9, f"times {scale}, the rank is {scaled.rank}; without, {found.rank}; planted 9"
    relative = scaled.noise_variance / (found.noise_variance * scale**2)
    assert abs(relative - 1) < 1e-5, f"times {scale}, the noise variance is {relative:.4g} times what it should be"


def exact_rank_has_no_noise(evbmf: Callable[[Tensor], Any], rows: int, columns: int, rank: int) -> None:
    """Of a product without noise all singular values that are not 0 are signal."""
    found = evbmf(planted_matrix(rows, columns, rank, 0.0, seed=0))
    assert found.rank == rank, f"{rows} x {columns}, rank {rank}, no noise: the rank is {found.rank}"
    assert found.noise_variance == 0, f"without noise the variance is {found.noise_variance}, not 0"


def factors_are_those_of_hosvd(hosvd: Decompose, kernel: Tensor, ranks: tuple[int, int]) -> None:
    """Shapes, orthonormal factors, and the error of projecting on the leading singular vectors of both unfoldings."""
    r3, r4 = ranks
    outputs, inputs, height, width = kernel.shape
    found = hosvd(kernel, ranks)
    assert isinstance(found, tuple | list) and len(found) == 3, "hosvd should give three tensors: core, U4, U3"
    core, u4, u3 = found
    shapes = {"U4": (u4, (outputs, r4)), "U3": (u3, (inputs, r3)), "the core": (core, (r4, r3, height, width))}
    exchanged = r3 != r4 and (tuple(u4.shape), tuple(u3.shape)) == ((outputs, r3), (inputs, r4))
    assert not exchanged, f"U4 has {r3} columns and U3 {r4} for the ranks {ranks}: these are (R3, R4), input side first"
    for name, (tensor, shape) in shapes.items():
        assert tuple(tensor.shape) == shape, f"{name} has shape {tuple(tensor.shape)}; expected {shape}"
    for name, factor in (("U4", u4), ("U3", u3)):
        agree(
            f"{name}^T {name}, whose columns are orthonormal,", factor.T @ factor, torch.eye(factor.shape[1]), atol=1e-8
        )
    lost = float((kernel - rebuilt(core, u4, u3)).norm())
    expected = hosvd_error(kernel.numpy(), ranks)
    assert lost <= expected * (1 + 1e-6) + 1e-9, (
        f"the factors leave an error of {lost:.4g}, the leading singular vectors {expected:.4g}: do U4 and U3 come "
        "from their own unfoldings, largest singular values first, and is the core the kernel multiplied by both?"
    )


def planted_kernel_is_exact(decompose: Decompose, outputs: int, inputs: int, ranks: tuple[int, int], seed: int) -> None:
    """A kernel that has these ranks is rebuilt from its factors."""
    kernel = planted_kernel(outputs, inputs, 3, ranks, 0.0, seed)
    core, u4, u3 = decompose(kernel, ranks)
    agree(f"the kernel of ranks {ranks} rebuilt from core, U4 and U3", rebuilt(core, u4, u3), kernel, atol=1e-6)


def turns_improve(decompose: Decompose, kernel: Tensor, ranks: tuple[int, int]) -> None:
    """The error is not above that of HOSVD, and as good as many turns with full decompositions, where turns help."""
    core, u4, u3 = decompose(kernel, ranks)
    found, start = float((kernel - rebuilt(core, u4, u3)).norm()), hosvd_error(kernel.numpy(), ranks)
    assert found <= start + 1e-9, f"ranks {ranks}: the error is {found:.5g}, HOSVD alone has {start:.5g}"
    pixels = kernel[0, 0].numel()
    if max(ranks) <= pixels * min(ranks):
        best = hooi_error(kernel.numpy(), ranks)
        assert found <= best * 1.002, f"ranks {ranks}: the error is {found:.5g}, turns reach {best:.5g}"


def hosvd_error(kernel: Floats, ranks: tuple[int, int]) -> float:
    """The slow way without turns: project on the leading singular vectors of the two unfoldings."""
    u3, u4 = _leading(kernel, ranks)
    projected = np.einsum("tsij,ta,ua,sb,vb->uvij", kernel, u4, u4, u3, u3, optimize=True)
    return float(np.linalg.norm(kernel - projected))


def hooi_error(kernel: Floats, ranks: tuple[int, int], turns: int = 200) -> float:
    """The slow way with turns: each factor from the full decomposition of the kernel projected by the other."""
    u3, u4 = _leading(kernel, ranks)
    for _ in range(turns):
        u4 = _left(np.einsum("tsij,sb->tbij", kernel, u3).reshape(len(kernel), -1), ranks[1])
        u3 = _left(np.einsum("tsij,ta->saij", kernel, u4).reshape(kernel.shape[1], -1), ranks[0])
    core = np.einsum("tsij,ta,sb->abij", kernel, u4, u3)
    return float(np.sqrt(np.linalg.norm(kernel) ** 2 - np.linalg.norm(core) ** 2))


def chain_is_the_rebuilt_convolution(
    chain_of: Callable[[nn.Conv2d, Tensor, Tensor, Tensor], nn.Module], seed: int, bias: bool = True, **options: int
) -> None:
    """Three layers compute what the convolution with the rebuilt kernel does, with its stride, padding and bias.

    Args:
        options: of the convolution, such as ``stride=2``.
    """
    ranks, kernel_size = (2, 4), 3
    factors = drawn(4, 2, kernel_size, kernel_size, seed=seed), drawn(7, 4, seed=seed + 1), drawn(5, 2, seed=seed + 2)
    conv = nn.Conv2d(5, 7, kernel_size, bias=bias, **options).double()  # type: ignore[arg-type]
    conv.weight.data = rebuilt(*factors)
    if conv.bias is not None:
        conv.bias.data = drawn(7, seed=seed + 3)
    chain = chain_of(conv, *factors)
    assert isinstance(chain, nn.Module), f"the chain is {type(chain).__name__}: is there a return?"
    layers = dict(chain.named_children())
    assert list(layers) == ["first", "core", "last"], (
        f"the layers are called {', '.join(layers)}; expected first, core, last"
    )
    shapes = {"first": (ranks[0], 5, 1, 1), "core": (4, 2, 3, 3), "last": (7, 4, 1, 1)}
    for name, layer in layers.items():
        assert isinstance(layer, nn.Conv2d), f"layer {name} is {type(layer).__name__}; all three are convolutions"
        shape = tuple(layer.weight.shape)
        assert shape == shapes[name], f"the weight of {name} has shape {shape}; expected {shapes[name]}"
        assert name == "last" or layer.bias is None, (
            f"layer {name} has a bias; the bias belongs to the last layer alone"
        )
    with torch.no_grad():
        x = drawn(2, 5, 9, 8, seed=seed + 4)
        right, found = conv(x), chain(x)
        same_map = found.shape == right.shape
        mistakes = {"the bias is missing": right - conv.bias[:, None, None]} if conv.bias is not None else {}
    asked = ", ".join(f"{name} {value}" for name, value in options.items()) or "stride 1, no padding"
    assert same_map, (
        f"the chain's output has shape {tuple(found.shape)}, the convolution's {tuple(right.shape)} ({asked}): stride, "
        "padding and dilation belong to the core alone"
    )
    agree(f"the output of the chain ({asked})", found, right, mistakes)


def factor_weights_are_counted(
    factor_weights: Callable[[tuple[int, ...], int, tuple[int, ...]], int],
    shape: tuple[int, int, int, int],
    groups: int,
) -> None:
    """The weights of three layers, or two with one rank, as PyTorch counts them."""
    outputs, inputs, height, width = shape
    for ranks in ((2, 3), (1, 1), (4,)):
        last = nn.Conv2d(ranks[-1] * groups, outputs, 1, groups=groups)
        middle = nn.Conv2d(
            (ranks[0] if len(ranks) == 2 else inputs) * groups, ranks[-1] * groups, (height, width), groups=groups
        )
        layers = [middle, last]
        if len(ranks) == 2:
            layers.append(nn.Conv2d(inputs * groups, ranks[0] * groups, 1, groups=groups))
        right = sum(layer.weight.numel() for layer in layers)
        found = factor_weights(shape, groups, ranks)
        assert found == right, f"factor_weights({shape}, {groups}, {ranks}) is {found}; the layers have {right} weights"


def _x(t: float, a: float) -> float:
    return (1 + t) * (1 + a / t)


def _leading(kernel: Floats, ranks: tuple[int, int]) -> tuple[Floats, Floats]:
    columns = kernel.transpose(1, 0, 2, 3).reshape(kernel.shape[1], -1)
    return _left(columns, ranks[0]), _left(kernel.reshape(len(kernel), -1), ranks[1])


def _left(matrix: Floats, rank: int) -> Floats:
    return np.linalg.svd(matrix, full_matrices=False)[0][:, :rank]
