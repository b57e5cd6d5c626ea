"""Which feature maps of any network belong together, found by following its forward pass with ``torch.fx``.

The pass is symbolic, without images. Every operation either hands maps on (ReLU, pooling, batch norm, flatten), ties
them together (a shortcut, a product), sets them side by side (a concatenation), reads and writes them (a convolution, a
linear layer), or is not known: then the maps that it reads stay as they are, and :class:`Traced` says why.
"""

import copy
import functools
import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from shrinkbook.nets.coupling import Coupling
from shrinkbook.nets.flow import Maps, Value, fix, side_by_side, tied

KEEP = frozenset(
    ["relu", "relu6", "leakyrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "tanh", "neg", "abs"]
    + ["identity", "dropout", "dropout2d", "featuredropout", "alphadropout", "stochasticdepth"]
    + ["maxpool2d", "avgpool2d", "lppool2d", "adaptiveavgpool2d", "adaptivemaxpool2d", "interpolate", "upsample"]
    + ["upsamplingnearest2d", "upsamplingbilinear2d", "zeropad2d", "reflectionpad2d", "replicationpad2d"]
    + ["contiguous", "clone", "detach", "to", "float", "half", "double"]
)
"""Operations on each map by itself, by their names without underscores; a map of zeros stays one."""
WAKE = frozenset(["sigmoid", "hardsigmoid", "softplus", "exp"])
"""The same, but a map of zeros does not stay one: masking would not be the same as removing."""
NUMBERS = frozenset(["size", "dim", "numel", "isfloatingpoint"])
ATTRIBUTES = ("shape", "device", "dtype", "ndim")
LAYERS = (nn.Conv2d, nn.Linear, _BatchNorm)


@dataclass(frozen=True)
class Traced:
    """What a network's forward pass shows.

    Args:
        couplings: sets of maps that can be pruned, by the path of the convolution that ranks them, from input to
            output. Where a shortcut adds maps, that is the one nearest to the input: the projection, or what feeds the
            first block.
        fixed: other convolutions, and why their maps stay.
    """

    couplings: dict[str, Coupling]
    fixed: dict[str, str]


def traced(model: nn.Module) -> Traced:
    """Follow one forward pass; the model is not changed and may be on the meta device.

    It is that of evaluation, or that of training where some layers run only there (auxiliary classifiers).

    Raises:
        ValueError: ``torch.fx`` cannot follow the forward pass, because it depends on what the images hold.
    """
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})  # the structure, no second weights
    layers = {path for path, module in twin.named_modules() if isinstance(module, LAYERS)}
    try:
        graph = _Tracer().trace(twin.eval())
        if not layers <= {node.target for node in graph.nodes}:
            graph = _Tracer().trace(twin.train())
    except Exception as error:  # whatever the model's own code makes of a symbol
        line = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{type(model).__name__} cannot be traced: {line}; take that out of its forward pass or give it couplings()"
        ) from error
    walk = _Walk(twin, graph)
    for node in graph.nodes:
        if (value := walk.step(node)) is not None:
            walk.values[node] = value
    return walk.result()


