"""Every operation of a forward pass, by kind, for papers whose FLOPs count more than convolutions and products."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from shrinkbook.nets import skeleton

KINDS = ("products", "bias", "batch norm", "activation", "addition", "pooling", "pixels")


def operations(model: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """Count one forward pass of one image by what the framework really calls, on the meta device.

    * products: multiply-accumulates of convolutions and linear layers, one operation each;
    * bias: one addition for each output that has one;
    * batch norm: a scale and a shift, two for each number;
    * activation: one for each number through a ReLU;
    * addition: one for each number that a shortcut adds;
    * pooling: one for each number of the map that is pooled, however its windows overlap;
    * pixels: one multiply-accumulate for each number of the input, which normalises it. Not part of the network.

    Args:
        model: any module in evaluation mode or not; it is copied, not changed.
        input_shape: (channels, height, width) of one image.

    Raises:
        ValueError: an operation on numbers that none of the kinds covers, which would make the count wrong.
    """
    twin = skeleton(model).eval()
    with torch.no_grad(), _Counter() as counter:
        twin(torch.empty(1, *input_shape, device="meta"))
    return {**counter.found, "pixels": math.prod(input_shape)}


class _Counter(TorchDispatchMode):
    """Sees every operator with its arguments and result."""

    def __init__(self) -> None:
        super().__init__()
        self.found = dict.fromkeys(KINDS[:-1], 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in COUNTED:
            for kind, count in COUNTED[name](args, result).items():
                self.found[kind] += count
        elif name not in FREE:
            raise ValueError(f"operations: {name} is not counted; say in measure/operations.py what it costs")
        return result


def _convolution(args: tuple[Any, ...], result: Tensor) -> dict[str, int]:
    weight, bias = args[1], args[2]
    return {"products": result.numel() * weight[0].numel(), "bias": result.numel() if bias is not None else 0}


def _addmm(args: tuple[Any, ...], result: Tensor) -> dict[str, int]:
    return {"products": result.numel() * args[1].shape[1], "bias": result.numel()}


COUNTED: dict[str, Callable[[tuple[Any, ...], Any], dict[str, int]]] = {
    "convolution": _convolution,
    "addmm": _addmm,
    "mm": lambda args, result: {"products": result.numel() * args[0].shape[1]},
    "native_batch_norm": lambda args, result: {"batch norm": 2 * args[0].numel()},
    "_native_batch_norm_legit_no_training": lambda args, result: {"batch norm": 2 * args[0].numel()},
    "relu": lambda args, result: {"activation": result.numel()},
    "relu_": lambda args, result: {"activation": result.numel()},
    "add": lambda args, result: {"addition": result.numel()},
    "max_pool2d_with_indices": lambda args, result: {"pooling": args[0].numel()},
    "mean": lambda args, result: {"pooling": args[0].numel()},
}
FREE = {"view", "t", "transpose", "detach", "_unsafe_view", "empty", "_reshape_alias", "as_strided", "clone", "expand"}
