"""What a network costs on paper: multiply-accumulates, weights and bytes, layer by layer, without running it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from shrinkbook.nets import skeleton


@dataclass(frozen=True)
class LayerCost:
    """One convolution or linear layer: its module path, output shape (without batch), multiply-accumulates, weights."""

    name: str
    output: tuple[int, ...]
    mac: int
    weights: int


@dataclass(frozen=True)
class Cost:
    """The layers in the order they run, each once. Biases, batch norm, activations and pooling are free."""

    layers: tuple[LayerCost, ...]

    @property
    def mac(self) -> int:
        """Multiply-accumulates for one image, the papers' "FLOP" where they count one per multiply-add."""
        return sum(layer.mac for layer in self.layers)

    @property
    def weights(self) -> int:
        """Weights of convolutions and linear layers."""
        return sum(layer.weights for layer in self.layers)

    def without(self, part: str) -> "Cost":
        """The same cost without layers whose path contains ``part`` (a paper that does not count shortcuts)."""
        return Cost(tuple(layer for layer in self.layers if part not in layer.name))


@dataclass(frozen=True)
class Change:
    """A network before and after compression: what the reports of all methods have in common.

    Args:
        mac, mac_after: multiply-accumulates for one image; None where the size of an image was not given.
        weights, weights_after: of convolutions and linear layers.
    """

    mac: int | None
    mac_after: int | None
    weights: int
    weights_after: int


def change(model: nn.Module, smaller: nn.Module, input_shape: Sequence[int] | None) -> Change:
    """Count both networks; ``input_shape`` is (channels, height, width) of one image, None to count weights only."""
    mac, mac_after = (None if input_shape is None else cost(one, input_shape).mac for one in (model, smaller))
    return Change(mac, mac_after, weight_count(model), weight_count(smaller))


def cost(model: nn.Module, input_shape: Sequence[int]) -> Cost:
    """Count one forward pass of one image, on the meta device: shapes only, so full-size networks take milliseconds.

    A convolution costs its weights times its output positions, a linear layer its weights (Li et al. 2017, section 3.1:
    n_{i+1} n_i k^2 h_{i+1} w_{i+1}).

    Args:
        model: any module; it is copied, not changed.
        input_shape: (channels, height, width) of one image.
    """
    layers: list[LayerCost] = []

    def count(name: str, module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            weights = module.weight.numel()
            positions = output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
            layers.append(LayerCost(name, tuple(output.shape[1:]), weights * positions, weights))

    _watch(model, input_shape, count)
    return Cost(tuple(layers))


def extras(model: nn.Module, input_shape: Sequence[int]) -> int:
    """What some counters add to the multiply-accumulates of one image: numbers that batch norms and average pools read,
    and biases of linear layers. With it comes the count of the search code of Liu et al. 2019."""
    found = 0

    def count(_: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal found
        if isinstance(module, nn.BatchNorm2d | nn.AdaptiveAvgPool2d):
            found += inputs[0].numel()
        elif isinstance(module, nn.Linear) and module.bias is not None:
            found += module.out_features

    _watch(model, input_shape, count)
    return found


def _watch(
    model: nn.Module, input_shape: Sequence[int], look: Callable[[str, nn.Module, tuple[Tensor, ...], Tensor], None]
) -> None:
    """Run a copy on one image of the meta device; ``look`` gets name, module, inputs and output of every module."""
    twin = skeleton(model).eval()
    for name, module in twin.named_modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.Linear):
            module.forward = partial(_shape_only, module)  # type: ignore[method-assign]
        module.register_forward_hook(lambda module, inputs, output, name=name: look(name, module, inputs, output))
    with torch.no_grad():
        twin(torch.empty(1, *input_shape, device="meta"))


def _shape_only(layer: nn.BatchNorm1d | nn.BatchNorm2d | nn.Linear, inputs: Tensor) -> Tensor:
    """A tensor of the layer's output shape. PyTorch's own on the meta device are programs in Python, and slow."""
    if isinstance(layer, nn.Linear):
        reads, axis, output = layer.in_features, -1, inputs.new_empty(*inputs.shape[:-1], layer.out_features)
    else:
        reads, axis, output = layer.num_features, 1, inputs
    if inputs.shape[axis] != reads:
        raise RuntimeError(f"a layer that reads {reads} channels gets {inputs.shape[axis]}")
    return output


def weight_count(model: nn.Module) -> int:
    """Weights of convolutions and linear layers, those of :func:`cost` if each of them runs once."""
    return sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear))


def parameter_count(model: nn.Module) -> int:
    """All trainable numbers: weights, biases, batch-norm scales and shifts."""
    return sum(parameter.numel() for parameter in model.parameters())


def state_bytes(model: nn.Module) -> int:
    """Bytes of everything a checkpoint of the model holds: parameters and buffers at their own precision."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
