"""One layer in low-rank form (Kim et al. 2016, sections 3.1, 3.3): the factors of a kernel, the layers they make.

A kernel is stored as PyTorch stores it, (T out, S in, height, width). Ranks are R3 for the input side, R4 for the
output side, always written (R3, R4). Factors are computed in double precision; nothing here changes a given layer.
"""

import math
from collections import OrderedDict
from typing import TypeVar

import torch
from torch import Tensor, nn

Size = tuple[int, ...]
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)

HOOI_LARGEST = 1024  # channels up to which the factors are improved in turns; beyond, one turn takes minutes


def input_unfolding(weight: Tensor) -> Tensor:
    """The mode-3 matricisation, (S, height width T); R3 is its rank."""
    return weight.transpose(0, 1).flatten(1)


def output_unfolding(weight: Tensor) -> Tensor:
    """The mode-4 matricisation, (T, height width S); R4 is its rank."""
    return weight.flatten(1)


def leading_vectors(matrix: Tensor, rank: int) -> Tensor:
    """The ``rank`` leading left singular vectors, (rows, rank), orthonormal, through the Gram matrix of the rows."""
    return torch.linalg.eigh(matrix @ matrix.T).eigenvectors.flip(1)[:, :rank].contiguous()


def hosvd(kernel: Tensor, ranks: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Tucker-2 in one go: the leading singular vectors of the two unfoldings, and the kernel seen from them.

    C(r4, r3, i, j) = sum_{t, s} K(t, s, i, j) U4(t, r4) U3(s, r3), the best core for these orthonormal factors.

    Args:
        kernel: (T, S, height, width).
        ranks: (R3, R4).

    Returns:
        core (R4, R3, height, width), U4 (T, R4), U3 (S, R3).
    """
    r3, r4 = ranks
    u4 = leading_vectors(output_unfolding(kernel), r4)
    u3 = leading_vectors(input_unfolding(kernel), r3)
    return torch.einsum("tsij,ta,sb->abij", kernel, u4, u3), u4, u3


def tucker2(weight: Tensor, ranks: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Tucker-2: K(t, s, i, j) = sum_{r4, r3} C(r4, r3, i, j) U4(t, r4) U3(s, r3), least squares in the weights.

    The factors start as :func:`hosvd` and are improved in turns (HOOI) where that can help: not if a rank is full or
    exceeds what the other leaves, and not beyond ``HOOI_LARGEST``.

    Returns:
        core (R4, R3, height, width), U4 (T, R4), U3 (S, R3), in double precision.
    """
    kernel = weight.detach().double()
    core, u4, u3 = hosvd(kernel, ranks)
    r3, r4 = ranks
    outputs, inputs, pixels = kernel.shape[0], kernel.shape[1], kernel[0, 0].numel()
    settled = r3 == inputs or r4 == outputs or r3 > pixels * r4 or r4 > pixels * r3
    if settled or max(outputs, inputs) > HOOI_LARGEST or kernel.is_meta:
        return core, u4, u3
    import tensorly  # here: with scipy behind it, it takes long to import
    from tensorly.decomposition import partial_tucker

    with tensorly.backend_context("pytorch"):
        (core, (u4, u3)), _ = partial_tucker(kernel, rank=[r4, r3], modes=[0, 1], init=[u4, u3], n_iter_max=50)
    return core, u4, u3


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best rank-r product U B of a matrix: U (rows, rank) orthonormal, B (rank, columns), in double precision.

    Tucker-1 of a kernel is the same on its output unfolding (section 3.3).
    """
    matrix = matrix.detach().double()
    if matrix.shape[0] > matrix.shape[1]:
        v = leading_vectors(matrix.T, rank)
        return matrix @ v, v.T
    u = leading_vectors(matrix, rank)
    return u, u.T @ matrix


def factor_weights(kernel_shape: Size, groups: int, ranks: Size) -> int:
    """Weights of the factors: S R3 + D^2 R3 R4 + T R4 for Tucker-2, D^2 S R4 + T R4 with one rank, for each group."""
    outputs, inputs, pixels = kernel_shape[0] // groups, kernel_shape[1], math.prod(kernel_shape[2:])
    if len(ranks) == 1:
        return groups * ranks[0] * (pixels * inputs + outputs)
    r3, r4 = ranks
    return groups * (inputs * r3 + pixels * r3 * r4 + outputs * r4)


def full_ranks(kernel_shape: Size, groups: int, count: int) -> Size:
    """The largest ranks that make sense: (S, T) for two, min(T, D^2 S) for one, within a group."""
    outputs, inputs, pixels = kernel_shape[0] // groups, kernel_shape[1], math.prod(kernel_shape[2:])
    return (inputs, outputs) if count == 2 else (min(outputs, pixels * inputs),)


def kernel_of(module: nn.Module, maps: Size | None = None) -> Tensor:
    """The weights of a convolution or linear layer as a kernel (T, S / groups, height, width).

    Args:
        maps: (channels, height, width) that a linear layer reads; without it, a linear layer is a 1x1 convolution.
    """
    assert isinstance(module.weight, Tensor)
    weight = module.weight.detach()
    return weight if isinstance(module, nn.Conv2d) else weight.view(len(weight), *(maps or (-1, 1, 1)))


def decompose(module: nn.Module, ranks: Size, maps: Size | None = None) -> tuple[nn.Sequential, float | None]:
    """The low-rank chain that replaces a layer, and the relative error of its weights, ||K - K'|| / ||K||.

    Args:
        module: a convolution or a linear layer.
        ranks: (R3, R4) or one rank, for each group, in range.
        maps: what a linear layer with two ranks reads.
    """
    if isinstance(module, nn.Conv2d):
        return low_rank_conv(module, ranks)
    assert isinstance(module, nn.Linear)
    if len(ranks) == 1:
        return low_rank_linear(module, ranks[0])
    assert maps is not None
    return tucker_linear(module, maps, (ranks[0], ranks[1]))


def low_rank_conv(conv: nn.Conv2d, ranks: Size) -> tuple[nn.Sequential, float | None]:
    """A convolution as a chain of smaller ones without non-linearity between them, group by group.

    With two ranks Tucker-2: ``first`` 1x1 S -> R3 at the input's resolution, ``core`` R3 -> R4 with the kernel, stride,
    padding and dilation of the original, ``last`` 1x1 R4 -> T with its bias. With one rank, ``core`` S -> R4 and
    ``last`` R4 -> T; if the kernel is 1x1, that is the singular value decomposition.

    Args:
        ranks: (R3, R4) or (R4,), per group.

    Returns:
        The chain, and the relative error of the weights, ||K - K'|| / ||K||.
    """
    groups = conv.groups
    cores, lasts, firsts, errors = [], [], [], []
    for kernel in conv.weight.detach().double().chunk(groups):
        if len(ranks) == 2:
            core, u4, u3 = tucker2(kernel, (ranks[0], ranks[1]))
            rebuilt = torch.einsum("abij,ta,sb->tsij", core, u4, u3)
            firsts.append(u3)
        else:
            u4, flat = truncated_svd(output_unfolding(kernel), ranks[0])
            core = flat.view(-1, *kernel.shape[1:])
            rebuilt = (u4 @ flat).view_as(kernel)
        cores.append(core)
        lasts.append(u4)
        errors.append((kernel - rebuilt).square().sum())
    chain = conv_chain(conv, torch.cat(cores), torch.cat(lasts), torch.cat(firsts, dim=1) if firsts else None)
    return chain, _relative(torch.stack(errors).sum(), conv.weight)


def conv_chain(conv: nn.Conv2d, core: Tensor, u4: Tensor, u3: Tensor | None = None) -> nn.Sequential:
    """The factors of a convolution as layers ``first`` (only with U3), ``core`` and ``last``, in the order they run.

    ``core`` has the stride, padding and dilation of the convolution, ``last`` its bias.

    Args:
        conv: what the chain replaces.
        core: (R4, R3 or S, height, width).
        u4: (T, R4).
        u3: (S, R3). With groups, core and U4 are those of the groups one below the other, U3 side by side.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if u3 is not None:
        layers["first"] = _conv(u3.T[:, :, None, None], conv.groups, conv.weight)
    layers["core"] = _conv(core, conv.groups, conv.weight, shape_of=conv)
    layers["last"] = _conv(u4[:, :, None, None], conv.groups, conv.weight, conv.bias)
    return nn.Sequential(layers)


def low_rank_linear(linear: nn.Linear, rank: int) -> tuple[nn.Sequential, float | None]:
    """A linear layer as two: ``first`` inputs -> R without bias, ``last`` R -> outputs with the bias.

    Returns:
        As :func:`low_rank_conv`.
    """
    u, b = truncated_svd(linear.weight, rank)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        first=_linear(b, linear.weight), last=_linear(u, linear.weight, linear.bias)
    )
    error = (linear.weight.detach().double() - u @ b).square().sum()
    return nn.Sequential(layers), _relative(error, linear.weight)


