"""Width vectors: what a search over layer widths may choose, and the plain network that each choice stands for.

Liu et al. 2019, section 3.1: find widths (c_1, ..., c_l) of least loss within a cost. A *gene* is the index of a ratio;
maps that shortcuts add up share one gene, so that every vector is a network that runs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from shrinkbook.measure.cost import cost
from shrinkbook.nets import skeleton
from shrinkbook.nets.coupling import Coupling
from shrinkbook.nets.tracing import traced

Genes = tuple[int, ...]
"""One index into the ratios for every free width, in the order of the space."""
RATIOS = tuple((10 + 3 * i) / 100 for i in range(31))
"""The paper's choices: 10 % to 100 % of a width in steps of 3 %."""


def free_widths_of(model: nn.Module) -> dict[str, Coupling]:
    """The maps whose number a search may choose, in the order of the genes: the network's own ``free_widths()``, else
    what tracing its forward pass finds.

    Traced, every set of maps that must have one number has a gene of its own, and none is tied to another by choice (as
    both inner widths of a block are in ``nets.resnet50``). Left at full width are maps that a linear layer reads, for
    the classifier always reads all of its inputs, and maps that are set beside others.

    Raises:
        ValueError: the network cannot be traced, or no width is free.
    """
    if hasattr(model, "free_widths"):
        widths: Any = model.free_widths
        return widths()
    layers = dict(model.named_modules())
    found = {
        name: coupling
        for name, coupling in traced(model).couplings.items()
        if not coupling.at and all(isinstance(layers[path], nn.Conv2d) for path in coupling.consumers)
    }
    if not found:
        raise ValueError(f"{type(model).__name__} has no free width between two convolutions; give it free_widths()")
    return found


@dataclass(frozen=True)
class Axes:
    """Which free widths a convolution writes and reads, None where that side is fixed."""

    writes: str | None
    reads: str | None


