"""Cluster the spatial kernels of a whole network (Son et al. 2018): normalise, share centroids, count the bits.

A *kernel* is one (h, w) slice of a convolution. Kernels of all chosen layers form one set of points; each is replaced
by a scaled, perhaps transformed, centroid of a codebook. :func:`compress` does it, :func:`plan` only counts and takes
the meta device too. Convolutions with 1x1 kernels and linear layers stay as they are.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from shrinkbook.methods.clustered_layers import ClusteredConv2d, Codebook, cluster_conv, replace_layers
from shrinkbook.methods.filter_pruning import keep_highest, kept_count
from shrinkbook.methods.kernel_kmeans import KMeans, Start, kmeans
from shrinkbook.methods.kernel_sizes import SCALE_BITS, Group, Layer, Other, Report, index_bits
from shrinkbook.methods.kernel_transforms import permutations

Codebooks = Literal["one", "per layer"] | Sequence[Sequence[str]]


@dataclass(frozen=True)
class Codes:
    """How one layer's kernels are written, all (T out, S in / groups).

    Args:
        index, transform: centroid and transform of each kernel, int64; 0 where the kernel is zero.
        scale: 0 where the kernel is zero; None without scales.
        kept: False where the kernel is zero.
    """

    index: Tensor
    transform: Tensor
    scale: Tensor | None
    kept: Tensor


def normalise(kernels: Tensor) -> tuple[Tensor, Tensor]:
    """Split kernels into unit kernels and scales, s = sign(centre) ||w||, so that a kernel and its negative coincide.

    Args:
        kernels: (n, h, w) with odd sides.

    Returns:
        (n, h, w) of norm 1 with a centre >= 0, and (n,) scales. The sign of a centre of 0 is +1; a kernel of zeros has
        the scale 0 and stays zero.
    """
    exact = kernels.detach().double()
    centre = exact[:, kernels.shape[1] // 2, kernels.shape[2] // 2]
    scales = exact.flatten(1).norm(dim=1) * torch.where(centre < 0, -1.0, 1.0)
    units = exact / torch.where(scales == 0, 1.0, scales)[:, None, None]
    return units.to(kernels.dtype), scales.to(kernels.dtype)


def spatial_layers(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions whose kernels can be clustered, by module path: square, odd, above 1x1, weights not shared."""
    return _survey(model)[0]


def cluster_kernels(
    weights: Mapping[str, Tensor],
    k: int,
    *,
    transforms: int = 1,
    scaled: bool = True,
    start: Start = "random",
    seed: int = 0,
    max_iterations: int = 100,
) -> tuple[KMeans, dict[str, Codes]]:
    """One codebook for the kernels of several layers of one size; zero kernels take no part (section 1).

    Args:
        weights: layer name -> (T out, S in / groups, side, side).
        k: centroids, at most the number of kernels that are not zero.
        transforms: size of the transform set, see :func:`~shrinkbook.methods.kernel_transforms.permutations`.
        scaled: cluster normalised kernels and keep their scales; else the kernels as they are (the N variants).
        start, seed, max_iterations: of :func:`~shrinkbook.methods.kernel_kmeans.kmeans`.
    """
    kernels = torch.cat([weight.detach().cpu().flatten(0, 1) for weight in weights.values()])
    kept = kernels.flatten(1).ne(0).any(1)
    points, scales = normalise(kernels) if scaled else (kernels, None)
    perms = permutations(kernels.shape[-1], transforms)
    found = kmeans(points[kept].flatten(1), k, perms, start=start, seed=seed, max_iterations=max_iterations)
    index, transform = (torch.zeros(len(kernels), dtype=torch.int64) for _ in range(2))
    index[kept], transform[kept] = found.labels, found.transforms
    codes, first = {}, 0
    for name, weight in weights.items():
        shape = weight.shape[:2]
        here = slice(first, first + shape.numel())
        first = here.stop
        scale = None if scales is None else scales[here].view(shape)
        codes[name] = Codes(index[here].view(shape), transform[here].view(shape), scale, kept[here].view(shape))
    return found, codes


