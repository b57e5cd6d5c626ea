"""Latency of a network as a sum over its layers, from a table measured once (Liu et al. 2019, section 3.3).

The format is plain JSON, so that another machine, a phone say, may have written it: ``{"where": text, "rest": seconds,
"layers": {path: {"OUTxIN": seconds}}}``; ``rest`` is what was timed of the layers whose widths are fixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from shrinkbook.measure.latency import OnItsInput, latency

Shape = tuple[int, int]
"""Output and input channels of a convolution."""


@dataclass(frozen=True)
class LatencyTable:
    """Seconds of every layer at every width; where says on what and how they were measured."""

    where: str
    rest: float
    layers: Mapping[str, Mapping[Shape, float]]

    def total(self, shapes: Mapping[str, Shape]) -> float:
        """Seconds of a network with these layers, as if they were independent.

        Raises:
            ValueError: the table lacks a layer, or a width of it.
        """
        found = self.rest
        for path, shape in shapes.items():
            if path not in self.layers:
                raise ValueError(f"the look-up table of {self.where} lacks layer {path}: measure it for this network")
            if shape not in self.layers[path]:
                out, read = shape
                raise ValueError(
                    f"the look-up table of {self.where} lacks {path} with {read} -> {out} channels: "
                    "measure it at this width, too"
                )
            found += self.layers[path][shape]
        return found

    def plain(self) -> dict[str, Any]:
        """For a JSON file."""
        layers = {
            path: {f"{out}x{read}": seconds for (out, read), seconds in shapes.items()}
            for path, shapes in self.layers.items()
        }
        return {"where": self.where, "rest": self.rest, "layers": layers}

    @staticmethod
    def restored(plain: Mapping[str, Any]) -> LatencyTable:
        """The counterpart of :meth:`plain`.

        Raises:
            ValueError: a key is missing, or a shape that is no ``OUTxIN``.
        """
        try:
            layers = {
                path: {cast(Shape, tuple(map(int, shape.split("x")))): float(s) for shape, s in shapes.items()}
                for path, shapes in plain["layers"].items()
            }
            return LatencyTable(str(plain["where"]), float(plain["rest"]), layers)
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"not a look-up table ({error!r}): it needs where, rest and layers") from error


def measure_table(
    convolutions: Mapping[str, nn.Conv2d],
    shapes: Mapping[str, Sequence[Shape]],
    model: nn.Module,
    example: Tensor,
    where: str,
    runs: int = 10,
    warmup: int = 2,
) -> LatencyTable:
    """Time every convolution, with batch norm and ReLU behind it, at each of its shapes, on this machine.

    Layers that are alike are timed once. Linear layers are ``rest``. What is neither, pooling and the additions of
    shortcuts, is in no entry: the sum lacks its time.

    Args:
        convolutions: by module path, at full width.
        shapes: the (output, input) channels that each may have.
        model: the full network, with weights, on the device of the example; tells what each layer reads.
        example: a batch of images.
        where: machine, threads and batch, for people.
    """
    sides: dict[str, tuple[int, ...]] = {}
    classifier: dict[str, tuple[nn.Module, Tensor]] = {}

    def watch(path: str) -> Any:
        return lambda module, inputs: sides.__setitem__(path, tuple(inputs[0].shape[2:]))

    def keep(path: str, module: nn.Module) -> Any:
        return lambda _, inputs: classifier.__setitem__(path, (module, inputs[0].detach().clone()))

    handles = [model.get_submodule(path).register_forward_pre_hook(watch(path)) for path in convolutions]
    linear = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    handles += [module.register_forward_pre_hook(keep(path, module)) for path, module in linear.items()]
    with torch.inference_mode():
        model.eval()(example)
    for handle in handles:
        handle.remove()
    known: dict[Any, dict[Shape, float]] = {}
    layers: dict[str, Mapping[Shape, float]] = {}
    for path, conv in convolutions.items():
        alike = (*conv.kernel_size, *conv.stride, conv.groups > 1, sides[path], tuple(shapes[path]))
        if alike not in known:
            parts = {shape: _part(conv, shape, sides[path], example) for shape in shapes[path]}
            named = {f"{out}x{read}": part for (out, read), part in parts.items()}
            timed = latency(named, example, runs, warmup)
            known[alike] = {shape: timed[f"{shape[0]}x{shape[1]}"].median for shape in parts}
        layers[path] = known[alike]
    parts_rest = {path: OnItsInput(*pair) for path, pair in classifier.items()}
    rest = sum(one.median for one in latency(parts_rest, example, runs, warmup).values())
    return LatencyTable(where, rest, layers)


def _part(conv: nn.Conv2d, shape: Shape, side: tuple[int, ...], example: Tensor) -> nn.Module:
    """The layer at one shape, with batch norm and ReLU, on random numbers."""
    out, read = shape
    groups = out if conv.groups > 1 else 1
    kernel, stride, padding = (cast(Any, pair) for pair in (conv.kernel_size, conv.stride, conv.padding))
    layer = nn.Conv2d(read, out, kernel, stride, padding, groups=groups, bias=False)
    whole = nn.Sequential(layer, nn.BatchNorm2d(out), nn.ReLU(inplace=True)).to(example.device)
    return OnItsInput(whole, torch.randn(len(example), read, *side, device=example.device))