class _Tracer(fx.Tracer):
    """Keeps subclasses of the layers that are pruned whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LAYERS) or super().is_leaf_module(m, module_qualified_name)


class _Walk:
    """The values of the nodes so far; nodes that give numbers instead of maps have none."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.model, self.values = model, dict[fx.Node, Value]()
        self.modules = dict(model.named_modules())
        self.runs = Counter(node.target for node in graph.nodes if node.op == "call_module")
        self.users = Counter(id(one) for module in self.modules.values() for one in module.parameters(recurse=False))
        self.users.update(id(self._held(node)) for node in graph.nodes if node.op == "get_attr")
        self.written: list[Maps] = []
        self.order = 0

    def step(self, node: fx.Node) -> Value | None:
        read = [self.values[one] for one in node.all_input_nodes if one in self.values]
        if node.op == "placeholder":
            return Value()
        if node.op == "get_attr":
            held = self._held(node)
            return None if isinstance(held, Tensor) and held.numel() == 1 else Value()
        if not read:
            return None
        if node.op == "output":
            fix(read, "its maps are the network's answer")
            return None
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(module, LAYERS):
            return self._layer(str(node.target), module, read[0])
        return self._operation(node, module, read)

    def _held(self, node: fx.Node) -> Any:
        """What the forward pass takes from the model by its name."""
        return functools.reduce(getattr, str(node.target).split("."), self.model)

    def _layer(self, path: str, module: nn.Conv2d | nn.Linear | _BatchNorm, value: Value) -> Value:
        odd = self._odd(path, module)
        if isinstance(module, _BatchNorm):
            fault = odd or self._enter(path, module.num_features, value, "norms")
            if fault:
                value.fix(fault)
            return replace(value, silent=module.affine)
        if isinstance(module, nn.Linear):
            fault = odd or ("" if value.flat else f"{path} reads maps that are not flattened")
            if fault := fault or self._enter(path, module.in_features, value, "consumers"):
                value.fix(fault)
            return Value()
        level = value.level + (max(module.stride) > 1)
        depthwise = module.groups > 1 and module.groups == module.in_channels == module.out_channels
        if depthwise and len(value.parts) == 1 and not odd and not value.flat:
            self._write(value.parts[0], path, value.depth + 1, level)
            return replace(value, silent=True, depth=value.depth + 1, level=level)
        if not odd and module.groups > 1:
            odd = f"{path} has {module.groups} groups: neither one nor one for each map of a single layer"
        fault = odd or (f"{path} reads flattened maps" if value.flat else "")
        if fault := fault or self._enter(path, module.in_channels, value, "consumers"):
            value.fix(fault)
        maps = Maps(module.out_channels, reason=odd)
        self.written.append(maps)
        self._write(maps, path, value.depth + 1, level)
        return Value((maps,), depth=value.depth + 1, level=level)

    def _write(self, maps: Maps, path: str, depth: int, level: int) -> None:
        self.order += 1
        maps.found().producers[path] = (depth, self.order, level)

    def _enter(self, path: str, width: int, value: Value, role: str) -> str:
        """Note that a norm or consumer reads these maps, and where; returns why it cannot be cut, if so."""
        total = sum(value.counts)
        if not total:
            return ""
        if not value.silent and role == "consumers":
            return f"{path} reads maps behind a function that is not 0 at 0"
        if width % total or (width != total and not value.flat):
            return f"{path} has {width} inputs for {total} maps"
        each, start = width // total, 0
        for part in value.parts:
            maps = part.found()
            places = getattr(maps, role)
            if path in places:
                return f"{path} reads the same maps at two places"
            places[path] = (start, each)
            if len(value.parts) > 1:
                maps.beside.add(path)
            start += part.count * each
        return ""

    def _odd(self, path: str, module: nn.Module) -> str:
        """Why this layer's tensors cannot be cut, if so."""
        if self.runs[path] > 1:
            return f"{path} runs {self.runs[path]} times"
        if set(module._parameters) != {"weight", "bias"} or list(module.children()):
            return f"{path} ({type(module).__name__}) has other parameters than weight and bias"
        if any(self.users[id(parameter)] > 1 for parameter in module.parameters()):
            return f"{path} shares its weights with another layer or operation"
        return ""

    def _operation(self, node: fx.Node, module: nn.Module | None, read: Sequence[Value]) -> Value | None:
        target = type(module).__name__ if module else node.target
        name = (target if isinstance(target, str) else getattr(target, "__name__", str(target))).lower()
        in_place, name = name.endswith("_"), name.replace("_", "")
        first = read[0]
        if name in NUMBERS or (name == "getattr" and node.args[1] in ATTRIBUTES):
            return None
        value: Value | None = None
        if name in ("cat", "concat", "concatenate") and _argument(node, 1, "dim", 0) in (1, -3):
            parts = [self.values.get(one) for one in cast(Sequence[Any], _argument(node, 0, "tensors", ()))]
            value = side_by_side(parts)
        elif name in ("add", "iadd", "sub", "isub", "maximum", "minimum", "mul", "imul", "multiply"):
            product = "mul" in name
            value = tied(read, product) if len(read) > 1 else replace(first, silent=first.silent and product)
        elif len(read) == 1:
            value = self._alone(name, node, module, first)
        if value is None:
            stack = list(node.meta.get("nn_module_stack", {}).values())
            owner = stack[-1][0] if stack and stack[-1][0] else type(self.model).__name__
            place = f"{node.target} ({target})" if module else f"{name} in {owner}"
            why = next((one.why for one in read if one.why), f"{place} does with maps what is not followed here")
            fix(read, why)
            return Value(depth=max(one.depth for one in read), level=max(one.level for one in read), why=why)
        if in_place:  # who reads the old name later reads what it has become
            self.values[node.all_input_nodes[0]] = value
        return value

    def _alone(self, name: str, node: fx.Node, module: Any, value: Value) -> Value | None:
        """What an operation on one value makes of it; None if it is not known."""
        if name in KEEP or (name == "prelu" and module is not None and module.num_parameters == 1):
            return replace(value, level=value.level + _reduces(name, node, module))
        if name in WAKE:
            return replace(value, silent=False)
        if name in ("div", "truediv", "itruediv") and isinstance(_argument(node, 0, "input", None), fx.Node):
            return value
        if name == "flatten":
            axes = (module.start_dim, module.end_dim) if module else None
            axes = axes or (_argument(node, 1, "start_dim", 0), _argument(node, 2, "end_dim", -1))
            return replace(value, flat=True) if axes in ((1, -1), (1, 3)) else None
        if name in ("view", "reshape"):
            shape = node.args[1] if len(node.args) == 2 else node.args[1:]
            ends = isinstance(shape, list | tuple) and len(shape) == 2 and shape[1] == -1 and _is_batch(shape[0])
            return replace(value, flat=True) if ends else None
        if name in ("mean", "sum", "amax", "amin") and not value.flat:
            axes = _argument(node, 1, "dim", ())
            if isinstance(axes, list | tuple) and sorted(axis % 4 for axis in axes) == [2, 3]:
                return replace(value, flat=not _argument(node, 2, "keepdim", False), level=value.level + 1)
        if name == "pad" and len(_argument(node, 1, "pad", ())) <= 4:
            return replace(value, silent=value.silent and not _argument(node, 3, "value", 0))
        if name == "getitem" and not value.flat:
            index = node.args[1]
            if isinstance(index, tuple) and index[:2] == (slice(None), slice(None)):
                return value if all(isinstance(one, slice) for one in index) else None
        return None

    def result(self) -> Traced:
        found = list(dict.fromkeys(maps.found() for maps in self.written))
        fixed: dict[str, str] = {}
        free: list[tuple[int, str, Maps]] = []
        for maps in found:
            if not maps.consumers:
                maps.reason = maps.reason or "nothing reads its maps"
            if maps.reason:
                fixed |= dict.fromkeys(maps.producers, maps.reason)
                continue
            ranked = min(maps.producers, key=lambda path: maps.producers[path][:2])
            free.append((maps.producers[ranked][2], ranked, maps))
        levels = sorted({level for level, _, _ in free})
        couplings = {
            ranked: Coupling(
                tuple(sorted(maps.producers, key=lambda path: maps.producers[path][1])),
                tuple(maps.norms),
                tuple(maps.consumers),
                ranked,
                levels.index(level) + 1,
                {path: place for path, place in (maps.norms | maps.consumers).items() if path in maps.beside},
            )
            for level, ranked, maps in free
        }
        return Traced(couplings, fixed)


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _is_batch(size: Any) -> bool:
    """Whether a number is that of the images: the first of a shape, asked for in one of three ways."""
    return isinstance(size, fx.Node) and size.target in ("size", operator.getitem) and size.args[1:] == (0,)


def _reduces(name: str, node: fx.Node, module: Any) -> bool:
    """Whether a pooling makes the maps smaller."""
    if name.startswith("adaptive"):
        return True
    if "pool" not in name:
        return False
    stride = module.stride if module else _argument(node, 2, "stride", None) or _argument(node, 1, "kernel_size", 1)
    return (stride if isinstance(stride, int) else max(stride)) > 1
