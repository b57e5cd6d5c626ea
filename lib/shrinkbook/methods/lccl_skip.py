"""Skip what a low-cost collaborative layer closes (Dong et al. 2017): gather the open positions, multiply, scatter.

A convolution is a product of im2col rows, one for each output position with the k k C numbers under the kernel, and a
matrix (k k C, T). Where one gate map serves all outputs, whole rows drop out and one dense product (GEMM) of the others
remains; where each output has its own map, only products of a row and a column (GEMV) do. Rows are NHWC patches, made
block by block in the cache. Gathering and scattering use one thread, the dense product as many as PyTorch.
"""

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from shrinkbook.methods.lccl import LCCL, LCCLConv2d, gates, plain_conv

BLOCK = 256  # rows of a dense product: of 9 * 64 numbers each, 0.6 MB of the second-level cache
COLUMN_BLOCK = 64  # rows that each output picks from, with the weights in the same cache

Array = NDArray[Any]


class Im2colConv(nn.Module):
    """A convolution as a product of im2col rows, all of them (the paper's dense baseline) or the open ones.

    For inference on the CPU. Holds a copy of the weights as they are now.

    Args:
        conv: without groups or dilation, padded with a number of zeros, in float32 or float64.
        name: for messages.

    Raises:
        ValueError: another convolution.

    Attributes:
        positions: outputs kept in the last call, of N H' W' or, with a gate for each output, of N H' W' T.
        multiplications: of the last call, counted where they are done: k k C T or k k C for each position.
    """

    matrix: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, name: str = "convolution") -> None:
        super().__init__()
        weight = plain_conv(name, conv).weight.detach()
        if weight.dtype not in (torch.float32, torch.float64) or weight.device.type != "cpu":
            raise ValueError(f"layer {name}: weights are {weight.dtype} on {weight.device}; give float32 on the CPU")
        self.register_buffer("matrix", weight.permute(0, 2, 3, 1).flatten(1).clone())  # (T, k k C)
        self.register_buffer("bias", weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach().clone())
        self.channels, self.name = conv.in_channels, name
        self.window = _window(conv)
        self.positions = self.multiplications = 0

    @torch.no_grad()
    def forward(self, x: Tensor, gate: Tensor | None = None, relu: bool = False, hard: bool = False) -> Tensor:
        """(N, C, H, W) -> (N, T, H', W') in channels-last layout.

        Args:
            gate: M, (N, 1 or T, H', W'), multiplied with the output, which is computed where M is not 0.
            relu: of the response, before the product.
            hard: multiply with 1 where M is not 0.

        Raises:
            ValueError: an input or a gate of another shape, type or device, a gate that is not finite.
        """
        pixels, size = self._pixels(x)
        if gate is None:
            positions = np.arange(size[0] * size[1] * size[2])
            return self._rows(pixels, size, positions, np.ones(len(positions), pixels.dtype), relu)
        if gate.dtype != x.dtype or tuple(gate.shape) not in {(size[0], maps, *size[1:]) for maps in (1, self.outputs)}:
            raise ValueError(
                f"layer {self.name}: the gate is {gate.dtype} {tuple(gate.shape)}; give {x.dtype} "
                f"({size[0]}, 1 or {self.outputs}, {size[1]}, {size[2]})"
            )
        values = gate.detach().permute(0, 2, 3, 1).reshape(-1, gate.shape[1]).contiguous().numpy()
        if not np.isfinite(values).all():
            raise _not_finite(self.name)
        if hard:
            values = (values != 0).astype(values.dtype)
        if gate.shape[1] > 1:
            return self._columns(pixels, size, values, relu)
        positions = np.flatnonzero(values)
        return self._rows(pixels, size, positions, values[positions, 0], relu)

    @property
    def outputs(self) -> int:
        """T."""
        return len(self.matrix)

    def _pixels(self, x: Tensor) -> tuple[Array, tuple[int, int, int]]:
        """The input as (N, H, W, C), and images, height and width of the output."""
        if x.ndim != 4 or x.shape[1] != self.channels or x.dtype != self.matrix.dtype or not x.device.type == "cpu":
            raise ValueError(
                f"layer {self.name}: the input is {x.dtype} {tuple(x.shape)} on {x.device}; give {self.matrix.dtype} "
                f"(N, {self.channels}, H, W) on the CPU"
            )
        pixels = x.detach().permute(0, 2, 3, 1).contiguous().numpy()
        size = _output_size(pixels.shape, self.window)
        if min(size[1:]) < 1:
            raise ValueError(
                f"layer {self.name}: maps of {tuple(x.shape[2:])} are smaller than the kernel; give larger images"
            )
        return pixels, size

    def _rows(
        self, pixels: Array, size: tuple[int, int, int], positions: NDArray[np.int64], gate: Array, relu: bool
    ) -> Tensor:
        """One gate (P,) for all outputs at these positions (P,), numbered in the order (image, row, column)."""
        from shrinkbook.methods.lccl_kernels import gather, scatter  # here: numba takes long to import

        matrix, bias = self.matrix, self.bias.numpy()
        output = matrix.new_zeros(*size, self.outputs)
        patches = matrix.new_empty(min(BLOCK, len(positions)), matrix.shape[1])
        product = matrix.new_empty(len(patches), self.outputs)
        rows, products, flat = patches.numpy(), product.numpy(), output.view(-1, self.outputs).numpy()
        multiplications = 0
        for first in range(0, len(positions), BLOCK):
            part = positions[first : first + BLOCK]
            count = len(part)
            gather(pixels, part, rows, size[1], size[2], *self.window)
            torch.mm(patches[:count], matrix.T, out=product[:count])
            multiplications += patches[:count].numel() * len(matrix)
            scatter(products, bias, gate[first : first + BLOCK], part, relu, flat)
        self.positions, self.multiplications = len(positions), multiplications
        return output.permute(0, 3, 1, 2)

    def _columns(self, pixels: Array, size: tuple[int, int, int], gate: Array, relu: bool) -> Tensor:
        """A gate for each output, (N H' W', T)."""
        from shrinkbook.methods.lccl_kernels import dot, gather  # here: numba takes long to import

        matrix, bias = self.matrix.numpy(), self.bias.numpy()
        output = self.matrix.new_zeros(*size, self.outputs)
        rows, flat = np.empty((COLUMN_BLOCK, matrix.shape[1]), matrix.dtype), output.view(-1, self.outputs).numpy()
        positions = np.flatnonzero(gate.any(1))
        products = 0
        for first in range(0, len(positions), COLUMN_BLOCK):
            part = positions[first : first + COLUMN_BLOCK]
            gather(pixels, part, rows, size[1], size[2], *self.window)
            products += dot(rows, matrix, bias, gate, part, relu, flat)
        self.positions, self.multiplications = products, products * matrix.shape[1]
        return output.permute(0, 3, 1, 2)


