"""Compress a whole network in one shot (Kim et al. 2016): ranks by EVBMF, Tucker-2 of its layers, one fine-tuning.

The first convolution keeps its few input channels (Tucker-1), linear layers and 1x1 convolutions are matrices (SVD),
everything else is Tucker-2. :func:`compress` walks the modules of any network; fine-tuning is the caller's.
"""

import copy
import math
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shrinkbook.measure.cost import LayerCost, cost
from shrinkbook.methods.tucker_layers import (
    Size,
    decompose,
    factor_weights,
    full_ranks,
    input_unfolding,
    kernel_of,
    output_unfolding,
)
from shrinkbook.methods.vbmf import evbmf

Ranks = Literal["vbmf"] | Mapping[str, int | Sequence[int]]


@dataclass(frozen=True)
class Layer:
    """What became of one layer. Ranks are (R3, R4) for Tucker-2, else one; with groups they hold for each group.

    Args:
        kind: ``tucker2``, ``tucker1``, ``svd`` or ``kept``, the last with a note that says why.
        limits: the full ranks.
        estimated: the ranks as EVBMF gave them, 0 included; None where none were estimated.
        ranks: the ranks used; empty if kept.
        weights, weights_after, mac, mac_after: without biases, multiply-accumulates for one image.
        error: relative error of the weights, ||K - K'|| / ||K||; None if kept or on the meta device.
        parts: cost of the factors in the order they run.
    """

    name: str
    kind: str
    limits: Size
    estimated: Size | None
    ranks: Size
    weights: int
    weights_after: int
    mac: int
    mac_after: int
    error: float | None
    parts: tuple[LayerCost, ...]
    note: str

    @property
    def clamped(self) -> bool:
        """An estimated rank of 0 was raised to 1: nothing stood out of the noise, so a gain would mean nothing."""
        return bool(self.ranks) and self.estimated is not None and min(self.estimated) == 0

    @property
    def compression(self) -> float | None:
        """M, weights before over after; None for a kept or clamped layer."""
        return self.weights / self.weights_after if self.ranks and not self.clamped else None

    @property
    def speedup(self) -> float | None:
        """E, multiply-accumulates before over after; None for a kept or clamped layer."""
        return self.mac / self.mac_after if self.ranks and not self.clamped else None


@dataclass(frozen=True)
class Report:
    """All layers in the order they run (then those that do not), and their sums."""

    layers: tuple[Layer, ...]

    def layer(self, name: str) -> Layer:
        """The layer with this module path; raises a ValueError that lists what exists."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise ValueError(f"no layer {name!r} in the report; it has {', '.join(layer.name for layer in self.layers)}")

    def total(self, column: Literal["weights", "weights_after", "mac", "mac_after"]) -> int:
        """Sum over the layers."""
        return sum(getattr(layer, column) for layer in self.layers)

    @property
    def mac(self) -> int:
        """Multiply-accumulates for one image before; :attr:`mac_after` those with the factors."""
        return self.total("mac")

    @property
    def mac_after(self) -> int:
        """See :attr:`mac`."""
        return self.total("mac_after")

    @property
    def weights(self) -> int:
        """Weights before, without biases; :attr:`weights_after` those of the factors and the kept layers."""
        return self.total("weights")

    @property
    def weights_after(self) -> int:
        """See :attr:`weights`."""
        return self.total("weights_after")

    @property
    def compression(self) -> float | None:
        """Weights before over after; None if a layer was clamped."""
        return None if self.clamped else self.weights / self.weights_after

    @property
    def speedup(self) -> float | None:
        """Multiply-accumulates before over after; None if a layer was clamped."""
        return None if self.clamped else self.mac / self.mac_after

    @property
    def clamped(self) -> list[str]:
        """Names of the layers with a rank raised from 0 to 1."""
        return [layer.name for layer in self.layers if layer.clamped]

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary a layer, for a table: the fields without the parts, M and E."""
        names = [field.name for field in fields(Layer) if field.name != "parts"]
        names[-1:-1] = ["compression", "speedup"]
        return [{name: getattr(layer, name) for name in names} for layer in self.layers]