def tucker_linear(linear: nn.Linear, maps: Size, ranks: tuple[int, int]) -> tuple[nn.Sequential, float | None]:
    """A linear layer behind a flatten as a convolution over the whole map, in Tucker-2 form (AlexNet's fc6).

    Args:
        maps: (channels, height, width) before the flatten.
        ranks: (R3, R4) of the kernel (outputs, channels, height, width).

    Returns:
        ``maps`` (unflatten), ``first`` 1x1, ``core`` height x width, ``flatten``, ``last``; error as above.
    """
    kernel = linear.weight.detach().double().view(-1, *maps)
    core, u4, u3 = tucker2(kernel, ranks)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        maps=nn.Unflatten(1, maps),
        first=_conv(u3.T[:, :, None, None], 1, linear.weight),
        core=_conv(core, 1, linear.weight),
        flatten=nn.Flatten(1),
        last=_linear(u4, linear.weight, linear.bias),
    )
    rebuilt = torch.einsum("abij,ta,sb->tsij", core, u4, u3)
    return nn.Sequential(layers), _relative((kernel - rebuilt).square().sum(), linear.weight)


def _relative(squared_error: Tensor, weight: Tensor) -> float | None:
    if weight.is_meta:
        return None
    norm = weight.detach().double().norm()
    return float(squared_error.sqrt() / norm) if norm else 0.0


def _conv(
    kernel: Tensor, groups: int, like: Tensor, bias: Tensor | None = None, shape_of: nn.Conv2d | None = None
) -> nn.Conv2d:
    """A convolution with these weights, in the type, place and trainability of ``like``."""
    kept = {} if shape_of is None else {k: getattr(shape_of, k) for k in ("stride", "padding", "dilation")}
    conv = nn.Conv2d(
        kernel.shape[1] * groups,
        kernel.shape[0],
        (kernel.shape[2], kernel.shape[3]),
        groups=groups,
        bias=bias is not None,
        padding_mode="zeros" if shape_of is None else shape_of.padding_mode,
        device="meta",
        **kept,
    )
    return _filled(conv, kernel, like, bias)


def _linear(matrix: Tensor, like: Tensor, bias: Tensor | None = None) -> nn.Linear:
    linear = nn.Linear(matrix.shape[1], matrix.shape[0], bias=bias is not None, device="meta")
    return _filled(linear, matrix, like, bias)


def _filled(layer: Layer, weight: Tensor, like: Tensor, bias: Tensor | None) -> Layer:
    layer.weight = nn.Parameter(weight.to(like.dtype).contiguous(), requires_grad=like.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return layer
