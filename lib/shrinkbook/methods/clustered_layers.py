"""Convolutions whose kernels are scaled copies of shared centroids (Son et al. 2018), to use and to fine-tune.

A *kernel* is one (h, w) slice of a convolution, w_ij for input i and output j. A clustered convolution computes
w_ij = s_ij Phi_t(mu_l): index l and transform t are fixed, centroids and scales are trained. It is still an nn.Conv2d,
so that whatever counts, hooks or exports convolutions sees its dense weights.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST_HALF = torch.finfo(torch.float16).max


class Codebook(nn.Module):
    """Centroids mu (k, h, w), trained, and the transforms Phi (T, h w) that may be applied to them, fixed.

    Layers share a codebook by holding the same object; its gradient then sums over all of them, its parameter counts
    once.

    Args:
        centroids: (k, h, w), copied.
        permutations: (T, h w), whole numbers; Phi_t(mu)[p] = mu[permutations[t, p]] on the flattened centroid. None is
            the identity alone.

    Raises:
        ValueError: centroids that are not finite floating (k, h, w), rows that are not permutations.
    """

    permutations: Tensor

    def __init__(self, centroids: Tensor, permutations: Tensor | None = None) -> None:
        super().__init__()
        if centroids.ndim != 3 or not centroids.numel() or not centroids.is_floating_point():
            raise ValueError(f"codebook: centroids must be floating (k, h, w), got {_described(centroids)}")
        if not centroids.is_meta and not torch.isfinite(centroids).all():
            raise ValueError("codebook: the centroids hold NaN or infinity; cluster finite weights")
        identity = torch.arange(centroids[0].numel(), device=centroids.device)
        rows = identity[None] if permutations is None else permutations.to(centroids.device, torch.int64)
        if rows.ndim != 2 or rows.shape[1] != len(identity) or not len(rows):
            raise ValueError(f"codebook: permutations must be (T, {len(identity)}), got {tuple(rows.shape)}")
        if not rows.is_meta and not torch.equal(rows.sort(1).values, identity.expand_as(rows)):
            raise ValueError(f"codebook: each row of permutations must hold 0 to {len(identity) - 1} once")
        self.centroids = nn.Parameter(centroids.detach().clone())
        self.register_buffer("permutations", rows.clone())

    @property
    def transforms(self) -> int:
        """T, the number of transforms."""
        return len(self.permutations)

    def effective(self) -> Tensor:
        """All transformed centroids, (k T, h, w): row l T + t is Phi_t(mu_l)."""
        return self.centroids.flatten(1)[:, self.permutations].view(-1, *self.centroids.shape[1:])

    def extra_repr(self) -> str:
        return f"{tuple(self.centroids.shape)}, transforms={self.transforms}"


class ClusteredConv2d(nn.Conv2d):
    """A convolution with ``weight`` computed from a codebook; made by :func:`cluster_conv`.

    Attributes:
        codebook: shared centroids.
        index, transform: (T out, S in / groups), whole numbers, fixed.
        scale: (T out, S in / groups), trained in the codebook's precision and rounded to half precision where used,
            with the gradient passed straight through; None in the N variants, whose scale is 1.
        kept: (T out, S in / groups), False where a kernel is pruned and stays zero; None if all are kept.
    """

    codebook: Codebook
    index: Tensor
    transform: Tensor
    scale: nn.Parameter | None
    kept: Tensor | None

    def __init__(
        self,
        conv: nn.Conv2d,
        codebook: Codebook,
        index: Tensor,
        transform: Tensor,
        scale: Tensor | None,
        kept: Tensor | None,
    ) -> None:
        _as(conv, self)
        self.codebook = codebook
        self.register_buffer("index", index)
        self.register_buffer("transform", transform)
        self.register_parameter("scale", None if scale is None else nn.Parameter(scale))
        self.register_buffer("kept", kept)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dense kernels s_ij Phi_t(mu_l), (T out, S in / groups, h, w), zero where pruned; differentiable."""
        effective = self.codebook.effective()
        # embedding, because its gradient sums repeated rows in a fixed order, on a GPU too
        weight = F.embedding(self.code(), effective.flatten(1)).view(*self.index.shape, *effective.shape[1:])
        scale = self.used_scale()
        if scale is not None:
            weight = weight * scale[:, :, None, None]
        elif self.kept is not None:
            weight = weight * self.kept[:, :, None, None]
        return weight

    def code(self) -> Tensor:
        """The row of :meth:`Codebook.effective` that each kernel uses, (T out, S in / groups) int32."""
        return self.index.int() * self.codebook.transforms + self.transform

    def used_scale(self) -> Tensor | None:
        """The scales as the forward pass uses them: rounded to half precision, zero where pruned; None without."""
        if self.scale is None:
            return None
        # the difference of a number and its rounding is exact, so the sum is the rounded number
        scale = self.scale + (self.scale.half().to(self.scale.dtype) - self.scale).detach()
        return scale if self.kept is None else scale * self.kept