def compress(
    model: nn.Module,
    ranks: Ranks = "vbmf",
    *,
    input_shape: Sequence[int],
    keep_out: Collection[str] = (),
    as_convolution: Mapping[str, Sequence[int]] | None = None,
    inplace: bool = False,
) -> tuple[nn.Module, Report]:
    """Decompose the convolutions and linear layers of a network, all at once, without training.

    Args:
        model: any network of modules; copied unless ``inplace``. On the meta device, with ranks given, only the shapes
            are made: enough for costs, or for the same network from random weights (``to_empty``, then initialise).
        ranks: ``vbmf`` estimates them for every layer and keeps layers that would not get smaller (M <= 1); a mapping
            from module path to a rank or a pair (R3, R4) decomposes these layers only, smaller or not.
        input_shape: (channels, height, width) of one image, for the cost.
        keep_out: module paths left alone, a layer or everything below a path.
        as_convolution: linear layers read as a convolution over a whole map, path -> (channels, height, width).
        inplace: replace the layers inside ``model``.

    Returns:
        The network, not yet fine-tuned, and the report.

    Raises:
        ValueError: an unknown or unsupported layer, a rank out of range, weights that are not finite.
    """
    modules = dict(model.named_modules())
    maps = {name: tuple(shape) for name, shape in (as_convolution or {}).items()}
    _check(model, ranks, keep_out, maps)
    asked = {} if isinstance(ranks, str) else ranks
    before = cost(model, input_shape).layers
    running = list(dict.fromkeys(layer.name for layer in before))
    first = next((name for name in running if isinstance(modules[name], nn.Conv2d)), None)
    obstacles = _obstacles(model, running)
    rows: list[Layer] = []
    chains: dict[str, nn.Module] = {}
    for name in [*running, *(name for name in obstacles if name not in running)]:
        module, shape = modules[name], maps.get(name)
        weights = sum(parameter.numel() for parameter in _matrices(module))
        row = Layer(name, "kept", (), None, (), weights, weights, 0, 0, None, (), obstacles.get(name, ""))
        out = any(name == path or name.startswith(f"{path}.") for path in keep_out)
        if name in asked and (out or row.note):
            raise ValueError(f"layer {name} has ranks but is to be kept: {'named in keep_out' if out else row.note}")
        if out or (ranks != "vbmf" and name not in asked):
            row = replace(row, note="kept out" if out else "no ranks given")
        elif not row.note:
            kernel, groups = kernel_of(module, shape), getattr(module, "groups", 1)
            if not kernel.is_meta and not torch.isfinite(kernel).all():
                raise ValueError(f"layer {name}: the weights hold NaN or infinity; keep it out or train again")
            if name in asked:
                row = replace(row, ranks=_checked(name, kernel, groups, asked[name]))
            else:
                estimated = estimate(kernel, groups, tucker1=name == first)
                row = replace(row, estimated=estimated, ranks=tuple(max(rank, 1) for rank in estimated))
            row = _sized(row, kernel, groups)
            if row.ranks:
                chains[name], error = decompose(module, row.ranks, shape)
                row = replace(row, error=error)
        rows.append(row)
    target = model if inplace else copy.deepcopy(model)
    for name, chain in chains.items():
        target.set_submodule(name, chain.train(modules[name].training))
    after = cost(target, input_shape).layers
    return target, Report(tuple(_costed(row, before, after) for row in rows))


def estimate(kernel: Tensor, groups: int = 1, tucker1: bool = False) -> Size:
    """EVBMF ranks of a kernel (T, S / groups, height, width), 0 included (section 3.2).

    Two ranks from the two unfoldings; one, from the output unfolding, if the kernel is 1x1, reads one channel or
    ``tucker1`` asks for it. Groups share the largest rank among them.
    """
    one = tucker1 or kernel.shape[1] == 1 or kernel[0, 0].numel() == 1
    unfoldings = (output_unfolding,) if one else (input_unfolding, output_unfolding)
    return tuple(max(evbmf(unfold(part)).rank for part in kernel.chunk(groups)) for unfold in unfoldings)


def kind_of(kernel: Tensor, ranks: Size) -> str:
    """``tucker2`` with two ranks; with one ``svd`` of a 1x1 kernel or a linear layer, else ``tucker1``."""
    return "tucker2" if len(ranks) == 2 else "svd" if kernel[0, 0].numel() == 1 else "tucker1"