class WholeIm2colConv(nn.Module):
    """The dense convolution with all im2col rows copied at once, in PyTorch's own operations, as no block can save.

    Less to start and more memory to fill than :class:`Im2colConv`: faster on small maps. The faster of the two is what
    skipping has to beat. For inference; holds a copy of the weights as they are now.

    Args, Raises: as :class:`Im2colConv`.
    """

    matrix: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, name: str = "convolution") -> None:
        super().__init__()
        blocks = Im2colConv(conv, name)
        self.register_buffer("matrix", blocks.matrix)
        self.register_buffer("bias", blocks.bias)
        self.window, self.biased = blocks.window, conv.bias is not None

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, T, H', W') in channels-last layout."""
        rows = im2col(x, self.window)
        product = rows.reshape(-1, self.matrix.shape[1]) @ self.matrix.T
        if self.biased:
            product += self.bias
        return product.view(*rows.shape[:3], -1).permute(0, 3, 1, 2)


class SkippingConv(nn.Module):
    """The output of a gated convolution, up to rounding: the gate first, then the convolution where it is open.

    For inference on the CPU; :func:`skipping` puts it into a network. Holds a copy of the layer as it is now, its
    batch norm in evaluation mode. A gate within rounding of 0 may fall on the other side.

    Attributes:
        main: counts what it did in the last call, see :class:`Im2colConv`.

    Raises:
        ValueError: when called: as :class:`Im2colConv`.
    """

    def __init__(self, layer: LCCLConv2d) -> None:
        super().__init__()
        self.main = Im2colConv(layer.main, layer.name)
        self.gate = copy.deepcopy(layer.gate).eval().requires_grad_(False)
        self.hard, self.relu = layer.hard, layer.relu
        self.shared = _SharedGate(self.gate) if self.gate.grid == 1 and self.gate.conv.out_channels == 1 else None

    def train(self, mode: bool = True) -> "SkippingConv":
        """The gate's batch norm stays in evaluation mode."""
        super().train(mode)
        self.gate.eval()
        return self

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        if self.shared is None:
            return self.main(x, self.gate(x), self.relu, self.hard)
        pixels, size = self.main._pixels(x)
        if self.shared.weight.dtype != pixels.dtype:  # the network was converted since
            self.shared = _SharedGate(self.gate)
        positions, values = self.shared.open(pixels, size, self.main.name)
        if self.hard:
            values = np.ones_like(values)
        return self.main._rows(pixels, size, positions, values, self.relu)


