"""Cutting one layer down to the maps that stay, in place (Li et al. 2017, section 3.1, steps 4 and 5).

A map is written by filters, normalised by a batch norm and read by the next layer: one function for each of the three.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def keep_entries(module: nn.Module, names: Sequence[str], kept: Tensor, axis: int = 0) -> None:
    """Cut parameters or buffers of a module down to the kept indices of an axis; one that is None stays None.

    Args:
        module: changed in place; what was a parameter stays one, frozen or not.
        names: attributes of the module, such as ``weight``.
        kept: indices that stay, ascending.
        axis: 0 for what writes maps, 1 for what reads them.
    """
    for name in names:
        tensor = getattr(module, name)
        if tensor is None:
            continue
        smaller = tensor.detach().index_select(axis, kept.to(tensor.device)).contiguous()
        if isinstance(tensor, nn.Parameter):
            smaller = nn.Parameter(smaller, tensor.requires_grad)
        setattr(module, name, smaller)


def keep_filters(conv: nn.Conv2d, kept: Tensor) -> None:
    """Cut a convolution down to these filters, in place: weight, bias if there is one, and ``out_channels``.

    A depthwise one has a filter for each of its inputs, and loses inputs and groups with them.
    """
    keep_entries(conv, ("weight", "bias"), kept)
    conv.out_channels = len(kept)
    if conv.groups > 1:
        conv.groups = conv.in_channels = len(kept)


def keep_norm(norm: nn.BatchNorm2d, kept: Tensor) -> None:
    """Cut a batch norm down to these maps, in place: all that it holds for each map, and ``num_features``."""
    keep_entries(norm, ("weight", "bias", "running_mean", "running_var"), kept)
    norm.num_features = len(kept)


def keep_inputs(reader: nn.Conv2d | nn.Linear, kept: Tensor, maps: int) -> None:
    """Cut a layer down to these input maps, in place; it writes as many outputs as before.

    Args:
        reader: a convolution, or a linear layer behind a flatten, where each map of the input is a run of
            ``in_features // maps`` neighbouring columns, one for each pixel.
        kept: the maps that stay, ascending.
        maps: input maps before the cut.
    """
    if isinstance(reader, nn.Linear):
        pixels = reader.in_features // maps
        columns = (kept[:, None] * pixels + torch.arange(pixels, device=kept.device)).flatten()
        keep_entries(reader, ("weight",), columns, axis=1)
        reader.in_features = len(columns)
    else:
        keep_entries(reader, ("weight",), kept, axis=1)
        reader.in_channels = len(kept)