def compress(
    model: nn.Module,
    k: int,
    *,
    transforms: int = 1,
    scaled: bool = True,
    codebooks: Codebooks = "one",
    sizes: Mapping[int, int] | None = None,
    start: Literal["random", "k-means++"] = "random",
    seed: int = 0,
    max_iterations: int = 100,
    inplace: bool = False,
) -> tuple[nn.Module, Report]:
    """Replace the spatial convolutions of a network by clustered ones, without training (sections 1 and 3).

    Args:
        model: copied unless ``inplace``; kernels that are all zero stay zero.
        k: centroids of a codebook.
        transforms, scaled: see :func:`cluster_kernels`.
        codebooks: ``one`` for all layers of a kernel size; ``per layer`` (M13 on VGG-16; a layer with fewer than k
            kernels takes as many centroids as kernels); or lists of module paths, one list a codebook (M2), other
            layers staying as they are.
        sizes: side of the kernels -> k, where it differs: ``{7: 64}`` for a 7x7 layer.
        start, seed, max_iterations: of :func:`~shrinkbook.methods.kernel_kmeans.kmeans`, the same for all codebooks.
        inplace: replace the layers inside ``model``.

    Returns:
        The network, not yet fine-tuned, and the report.

    Raises:
        ValueError: see :func:`plan`; weights that are not finite or scales beyond half precision.
    """
    report, groups = _planned(model, k, transforms, scaled, codebooks, sizes)
    layers, clustered, ends = spatial_layers(model), {}, []
    for group, paths in zip(report.codebooks, groups, strict=True):
        weights = {path: layers[path].weight for path in paths}
        for path, weight in weights.items():
            if weight.is_meta:
                raise ValueError(f"layer {path} has no values on the meta device; use plan to count its bits")
            if not torch.isfinite(weight).all():
                raise ValueError(f"layer {path}: the weights hold NaN or infinity; train again or leave it out")
        found, codes = cluster_kernels(
            weights,
            group.k,
            transforms=transforms,
            scaled=scaled,
            start=start,
            seed=seed,
            max_iterations=max_iterations,
        )
        ends.append(replace(group, inertia=found.inertia, iterations=found.iterations, converged=found.converged))
        like = layers[paths[0]].weight
        side = like.shape[-1]
        codebook = Codebook(found.centroids.view(-1, side, side).to(like), permutations(side, transforms))
        for path, code in codes.items():
            try:
                clustered[path] = cluster_conv(
                    layers[path], codebook, code.index, code.transform, code.scale, code.kept
                )
            except ValueError as error:
                raise ValueError(f"layer {path}: {error}") from None
    rows = tuple(replace(row, error=_error(layers[row.name], clustered[row.name])) for row in report.layers)
    target = replace_layers(model if inplace else copy.deepcopy(model), clustered)
    return target, replace(report, layers=rows, codebooks=tuple(ends))


def plan(
    model: nn.Module,
    k: int,
    *,
    transforms: int = 1,
    scaled: bool = True,
    codebooks: Codebooks = "one",
    sizes: Mapping[int, int] | None = None,
) -> Report:
    """What :func:`compress` would make of a network, counted without clustering; arguments as there.

    Raises:
        ValueError: k < 1 or above the number of kernels, an unknown set of transforms, no spatial kernels, unknown or
            repeated layers, sizes that do not occur.
    """
    return _planned(model, k, transforms, scaled, codebooks, sizes)[0]


def prune_kernels(model: nn.Module, share: float = 0.5) -> tuple[nn.Module, dict[str, Tensor]]:
    """Set the spatial kernels with the smallest l1 norm of each layer to zero, the "P" of the joint models.

    Layers that read an image, with at most 3 input channels, are left out. floor(n (1 - share)) of n kernels stay; of
    equal norms the earlier kernel.

    Returns:
        A copy, not yet retrained, and layer -> (T out, S in / groups), True where a kernel stays.

    Raises:
        ValueError: no layer to prune, a share outside [0, 1) or one that leaves a layer empty.
    """
    pruned, masks = copy.deepcopy(model), {}
    for path, conv in spatial_layers(pruned).items():
        if conv.in_channels <= 3:
            continue
        norms = conv.weight.detach().abs().sum((2, 3))
        try:
            kept = keep_highest(norms.flatten(), kept_count(norms.numel(), share))
        except ValueError as error:
            raise ValueError(f"layer {path}: {error}") from None
        masks[path] = torch.zeros_like(norms, dtype=torch.bool)
        masks[path].view(-1)[kept] = True
        with torch.no_grad():
            conv.weight[~masks[path]] = 0
    if not masks:
        raise ValueError(f"{type(model).__name__} has no spatial kernels behind its first layer; nothing to prune")
    return pruned, masks