class _SharedGate:
    """A gate of one map as one pass over NHWC pixels that keeps the open positions only.

    A convolution with one output wastes most of a library's vector width; this takes a half to a quarter of its time.
    """

    def __init__(self, gate: LCCL) -> None:
        self.weight = gate.conv.weight[0].detach().permute(1, 2, 0).contiguous().numpy()
        scale, shift = self.weight.dtype.type(1), self.weight.dtype.type(0)
        if isinstance(norm := gate.norm, nn.BatchNorm2d):
            assert norm.running_mean is not None and norm.running_var is not None
            factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            scale, shift = factor.numpy()[0], (norm.bias - norm.running_mean * factor).numpy()[0]
        self.affine = scale, shift
        self.window = _window(gate.conv)

    def open(self, pixels: Array, size: tuple[int, int, int], name: str) -> tuple[NDArray[np.int64], Array]:
        """The positions where the gate is above 0, and its values there."""
        from shrinkbook.methods.lccl_kernels import open_positions  # here: numba takes long to import

        if _output_size(pixels.shape, self.window) != size:
            raise ValueError(
                f"layer {name}: the gate's map is {_output_size(pixels.shape, self.window)[1:]}, the "
                f"convolution's {size[1:]}; make it by LCCL(main)"
            )
        count = size[0] * size[1] * size[2]
        positions, values = np.empty(count, np.int64), np.empty(count, pixels.dtype)
        kept = open_positions(pixels, self.weight, *self.affine, positions, values, *size[1:], *self.window[2:])
        if kept < 0:
            raise _not_finite(name)
        return positions[:kept], values[:kept]


def skipping(model: nn.Module) -> nn.Module:
    """A copy of a network in evaluation mode whose gated convolutions skip.

    Raises:
        ValueError: it has none.
    """
    twin = copy.deepcopy(model).eval()
    if isinstance(twin, LCCLConv2d):
        return SkippingConv(twin)
    found = gates(twin)
    if not found:
        raise ValueError(f"{type(model).__name__} has no gates; add_lccl makes them")
    for path in found:
        layer = twin.get_submodule(path)
        assert isinstance(layer, LCCLConv2d)
        twin.set_submodule(path, SkippingConv(layer))
    return twin


def skip_indexed(x: Tensor, conv: nn.Conv2d, gate: Tensor, relu: bool = False) -> Tensor:
    """The convolution times a gate, computed at open positions only, in PyTorch's own indexing, on any device.

    Shorter than :class:`Im2colConv` and slower.

    Args:
        x: (N, C, H, W).
        gate: M, (N, 1 or T, H', W'); 0 is closed.
        relu: of the response, before the product.

    Returns:
        (N, T, H', W'), 0 at closed positions.
    """
    patches, outputs = im2col(x, _window(conv)), conv.out_channels
    matrix = conv.weight.permute(0, 2, 3, 1).flatten(1)
    bias = matrix.new_zeros(outputs) if conv.bias is None else conv.bias
    output = matrix.new_zeros(*patches.shape[:3], outputs)
    columns = [slice(None)] if gate.shape[1] == 1 else [slice(t, t + 1) for t in range(outputs)]
    for number, column in enumerate(columns):
        values = gate[:, number]
        kept = values != 0
        response = patches[kept].flatten(1) @ matrix[column].T + bias[column]
        output[..., column][kept] = (F.relu(response) if relu else response) * values[kept][:, None]
    return output.permute(0, 3, 1, 2)


def im2col(x: Tensor, window: tuple[int, ...]) -> Tensor:
    """What lies under the kernel at each output position, (N, H', W', k, k, C), a view of the padded input.

    Args:
        x: (N, C, H, W).
        window: kernel, stride and padding, each in rows and columns.
    """
    kh, kw, sh, sw, ph, pw = window
    pixels = F.pad(x.permute(0, 2, 3, 1), (0, 0, pw, pw, ph, ph))
    return pixels.unfold(1, kh, sh).unfold(2, kw, sw).permute(0, 1, 2, 4, 5, 3)


def _window(conv: nn.Conv2d) -> tuple[int, ...]:
    """Kernel, stride and padding, each in rows and columns."""
    assert not isinstance(conv.padding, str)
    return (*conv.kernel_size, *conv.stride, *conv.padding)


def _output_size(pixels: tuple[int, ...], window: tuple[int, ...]) -> tuple[int, int, int]:
    kh, kw, sh, sw, ph, pw = window
    return pixels[0], (pixels[1] + 2 * ph - kh) // sh + 1, (pixels[2] + 2 * pw - kw) // sw + 1


def _not_finite(name: str) -> ValueError:
    return ValueError(f"layer {name}: the gate holds NaN or infinity; go back to a state before it diverged")
