"""Computing with shared kernels (Son et al. 2018): convolve once for each centroid instead of once for each kernel.

Output j of a clustered layer is y_j = sum_i s_ij (mu_{l_ij} * x_i). Two orders take fewer convolutions of single maps
than the S T of the dense layer; both add S T scaled maps instead:

- add-then-conv sums the inputs that share a centroid first, y_j = sum_n mu_n * (sum_{i: l_ij = n} s_ij x_i);
- conv-then-add convolves each input once with each of its centroids, z_in = mu_n * x_i, y_j = sum_i s_ij z_{i, l_ij}.

A transformed centroid counts as a kernel of its own; a pruned kernel costs nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shrinkbook.measure.cost import cost
from shrinkbook.methods.clustered_layers import ClusteredConv2d, clustered_layers

BLOCK = 2**18  # numbers of intermediate maps held at a time, so that they stay in the cache


@dataclass(frozen=True)
class Counts:
    """Convolutions of single maps that one layer needs.

    Args:
        per_output: v_j (T,), distinct centroids among the kernels of an output; add-then-conv takes their sum.
        per_input: lambda_i (S,), distinct centroids among the kernels of an input; conv-then-add takes their sum.
        dense: one for each kernel, S T without groups, pruned or not.
    """

    per_output: Tensor
    per_input: Tensor
    dense: int

    @property
    def add_then_conv(self) -> int:
        """sum_j v_j."""
        return int(self.per_output.sum())

    @property
    def conv_then_add(self) -> int:
        """sum_i lambda_i."""
        return int(self.per_input.sum())

    @property
    def shared(self) -> int:
        """The smaller of both, by which the paper counts."""
        return min(self.add_then_conv, self.conv_then_add)


def counts(layer: ClusteredConv2d) -> Counts:
    """Count the distinct centroids of a layer by output and by input."""
    kept = _kept_kernels(layer)
    effective = len(layer.codebook.centroids) * layer.codebook.transforms

    def distinct(maps: Tensor, channels: int) -> Tensor:
        used = torch.zeros(channels, effective, dtype=torch.bool, device=maps.device)
        used[maps, kept.codes] = True
        return used.sum(1)

    per_output, per_input = distinct(kept.outputs, layer.out_channels), distinct(kept.inputs, layer.in_channels)
    return Counts(per_output, per_input, layer.index.numel())


class AddThenConv(nn.Module):
    """A clustered layer in the order add, then convolve: same outputs up to rounding, sum_j v_j convolutions.

    Holds a copy of the layer's numbers as they are now; for use, not for training.

    Args:
        layer: (N, S, H, W) -> (N, T, H', W').
    """

    inputs: Tensor
    scales: Tensor | None
    members: Tensor
    kernels: Tensor
    pairs: Tensor

    def __init__(self, layer: ClusteredConv2d) -> None:
        super().__init__()
        self.geometry = _Geometry(layer)
        kept = _kept_kernels(layer)
        count = int(kept.codes.max()) + 1 if len(kept.codes) else 1
        keys, order = torch.sort(kept.outputs * count + kept.codes, stable=True)
        pairs, members = torch.unique_consecutive(keys, return_counts=True)  # distinct (j, n) in this order
        self.register_buffer("inputs", kept.inputs[order])
        self.register_buffer("scales", None if kept.scales is None else kept.scales[order])
        self.register_buffer("members", _starts(members))
        self.register_buffer("kernels", layer.codebook.effective().detach()[pairs % count][:, None])
        self.register_buffer("pairs", _starts(torch.bincount(pairs // count, minlength=layer.out_channels)))
        self.pair_bounds = self.pairs.tolist()
        self.member_bounds = self.members.tolist()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.geometry.each_image(x, self._image)

    def _image(self, x: Tensor) -> Tensor:
        flat, outputs, sums = x.flatten(1), len(self.pairs) - 1, []
        step = max(1, BLOCK * outputs // max(1, len(self.kernels) * flat.shape[1]))
        for start in range(0, outputs, step):
            stop = min(start + step, outputs)
            first, last = self.pair_bounds[start], self.pair_bounds[stop]
            some = slice(self.member_bounds[first], self.member_bounds[last])
            scales = None if self.scales is None else self.scales[some]
            added = _sum_rows(flat, self.inputs[some], self.members[first : last + 1], scales)
            maps = self.geometry.convolve(added.view(-1, *x.shape[1:]), self.kernels[first:last])
            every = torch.arange(len(maps), device=x.device)
            sums.append(_sum_rows(maps.flatten(1), every, self.pairs[start : stop + 1]).view(-1, *maps.shape[1:]))
        return torch.cat(sums)


class ConvThenAdd(nn.Module):
    """A clustered layer in the order convolve, then add: same outputs up to rounding, sum_i lambda_i convolutions.

    Args and use as :class:`AddThenConv`.
    """

    inputs: Tensor
    kernels: Tensor
    outputs: Tensor
    rows: Tensor
    scales: Tensor | None

    def __init__(self, layer: ClusteredConv2d) -> None:
        super().__init__()
        self.geometry = _Geometry(layer)
        kept = _kept_kernels(layer)
        count = int(kept.codes.max()) + 1 if len(kept.codes) else 1
        pairs, rows = torch.unique(kept.inputs * count + kept.codes, return_inverse=True)  # distinct (i, n) in order
        self.register_buffer("inputs", pairs // count)
        self.register_buffer("kernels", layer.codebook.effective().detach()[pairs % count][:, None])
        self.register_buffer("outputs", kept.outputs)
        self.register_buffer("rows", rows)
        self.register_buffer("scales", kept.scales)
        self.channels = layer.out_channels
        self.planned: object = None
        self.blocks: list[tuple[slice, Tensor, Tensor, Tensor | None]] = []

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.geometry.each_image(x, self._image)

    def _image(self, x: Tensor) -> Tensor:
        self._plan(max(1, BLOCK // x[0].numel()))
        total: Tensor | None = None
        for some, rows, starts, scales in self.blocks:
            maps = self.geometry.convolve(x.index_select(0, self.inputs[some]), self.kernels[some])
            added = _sum_rows(maps.flatten(1), rows, starts, scales).view(-1, *maps.shape[1:])
            total = added if total is None else total.add_(added)
        assert total is not None
        return total

    def _plan(self, step: int) -> None:
        """Cut the pairs (i, n) into blocks of ``step`` and list what each adds to which output; kept for next time."""
        planned = (step, self.kernels.device, self.kernels.dtype)
        if planned == self.planned:
            return
        self.planned, self.blocks = planned, []
        for first in range(0, max(1, len(self.kernels)), step):
            inside = (self.rows >= first) & (self.rows < first + step)
            starts = _starts(torch.bincount(self.outputs[inside], minlength=self.channels))
            scales = None if self.scales is None else self.scales[inside]
            self.blocks.append((slice(first, first + step), self.rows[inside] - first, starts, scales))


def add_then_conv(x: Tensor, layer: ClusteredConv2d) -> Tensor:
    """The layer's outputs by :class:`AddThenConv`, prepared anew for each call."""
    return AddThenConv(layer)(x)