@contextmanager
def pruned_stay_zero(model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """Retrain with the zero kernels fixed: they get no gradient (and weight decay and momentum leave a zero alone)."""
    handles = []
    for path, mask in masks.items():
        weight: Tensor = model.get_submodule(path).weight  # type: ignore[assignment]
        handles.append(weight.register_hook(lambda gradient, mask=mask: gradient * mask[:, :, None, None]))
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def _survey(model: nn.Module) -> tuple[dict[str, nn.Conv2d], tuple[Other, ...]]:
    """Layers to cluster, and all other convolutions with the reason."""
    users: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append(path)
    layers, others = {}, []
    for path, module in model.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        height, width = module.kernel_size
        sharing = [user for user in users.get(id(module.weight), []) if user != path]
        if type(module) is not nn.Conv2d:
            note = f"unsupported kind {type(module).__name__}"
        elif height * width == 1:
            note = "1x1"
        elif height != width or height % 2 == 0:
            note = f"{height}x{width} kernels have no centre or are not square"
        elif sharing:
            note = f"shares weights with {', '.join(sharing)}"
        else:
            layers[path] = module
            continue
        others.append(Other(path, module.weight.numel(), note))
    return layers, tuple(others)


def _planned(
    model: nn.Module, k: int, transforms: int, scaled: bool, codebooks: Codebooks, sizes: Mapping[int, int] | None
) -> tuple[Report, list[list[str]]]:
    """The report before any clustering, and the layers of each codebook."""
    layers, others = _survey(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no spatial kernels to cluster; it needs square odd convolutions")
    permutations(1, transforms)  # refuses an unknown set
    sides = {path: conv.kernel_size[0] for path, conv in layers.items()}
    wanted = dict.fromkeys(sides.values(), k) | dict(sizes or {})
    for side, count in wanted.items():
        if side not in sides.values():
            raise ValueError(f"sizes: no {side}x{side} kernels; there are {sorted(set(sides.values()))}")
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"k = {count!r} for {side}x{side} kernels must be a whole number from 1")
    groups = _grouped(sides, codebooks)
    rows: dict[str, Layer] = {}
    totals = []
    for number, paths in enumerate(groups):
        side, kept = sides[paths[0]], {path: _kept(layers[path].weight) for path in paths}
        count, available = wanted[side], sum(kept.values())
        if codebooks == "per layer" and available:
            count = min(count, available)
        if count > available:
            raise ValueError(
                f"codebook {number} ({', '.join(paths)}): k = {count} for {available} {side}x{side} kernels that are "
                f"not zero; give at most {available}, or sizes={{{side}: ...}}"
            )
        totals.append(Group(count, side * side, available))
        widths = index_bits(count, transforms), SCALE_BITS * scaled
        for path in paths:
            kernels = layers[path].weight.shape[:2].numel()
            rows[path] = Layer(path, kernels, kept[path], side * side, number, count, *widths, None)
    others += tuple(Other(path, layers[path].weight.numel(), "in no codebook") for path in layers if path not in rows)
    return Report(tuple(rows[path] for path in layers if path in rows), tuple(totals), others), groups


def _grouped(sides: Mapping[str, int], codebooks: Codebooks) -> list[list[str]]:
    if codebooks == "per layer":
        return [[path] for path in sides]
    if codebooks == "one":
        return [[path for path in sides if sides[path] == side] for side in dict.fromkeys(sides.values())]
    if isinstance(codebooks, str):
        raise ValueError(f"unknown codebooks {codebooks!r}; there are 'one', 'per layer', and lists of layers")
    groups = [[group] if isinstance(group, str) else list(group) for group in codebooks]
    named = [path for group in groups for path in group]
    for path in named:
        if path not in sides:
            raise ValueError(f"codebooks: no spatial layer {path!r}; there are {', '.join(sides)}")
        if named.count(path) > 1:
            raise ValueError(f"codebooks: layer {path} is named {named.count(path)} times; name it once")
    for group in groups:
        if len({sides[path] for path in group}) != 1:
            found = [f"{path} {sides[path]}x{sides[path]}" for path in group]
            raise ValueError(f"codebooks: a list must hold layers of one kernel size, got [{', '.join(found)}]")
    return groups


def _kept(weight: Tensor) -> int:
    """Kernels that are not all zero; all of them on the meta device."""
    return weight.shape[:2].numel() if weight.is_meta else int(weight.detach().flatten(2).ne(0).any(2).sum())


def _error(conv: nn.Conv2d, clustered: ClusteredConv2d) -> float:
    with torch.no_grad():
        weight = conv.weight.double()
        norm = weight.norm()
        return float((weight - clustered.weight.double()).norm() / norm) if norm else 0.0
