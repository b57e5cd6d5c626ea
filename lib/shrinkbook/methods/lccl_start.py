"""What gates do to a network before it is trained: how evenly images come through, and how large the gradient is.

M has no upper bound, and where a gate answers much, the next one reads much and answers more (Dong et al. 2017 do not
speak of it). Batch norm over a batch in which few images hold nearly all energy makes the others small.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def evenness(maps: Tensor) -> float:
    """Median over mean of the energy of a batch's images: 1 if all are alike, near 0 if few drown the others.

    Args:
        maps: (N, C, H, W); the energy of an image is the sum of its squares.

    Raises:
        ValueError: the maps are zero, or not finite.
    """
    energy = maps.double().square().flatten(1).sum(1)
    if not torch.isfinite(energy).all() or not energy.any():
        raise ValueError("evenness: the maps are zero or not finite; take those of an untrained network")
    return float(energy.quantile(0.5) / energy.mean())


def gradient_norm(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Euclidean norm of the gradient of the mean cross entropy with respect to all weights, in training mode.

    Args:
        model: not changed, neither its gradients nor its batch norms.
        images: (N, C, H, W).
        labels: (N,), whole numbers.
    """
    twin = copy.deepcopy(model).train()
    loss = F.cross_entropy(twin(images), labels)
    gradients = torch.autograd.grad(loss, list(twin.parameters()))
    return float(torch.stack([gradient.double().square().sum() for gradient in gradients]).sum().sqrt())