def _check(model: nn.Module, ranks: Ranks, keep_out: Collection[str], maps: Mapping[str, Size]) -> None:
    """Refuse names that do not exist and maps that do not fit."""
    modules = dict(model.named_modules())
    if type(model) in (nn.Conv2d, nn.Linear):
        raise ValueError(f"compress takes a network, got a bare {type(model).__name__}; wrap it in nn.Sequential")
    if isinstance(ranks, str) and ranks != "vbmf":
        raise ValueError(f"unknown ranks {ranks!r}; give 'vbmf' or a mapping from layer to ranks")
    if ranks == "vbmf" and any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("ranks cannot be estimated from weights on the meta device; give a mapping")
    if isinstance(keep_out, str):
        raise ValueError(f"keep_out takes several names; write [{keep_out!r}]")
    layers = [path for path, module in modules.items() if _matrices(module)]
    asked = () if isinstance(ranks, str) else ranks
    for option, names, known in (("ranks", asked, layers), ("keep_out", keep_out, modules)):
        for name in names:
            if name not in known or not name:
                raise ValueError(f"{option}: no layer {name!r} in {type(model).__name__}; it has {', '.join(layers)}")
    for name, shape in maps.items():
        module = modules.get(name)
        if type(module) is not nn.Linear or len(shape) != 3 or math.prod(shape) != module.in_features:
            raise ValueError(f"as_convolution: {name!r} must be a linear layer that reads maps of the shape {shape}")


def _matrices(module: nn.Module) -> list[Tensor]:
    """The module's own weights, without biases and the vectors of norms."""
    return [parameter for parameter in module.parameters(recurse=False) if parameter.ndim > 1]


def _obstacles(model: nn.Module, running: Sequence[str]) -> dict[str, str]:
    """Layers with weights that cannot be decomposed, by name, and why."""
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            paths.setdefault(id(parameter), []).append(path)
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        others = {path for parameter in own for path in paths[id(parameter)] if path != name}
        if not _matrices(module):
            continue
        if type(module) not in (nn.Conv2d, nn.Linear) or not all(p.is_floating_point() for p in own):
            found[name] = f"unsupported kind {type(module).__name__}"
        elif others:
            found[name] = f"shares weights with {', '.join(sorted(others))}"
        elif name not in running:
            found[name] = "does not run"
    return found


def _checked(name: str, kernel: Tensor, groups: int, value: int | Sequence[int]) -> Size:
    """The ranks a caller asks for, as a tuple within range."""
    try:
        ranks = tuple(map(operator.index, value if isinstance(value, Sequence) else [value]))
    except TypeError:
        ranks = ()
    if len(ranks) not in (1, 2):
        raise ValueError(f"layer {name}: ranks {value!r} must be one whole number or a pair (R3, R4)")
    if len(ranks) == 2 and kernel[0, 0].numel() == 1:
        raise ValueError(f"layer {name}: a 1x1 kernel is a matrix and has one rank, not {ranks}")
    limits = full_ranks(tuple(kernel.shape), groups, len(ranks))
    if not all(1 <= rank <= limit for rank, limit in zip(ranks, limits, strict=True)):
        each = " in each group" if groups > 1 else ""
        raise ValueError(f"layer {name}: ranks {ranks} are outside 1 to {limits}{each}")
    return ranks


def _sized(row: Layer, kernel: Tensor, groups: int) -> Layer:
    """Fill in kind, limits and weights; an estimate without gain becomes a kept layer."""
    shape = tuple(kernel.shape)
    limits, after = full_ranks(shape, groups, len(row.ranks)), factor_weights(shape, groups, row.ranks)
    gain = row.weights / after
    note = f"no gain, M = {gain:.2f}" if gain <= 1 else ""
    if row.estimated is not None and note:
        return replace(row, limits=limits, ranks=(), note=note)
    if row.estimated is not None and min(row.estimated) == 0:
        note = "estimated rank 0 clamped to 1"
    return replace(row, kind=kind_of(kernel, row.ranks), limits=limits, weights_after=after, note=note)


def _costed(row: Layer, before: Sequence[LayerCost], after: Sequence[LayerCost]) -> Layer:
    mac = sum(layer.mac for layer in before if layer.name == row.name)
    if not row.ranks:
        return replace(row, mac=mac, mac_after=mac)
    parts = tuple(layer for layer in after if layer.name.startswith(f"{row.name}."))
    return replace(row, mac=mac, mac_after=sum(part.mac for part in parts), parts=parts)
