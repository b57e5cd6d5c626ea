"""bfloat16 where the processor has units for it: which dtype to choose, and how to run a model in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PIXELS, CHANNELS = 16, 256  # maps of at most 4x4 and at least this many channels gain from the matrix product


def bf16_units(device: torch.device | str = "cpu") -> bool:
    """Whether the processor multiplies bfloat16 in hardware (and is not pinned to an older instruction set)."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    isa = os.environ.get("ONEDNN_MAX_CPU_ISA", "all").lower()
    if os.environ.get("ATEN_CPU_CAPABILITY", "").lower() in ("default", "avx2"):
        return False
    if not any(word in isa for word in ("all", "default", "bf16", "fp16", "amx", "avx10")):
        return False
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})  # the last is ARM's name


def autocast_dtype(device: torch.device | str = "cpu") -> str:
    """The faster of "bfloat16" and "float32" on this device."""
    return "bfloat16" if bf16_units(device) else "float32"


@contextmanager
def precision(model: nn.Module, device: torch.device, dtype: str) -> Iterator[None]:
    """Inside, the model's forward pass runs in "float32" or under "bfloat16" autocast; weights stay in float32.

    On a CPU in bfloat16, plain 3x3 convolutions on small maps run as conv3x3_by_product.
    """
    half = dtype == "bfloat16"
    swapped = [m for m in model.modules() if _is_plain(m)] if half and device.type == "cpu" else []
    for module in swapped:
        module.__class__ = ProductConv2d
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            yield
    finally:
        for module in swapped:
            module.__class__ = nn.Conv2d


def conv3x3_by_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.conv2d(x, weight, bias, padding=1) as one matrix product: nine shifted views side by side, a linear layer.

    The library's kernels for maps of a few pixels (the last two stages of VGG-16 on 32x32 images) leave the matrix
    units idle, in the weight gradient most of all: forward and backward take 2 to 6 times as long as this.

    Args:
        x: (n, c, h, w). weight: (o, c, 3, 3). bias: (o,).

    Returns:
        (n, o, h, w) in channels-last strides.
    """
    height, width = x.shape[2:]
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return F.linear(torch.cat(shifted, dim=3), weight.permute(0, 2, 3, 1).flatten(1), bias).permute(0, 3, 1, 2)


class ProductConv2d(nn.Conv2d):
    """A plain 3x3 convolution that uses conv3x3_by_product where its maps are small."""

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim == 4 and input.shape[2] * input.shape[3] <= PIXELS:
            return conv3x3_by_product(input, self.weight, self.bias)
        return super().forward(input)


def _is_plain(module: nn.Module) -> bool:
    return (
        type(module) is nn.Conv2d
        and module.in_channels >= CHANNELS
        and module.kernel_size == (3, 3)
        and module.stride == module.padding == module.dilation == (1, 1)
        and module.groups == 1
        and module.padding_mode == "zeros"
    )