class SampledConv2d(nn.Conv2d):
    """A strided 1x1 convolution that takes every ``stride``-th pixel first: the same numbers.

    Of narrow maps in channels-last layout PyTorch 2.13 computes the gradient of a strided 1x1 convolution on AVX2
    outside of its memory, and the process dies; projection shortcuts below eight channels are such layers.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(F.max_pool2d(input, 1, cast(Any, self.stride)), self.weight)


class SearchSpace:
    """Every network below a full one whose named groups of maps may be narrower.

    A width is int(base * ratio), as in the authors' code; a pruned network keeps the first maps of each group. What no
    coupling names stays at full width: the classifier always reads all of its inputs.

    Args:
        model: the full network; kept as shapes only, on the meta device.
        couplings: name -> maps whose number is free, in the order of the genes.
        ratios: choices, rising, each in (0, 1].

    Attributes:
        base: name -> full width.
        axes: module path of each convolution -> what it writes and reads.
        codes: module path of each convolution -> indices of the genes that describe its block: its encoding. A ratio
            that is always 1 (the authors feed the last stage's, too) would only add to a bias and is left out.

    Raises:
        ValueError: ratios that are no such choices, a width without maps, layers that cannot be generated.
    """

    def __init__(self, model: nn.Module, couplings: Mapping[str, Coupling], ratios: Sequence[float] = RATIOS) -> None:
        self.ratios = tuple(ratios)
        if not self.ratios or any(not 0 < ratio <= 1 for ratio in self.ratios):
            raise ValueError(f"width ratios {list(self.ratios)}: each must lie in (0, 1]")
        if list(self.ratios) != sorted(set(self.ratios)):
            raise ValueError(f"width ratios {list(self.ratios)}: write them from small to large, each once")
        self.couplings = dict(couplings)
        self.skeleton = skeleton(model)
        self.convolutions = {n: m for n, m in self.skeleton.named_modules() if isinstance(m, nn.Conv2d)}
        for conv in self.convolutions.values():
            if conv.kernel_size == (1, 1) and conv.stride != (1, 1):
                conv.__class__ = SampledConv2d
        self.norms: dict[str, str | None] = {
            n: None for n, m in self.skeleton.named_modules() if isinstance(m, nn.BatchNorm2d)
        }
        writes: dict[str, str] = {}
        reads: dict[str, str] = {}
        self.base: dict[str, int] = {}
        for name, group in self.couplings.items():
            if others := [p for p in (*group.producers, *group.consumers) if p not in self.convolutions]:
                raise ValueError(f"width {name!r} touches {others[0]}, which is no convolution: leave that width fixed")
            self.base[name] = self.convolutions[group.producers[0]].out_channels
            if int(self.base[name] * self.ratios[0]) < 1:
                raise ValueError(
                    f"width {name!r}: ratio {self.ratios[0]} of {self.base[name]} maps leaves none; "
                    f"leave out ratios below 1/{self.base[name]}"
                )
            writes |= dict.fromkeys(group.producers, name)
            reads |= dict.fromkeys(group.consumers, name)
            self.norms |= dict.fromkeys(group.norms, name)
        for path, conv in self.convolutions.items():
            if conv.bias is not None:
                raise ValueError(f"{path} has a bias: only convolutions with batch norm behind them can be generated")
            if conv.groups not in (1, conv.in_channels) or (conv.groups > 1 and conv.out_channels != conv.in_channels):
                raise ValueError(f"{path} has {conv.groups} groups: only full and depthwise ones can be narrowed")
        self.axes = {
            path: Axes(writes.get(path), writes.get(path) if conv.groups > 1 else reads.get(path))
            for path, conv in self.convolutions.items()
        }
        self.codes = self._codes()

    @property
    def names(self) -> tuple[str, ...]:
        """The free widths in the order of the genes."""
        return tuple(self.couplings)

    @property
    def size(self) -> int:
        """How many width vectors there are."""
        return len(self.ratios) ** len(self.couplings)

    def _codes(self) -> dict[str, tuple[int, ...]]:
        """Genes of a convolution's block: all that layers under the same parent touch; the stem stands alone."""
        touched: dict[str, set[str]] = {}
        parents = {path: path.removesuffix(".shortcut.0").rpartition(".")[0] or path for path in self.axes}
        parents |= {path: path.removesuffix(".shortcut.0") for path in self.axes if path.endswith(".shortcut.0")}
        for path, axes in self.axes.items():
            touched.setdefault(parents[path], set()).update(n for n in (axes.writes, axes.reads) if n)
        order = {name: index for index, name in enumerate(self.names)}
        return {path: tuple(sorted(order[name] for name in touched[parents[path]])) for path in self.axes}

    def check(self, genes: Sequence[int]) -> Genes:
        """The genes as a tuple.

        Raises:
            ValueError: too many or too few, or one that is no index of a ratio.
        """
        if len(genes) != len(self.couplings):
            names = ", ".join(self.names)
            raise ValueError(f"a width vector has {len(self.couplings)} genes ({names}), not {len(genes)}")
        for name, gene in zip(self.names, genes, strict=True):
            if isinstance(gene, bool) or not isinstance(gene, int) or not 0 <= gene < len(self.ratios):
                raise ValueError(f"gene {gene!r} of {name} is no index from 0 to {len(self.ratios) - 1}")
        return tuple(genes)

    def widths(self, genes: Sequence[int]) -> dict[str, int]:
        """Channels of each group: int(base * ratio)."""
        chosen = zip(self.names, self.check(genes), strict=True)
        return {name: int(self.base[name] * self.ratios[gene]) for name, gene in chosen}

    def uniform(self, ratio: float) -> dict[str, int]:
        """Every free width scaled by the same ratio: the paper's baseline, not bound to the listed ratios.

        Raises:
            ValueError: the ratio is outside (0, 1].
        """
        if not 0 < ratio <= 1:
            raise ValueError(f"width ratio {ratio} must lie in (0, 1]")
        return {name: max(1, int(base * ratio)) for name, base in self.base.items()}

    def shape(self, path: str, widths: Mapping[str, int]) -> tuple[int, int]:
        """(output, input) channels of a convolution at these widths."""
        conv, axes = self.convolutions[path], self.axes[path]
        out = widths[axes.writes] if axes.writes else conv.out_channels
        return out, widths[axes.reads] if axes.reads else conv.in_channels

    def shapes(self, widths: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """(output, input) channels of every convolution at these widths, by module path."""
        return {path: self.shape(path, widths) for path in self.axes}

    def possible_shapes(self, path: str) -> list[tuple[int, int]]:
        """Every (output, input) that a convolution may have, from small to large."""
        conv, axes = self.convolutions[path], self.axes[path]
        chosen = [
            sorted({int(self.base[name] * ratio) for ratio in self.ratios}) if name else [full]
            for name, full in ((axes.writes, conv.out_channels), (axes.reads, conv.in_channels))
        ]
        same = axes.writes is not None and axes.writes == axes.reads  # one gene on both sides
        return [(out, read) for out in chosen[0] for read in chosen[1] if not same or out == read]

    def network(self, widths: Mapping[str, int]) -> nn.Module:
        """The plain network at these widths, on the meta device: for counting, and for training after ``to_empty``.

        Raises:
            ValueError: widths are missing, or outside 1 to the full width.
        """
        if set(widths) != set(self.base):
            raise ValueError(f"widths for {', '.join(self.base)} are needed, not for {', '.join(widths) or 'none'}")
        for name, width in widths.items():
            if not 1 <= width <= self.base[name]:
                raise ValueError(f"width {name!r} is {width}: it must lie in 1 to {self.base[name]}")
        model = copy.deepcopy(self.skeleton)
        for path in self.axes:
            narrow(cast(nn.Conv2d, model.get_submodule(path)), *self.shape(path, widths))
        for path, group in self.norms.items():
            if group:
                norm: Any = model.get_submodule(path)
                norm.num_features = widths[group]
                for part in ("weight", "bias", "running_mean", "running_var"):
                    tensor = getattr(norm, part)[: widths[group]].detach()
                    setattr(norm, part, nn.Parameter(tensor) if part in ("weight", "bias") else tensor)
        return model


def narrow(conv: nn.Conv2d, out_channels: int, in_channels: int) -> None:
    """Keep the first output and input channels of a convolution, in place."""
    if conv.groups > 1:
        conv.groups = out_channels
    conv.out_channels, conv.in_channels = out_channels, in_channels
    conv.weight = nn.Parameter(conv.weight.detach()[:out_channels, : in_channels // conv.groups])


class MacCount:
    """Multiply-accumulates of a width vector in closed form: a sum of products of two widths.

    The same number as `measure.cost.cost` of the network, without building it.

    Args:
        space: what is counted.
        input_shape: (channels, height, width) of one image.
    """

    def __init__(self, space: SearchSpace, input_shape: Sequence[int]) -> None:
        self.space, self.fixed = space, 0
        self.per_pair: dict[str, int] = {}
        for layer in cost(space.skeleton, input_shape).layers:
            if conv := space.convolutions.get(layer.name):
                pairs = conv.out_channels * (conv.in_channels // conv.groups)
                self.per_pair[layer.name] = layer.mac // pairs
            else:
                self.fixed += layer.mac

    def __call__(self, genes: Sequence[int]) -> int:
        """Multiply-accumulates for one image of the network with these genes."""
        return self.of(self.space.widths(genes))

    def of(self, widths: Mapping[str, int]) -> int:
        """The same for widths that need not be among the ratios."""
        total = self.fixed
        for path, factor in self.per_pair.items():
            out, read = self.space.shape(path, widths)
            total += factor * out * (1 if self.space.convolutions[path].groups > 1 else read)
        return total