def cluster_conv(
    conv: nn.Conv2d,
    codebook: Codebook,
    index: Tensor,
    transform: Tensor | None = None,
    scale: Tensor | None = None,
    kept: Tensor | None = None,
) -> ClusteredConv2d:
    """A new convolution like ``conv`` (bias, stride, padding, groups, mode) with kernels from a codebook.

    Args:
        conv: gives everything but the weights; it is not changed, its bias is copied.
        codebook: not copied, so that layers can share it; on the device and in the precision of ``conv``.
        index: (T out, S in / groups), which centroid, 0 to k - 1.
        transform: the same shape, which transform, 0 to T - 1; None is 0 everywhere.
        scale: the same shape; None for an N variant.
        kept: the same shape, False for a pruned kernel; None keeps all.

    Raises:
        ValueError: a shape, a type or a value that does not fit.
    """
    shape, k = tuple(conv.weight.shape[:2]), len(codebook.centroids)
    if conv.weight.shape[2:] != codebook.centroids.shape[1:]:
        sides = tuple(tuple(tensor.shape[-2:]) for tensor in (conv.weight, codebook.centroids))
        raise ValueError(f"cluster_conv: kernels are {sides[0]}, centroids {sides[1]}; use a codebook of their size")
    if transform is None:
        transform = torch.zeros_like(index)
    given = {"index": index, "transform": transform, "scale": scale, "kept": kept}
    for name, tensor in given.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"cluster_conv: {name} has the shape {tuple(tensor.shape)}, the layer has {shape}")
    index, transform = _whole("index", index, k), _whole("transform", transform, codebook.transforms)
    if scale is not None and not (scale.is_meta or (scale.abs() <= LARGEST_HALF).all()):
        raise ValueError(
            f"cluster_conv: a scale is not finite or beyond {LARGEST_HALF:g}, which half precision cannot hold"
        )
    if kept is not None and kept.dtype != torch.bool:
        raise ValueError(f"cluster_conv: kept must be bool, got {kept.dtype}; compare with 0")
    if kept is not None and not kept.is_meta and kept.all():
        kept = None
    device, dtype = codebook.centroids.device, codebook.centroids.dtype
    layer = ClusteredConv2d(
        conv,
        codebook,
        index.to(device),
        transform.to(device),
        None if scale is None else scale.detach().to(device, dtype, copy=True),
        None if kept is None else kept.to(device, copy=True),
    )
    if layer.scale is not None:
        layer.scale.requires_grad_(conv.weight.requires_grad)
    return layer


def clustered_layers(model: nn.Module) -> dict[str, ClusteredConv2d]:
    """The clustered convolutions of a network by module path, in the order of its modules; each once."""
    return {path: module for path, module in model.named_modules() if isinstance(module, ClusteredConv2d)}


def codebooks(model: nn.Module) -> list[Codebook]:
    """The codebooks of a network's clustered convolutions, each once, in the order of first use."""
    return list({id(layer.codebook): layer.codebook for layer in clustered_layers(model).values()}.values())


def replace_layers(model: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """Put other layers at these module paths, inside ``model``, and wherever else the same module is used.

    Returns:
        The model; the layer itself if the path is "", the model as a whole.
    """
    new = {id(model.get_submodule(path)): layer for path, layer in layers.items()}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if id(module) in new and path:
            model.set_submodule(path, new[id(module)])
    return new.get(id(model), model)


def expand(model: nn.Module) -> nn.Module:
    """A copy with plain convolutions again, which hold the weights that the clustered ones compute."""
    twin = copy.deepcopy(model)
    return replace_layers(twin, {path: _dense(layer) for path, layer in clustered_layers(twin).items()})


def _dense(layer: ClusteredConv2d) -> nn.Conv2d:
    dense = _as(layer, nn.Conv2d.__new__(nn.Conv2d))
    dense.weight = nn.Parameter(layer.weight.detach().clone())
    return dense


def _as(conv: nn.Conv2d, new: Any) -> Any:
    """Give a bare module the geometry, mode and a copy of the bias of a convolution, without its weights."""
    nn.Module.__init__(new)
    own = {name: value for name, value in vars(conv).items() if name not in vars(new)}
    vars(new).update(own)
    new.training = conv.training
    bias = None
    if conv.bias is not None:
        bias = nn.Parameter(conv.bias.detach().clone(), requires_grad=conv.bias.requires_grad)
    new.register_parameter("bias", bias)
    return new


def _whole(name: str, tensor: Tensor, count: int) -> Tensor:
    """A copy of indices below ``count`` in the smallest type that holds them."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"cluster_conv: {name} must be whole numbers, got {tensor.dtype}")
    if not tensor.is_meta and tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) < count:
        low, high = int(tensor.min()), int(tensor.max())
        raise ValueError(f"cluster_conv: {name} runs from {low} to {high}, the codebook allows 0 to {count - 1}")
    small = torch.uint8 if count <= 2**8 else torch.int16 if count <= 2**15 else torch.int32
    return tensor.to(small, copy=True)


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
