"""Low-cost collaborative layers (Dong et al. 2017): a cheap convolution says where the costly one can be skipped.

With input X, main convolution W and low-cost convolution W' the output is Y = (W * X) . M, element by element, where
the gate M = ReLU(BN(W' * X)) is 0 at many positions. Both are trained together, through the product. This module adds
the layers, :mod:`shrinkbook.methods.lccl_saving` counts what they save, :mod:`shrinkbook.methods.lccl_skip` saves it.
"""

import copy
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shrinkbook.nets.init import initialize

Kind = Literal["kxkxCx1", "1x1xCxT", "1x1xCx1"]
Place = Literal["first", "second", "both"]


class LCCL(nn.Module):
    """The low-cost layer of one convolution: M = ReLU(BN(W' * X)), 0 where the convolution is skipped.

    Args:
        main: the k x k convolution, C -> T; gives the shapes, is not kept.
        kind: ``kxkxCx1``, one filter shared by all T outputs; ``1x1xCxT``, one 1x1 filter for each output; ``1x1xCx1``,
            one shared 1x1 filter, which only the authors' code has.
        norm: batch norm before the ReLU; without it, ReLU alone.
        grid: of ``1x1xCx1``: the input is max-pooled by it and the response enlarged again, bilinearly with aligned
            corners; 1 pools nothing, 0 gives one value for the whole map. Without effect at a stride above 1.

    Raises:
        ValueError: an unknown kind, or a grid that is negative or of another kind.
    """

    def __init__(self, main: nn.Conv2d, kind: Kind = "kxkxCx1", norm: bool = True, grid: int = 1) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise ValueError(f"LCCL: unknown kind {kind!r}; there are {', '.join(get_args(Kind))}")
        if grid < 0 or (grid != 1 and kind != "1x1xCx1"):
            raise ValueError(f"LCCL: grid {grid} with kind {kind}; only 1x1xCx1 has a grid, of 0 or more")
        kernel: Any = {"kernel_size": 1}
        if kind == "kxkxCx1":
            kernel = {"kernel_size": main.kernel_size, "padding": main.padding}
        outputs = main.out_channels if kind == "1x1xCxT" else 1
        self.conv = nn.Conv2d(main.in_channels, outputs, **kernel, stride=cast(Any, main.stride), bias=False)
        self.norm = nn.BatchNorm2d(outputs) if norm else nn.Identity()
        self.grid = grid if main.stride == (1, 1) else 1

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 1 or T, H', W'), nowhere negative."""
        return F.relu(self.norm(self.linear(x)))

    def linear(self, x: Tensor) -> Tensor:
        """W' * X, before batch norm and ReLU."""
        if self.grid == 1:
            return self.conv(x)
        if self.grid == 0:
            return self.conv(x.amax((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        pooled = F.max_pool2d(x, self.grid, ceil_mode=True)
        return F.interpolate(self.conv(pooled), x.shape[2:], mode="bilinear", align_corners=True)


class LCCLConv2d(nn.Module):
    """A convolution and its gate, computed densely: Y = (W * X) . M, M broadcast over the outputs if it is one map.

    The product is taken before any ReLU of the main response, as in the authors' code: in a pre-activation block batch
    norm and ReLU follow, and where a ReLU follows directly both readings are the same, for M >= 0.

    Args:
        main: the convolution, kept as it is.
        gate: of the same input channels and stride.
        hard: multiply with 1 where M > 0 instead of with M; the gate then gets the gradient of M ("straight through").
        relu: the other reading, of the paper's abstract and figure 1: Y = ReLU(W * X) . M.
        name: of the layer, for messages.

    Raises:
        ValueError: the gate does not fit the convolution.
    """

    def __init__(
        self, main: nn.Conv2d, gate: LCCL, *, hard: bool = False, relu: bool = False, name: str = "convolution"
    ) -> None:
        super().__init__()
        conv = gate.conv
        if conv.stride != main.stride:
            raise ValueError(
                f"layer {name}: the gate has stride {conv.stride}, the convolution {main.stride}; make it by LCCL(main)"
            )
        if conv.in_channels != main.in_channels or conv.out_channels not in (1, main.out_channels):
            gated, needed = f"{conv.in_channels} -> {conv.out_channels}", f"{main.in_channels} -> {main.out_channels}"
            raise ValueError(f"layer {name}: the gate is {gated} channels, the convolution {needed}; share 1 or give T")
        self.main, self.gate = main, gate
        self.hard, self.relu, self.name = hard, relu, name

    def forward(self, x: Tensor) -> Tensor:
        gate, response = self.gate(x), self.main(x)
        if gate.shape[2:] != response.shape[2:]:
            maps = tuple(tuple(tensor.shape[2:]) for tensor in (gate, response))
            raise ValueError(
                f"layer {self.name}: the gate's map is {maps[0]}, the convolution's {maps[1]}; make it by LCCL(main)"
            )
        if self.relu:
            response = F.relu(response)
        if self.hard:
            gate = (gate > 0).to(gate.dtype) + (gate - gate.detach())
        return response * gate

    def extra_repr(self) -> str:
        return f"hard={self.hard}, relu={self.relu}"


def add_lccl(
    model: nn.Module,
    layers: Place | Collection[str] = "both",
    kind: Kind = "kxkxCx1",
    *,
    norm: bool = True,
    hard: bool = False,
    relu: bool = False,
    grid: int = 1,
    seed: int = 0,
) -> nn.Module:
    """A copy of a network whose convolutions have gates; their own weights stay, so that it pairs with the plain one.

    Args:
        layers: module paths of convolutions, or a place in every residual block, as :func:`placed` takes it.
        kind, norm, grid: as in :class:`LCCL`.
        hard, relu: as in :class:`LCCLConv2d`.
        seed: of the gates' weights, drawn as :func:`shrinkbook.nets.initialize` does: normal, variance 2 / (k^2 T').

    Raises:
        ValueError: an unknown option, a layer that does not exist or cannot be gated, a block of another kind.
    """
    names = placed(model, cast(Place, layers)) if isinstance(layers, str) else list(layers)
    modules = dict(model.named_modules())
    convs = [path for path, module in modules.items() if isinstance(module, nn.Conv2d) and path]
    if not names:
        raise ValueError(f"add_lccl: no layers named; {type(model).__name__} has {', '.join(convs)}")
    gates: dict[str, LCCL] = {}
    for name in names:
        module = modules.get(name)
        if not isinstance(module, nn.Conv2d | LCCLConv2d) or not name:
            raise ValueError(f"add_lccl: no convolution {name!r} in {type(model).__name__}; it has {', '.join(convs)}")
        gates[name] = LCCL(_gatable(name, module, kind), kind, norm, grid)
    initialize(nn.ModuleList(gates.values()), seed)
    twin = copy.deepcopy(model)
    for name, gate in gates.items():
        main = twin.get_submodule(name)
        assert isinstance(main, nn.Conv2d)
        gate.to(main.weight).train(main.training)
        twin.set_submodule(name, LCCLConv2d(main, gate, hard=hard, relu=relu, name=name).train(main.training))
    return twin


def placed(model: nn.Module, place: Place) -> list[str]:
    """The convolutions of all residual blocks that the authors gate, by module path.

    Args:
        model: its blocks hold a ``shortcut`` (or ``downsample``) and ``conv1`` and ``conv2``, both gated, or as
            bottlenecks also ``conv3``: then the middle and the last one are gated, not the 1x1 convolution before them.
        place: ``first`` or ``second`` of the two, or ``both``.

    Raises:
        ValueError: an unknown place, no such blocks, or a block of another kind.
    """
    if place not in get_args(Place):
        raise ValueError(f"unknown place {place!r}; there are {', '.join(get_args(Place))}, or give module paths")
    chosen = {"first": slice(0, 1), "second": slice(1, 2), "both": slice(0, 2)}[place]
    found: list[str] = []
    for path, module in model.named_modules():
        inner = [name for name, _ in module.named_children() if name[:4] == "conv" and name[4:].isdigit()]
        if len(inner) < 2 or not (hasattr(module, "shortcut") or hasattr(module, "downsample")):
            continue
        if inner not in (["conv1", "conv2"], ["conv1", "conv2", "conv3"]):
            raise ValueError(
                f"block {path or type(module).__name__}: {', '.join(inner)} make neither a basic block nor a "
                "bottleneck; give the module paths of the layers instead of a place"
            )
        found += [f"{path}.{name}".lstrip(".") for name in inner[-2:][chosen]]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no residual blocks with conv1 and conv2; give the module paths of the layers "
            "instead of a place"
        )
    return found


def plain_conv(name: str, module: nn.Module) -> nn.Conv2d:
    """The module, if it is a convolution that a gate and its im2col rows can follow; else a ValueError says why."""
    if type(module) is not nn.Conv2d:
        raise ValueError(f"layer {name}: {type(module).__name__} cannot be gated; give a plain Conv2d")
    zeros = module.padding_mode == "zeros" and not isinstance(module.padding, str)
    if module.groups != 1 or module.dilation != (1, 1) or not zeros:
        raise ValueError(
            f"layer {name}: groups, dilation and padding other than a number of zeros are not supported; leave it out"
        )
    return module


def _gatable(name: str, module: nn.Module, kind: Kind) -> nn.Conv2d:
    conv = plain_conv(name, module)
    kernel, padding = conv.kernel_size, cast(tuple[int, ...], conv.padding)
    if kind != "kxkxCx1" and any(2 * p != k - 1 for k, p in zip(kernel, padding, strict=True)):
        raise ValueError(f"layer {name}: a 1x1 gate needs padding (k - 1) / 2, got {padding} for {kernel}; use kxkxCx1")
    if kind == "1x1xCxT" and kernel == (1, 1):
        raise ValueError(f"layer {name}: a 1x1xCxT gate costs as much as this 1x1 convolution; use kxkxCx1")
    return conv


def gates(model: nn.Module) -> dict[str, LCCL]:
    """The gates of a network by the path of their convolution."""
    return {path: module.gate for path, module in model.named_modules() if isinstance(module, LCCLConv2d)}


def responses(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The gates' maps M for a batch, (N, 1 or T, H', W') by path; 0 is a position to skip."""
    found: dict[str, Tensor] = {}
    with watching(model, found.__setitem__):
        model(x)
    return found


def with_zeros(layer: LCCLConv2d, x: Tensor, zeros: float) -> LCCLConv2d:
    """A copy, in evaluation mode, whose gates are 0 at this share of the positions of ``x``, in every channel alike.

    The batch norm is shifted to that quantile of its own outputs: a gate of any sparsity, to be timed. Positions whose
    outputs are equal, as over blank pixels, close together or not at all.

    Raises:
        ValueError: the gate has no batch norm, or a share outside 0 to 1.
    """
    twin = copy.deepcopy(layer).eval()
    norm = twin.gate.norm
    if not isinstance(norm, nn.BatchNorm2d):
        raise ValueError(f"layer {layer.name}: a gate without batch norm cannot be shifted; build it with norm=True")
    if not 0 <= zeros <= 1:
        raise ValueError(f"layer {layer.name}: a share of zeros of {zeros}; give 0 to 1")
    with torch.no_grad():
        values = norm(twin.gate.linear(x)).transpose(0, 1).flatten(1).sort().values
        edges = torch.cat([values[:, :1] - 1, values, values[:, -1:] + 1], 1)
        below = round(zeros * values.shape[1])
        norm.bias.sub_((edges[:, below] + edges[:, below + 1]) / 2)
    return twin


@contextmanager
def watching(model: nn.Module, see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within, ``see(path, M)`` is called after every gate, and nothing records gradients."""
    found = gates(model)
    if not found:
        raise ValueError(f"{type(model).__name__} has no gates; add_lccl makes them")
    handles = [
        gate.register_forward_hook(lambda _, __, output, path=path: see(path, output)) for path, gate in found.items()
    ]
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