def conv_then_add(x: Tensor, layer: ClusteredConv2d) -> Tensor:
    """The layer's outputs by :class:`ConvThenAdd`, prepared anew for each call."""
    return ConvThenAdd(layer)(x)


@dataclass(frozen=True)
class SharedLayer:
    """Multiply-accumulates of one layer for one image, by output positions; scaled additions are free, as in the paper.

    Args:
        dense, add_then_conv, conv_then_add, shared: the last is the smaller of both sharing orders; a layer that is
            not clustered costs the same in all.
    """

    name: str
    clustered: bool
    output: tuple[int, ...]
    dense: int
    add_then_conv: int
    conv_then_add: int
    shared: int


@dataclass(frozen=True)
class SharedCost:
    """The convolutions and linear layers of a network in the order they run."""

    layers: tuple[SharedLayer, ...]

    def total(self, column: Literal["dense", "add_then_conv", "conv_then_add", "shared"], everything: bool) -> int:
        """Sum over the clustered layers, or over everything."""
        return sum(getattr(layer, column) for layer in self.layers if layer.clustered or everything)

    @property
    def acceleration(self) -> float:
        """r_accel of the clustered layers alone, as the paper prints it for networks of 3x3 kernels."""
        return self.total("dense", False) / max(1, self.total("shared", False))

    @property
    def acceleration_of_everything(self) -> float:
        """r_accel with all other convolutions and linear layers at their dense cost."""
        return self.total("dense", True) / max(1, self.total("shared", True))

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary a layer, for a table."""
        return [{field.name: getattr(layer, field.name) for field in fields(layer)} for layer in self.layers]


def shared_cost(model: nn.Module, input_shape: tuple[int, int, int]) -> SharedCost:
    """Multiplications with shared kernels, layer by layer: area, times output positions, times convolutions.

    Args:
        model: with at least one clustered layer.
        input_shape: (channels, height, width) of one image.

    Raises:
        ValueError: nothing is clustered.
    """
    clustered = clustered_layers(model)
    if not clustered:
        raise ValueError(f"shared_cost: {type(model).__name__} has no clustered layer; cluster it first")
    rows = []
    for layer in cost(model, input_shape).layers:
        many = [layer.mac] * 3
        if layer.name in clustered:
            count = counts(clustered[layer.name])
            many = [layer.mac // count.dense * n for n in (count.add_then_conv, count.conv_then_add, count.shared)]
        rows.append(SharedLayer(layer.name, layer.name in clustered, layer.output, layer.mac, *many))
    return SharedCost(tuple(rows))


class _Kernels(NamedTuple):
    """One entry a kernel that is not pruned, by output, then input; ``scales`` None if all are 1."""

    outputs: Tensor
    inputs: Tensor
    codes: Tensor
    scales: Tensor | None


def _kept_kernels(layer: ClusteredConv2d) -> _Kernels:
    per_group = layer.index.shape[1]
    kept = torch.ones_like(layer.index, dtype=torch.bool) if layer.kept is None else layer.kept
    outputs, inputs = kept.nonzero(as_tuple=True)
    group = outputs // (layer.out_channels // layer.groups)
    scales = layer.used_scale()
    return _Kernels(
        outputs,
        inputs + group * per_group,
        layer.code()[kept].long(),
        None if scales is None else scales.detach()[kept],
    )


class _Geometry(nn.Module):
    """Stride, padding, dilation and bias of a layer, applied to maps one by one."""

    bias: Tensor | None

    def __init__(self, layer: ClusteredConv2d) -> None:
        super().__init__()
        self.stride, self.dilation, self.padding, self.mode = layer.stride, layer.dilation, layer.padding, "constant"
        self.around: list[int] = []
        if layer.padding_mode != "zeros":
            self.padding, self.mode = (0, 0), layer.padding_mode
            self.around = layer._reversed_padding_repeated_twice
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def each_image(self, x: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Pad, compute image by image, add the bias."""
        if self.around:
            x = F.pad(x, self.around, mode=self.mode)
        y = torch.stack([compute(image) for image in x])
        return y if self.bias is None else y.add_(self.bias[:, None, None])

    def convolve(self, maps: Tensor, kernels: Tensor) -> Tensor:
        """Each of the maps (n, H, W) with its own kernel (n, 1, h, w); (n, H', W')."""
        if not len(maps):  # PyTorch knows no convolution without maps, yet the size of its output is needed
            return self.convolve(maps.new_zeros(1, *maps.shape[1:]), kernels.new_zeros(1, *kernels.shape[1:]))[:0]
        return F.conv2d(maps[None], kernels, None, self.stride, self.padding, self.dilation, len(maps))[0]


def _starts(counts: Tensor) -> Tensor:
    """Where each of consecutive runs starts, and where the last one ends: (n,) -> (n + 1,)."""
    return F.pad(counts.cumsum(0), (1, 0))


def _sum_rows(table: Tensor, rows: Tensor, starts: Tensor, scales: Tensor | None = None) -> Tensor:
    """Scaled sums of rows of a table, one for each run between two starts, which may count from any number."""
    return F.embedding_bag(
        rows, table, starts - starts[0], mode="sum", per_sample_weights=scales, include_last_offset=True
    )
