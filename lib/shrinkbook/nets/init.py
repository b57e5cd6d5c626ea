"""Starting weights, the same rule for every network and for every pruned shape of it; and networks without any."""

import copy
import itertools
from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def initialize(model: nn.Module, seed: int) -> nn.Module:
    """Draw fresh weights in place: He et al. 2015 for convolutions (fan-out), PyTorch's default for linear layers.

    Batch norms return to weight 1, bias 0 and empty statistics. The global random state is left as it was, so a
    network depends on its seed and its shapes only; a pruned network trained from scratch starts here too.

    Returns:
        The model itself.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.Linear):
                module.reset_parameters()
    return model


def skeleton(model: Model) -> Model:
    """A copy on the meta device: modules, shapes and types, no numbers. Weights are neither read nor copied."""
    bare: dict[int, torch.Tensor] = {}
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        bare[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
    return copy.deepcopy(model, bare)
