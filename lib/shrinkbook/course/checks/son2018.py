"""What clustering of kernels must do (Son et al. 2018): units and scales, symmetries, one step of Lloyd, bits."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shrinkbook.course.checks.compare import agree, drawn
from shrinkbook.course.checks.refusals import refused

Normalise = Callable[[Tensor], tuple[Tensor, Tensor]]
Permutations = Callable[[int, int], Tensor]
Assign = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Update = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def symmetries(side: int, count: int) -> Tensor:
    """The first ``count`` symmetries of the square as permutations, by hand: where each element comes from.

    In the order identity, left and right exchanged, top and bottom exchanged, both, and these four turned by a quarter.
    """
    last = side - 1
    places = [
        lambda i, j: (i, j),
        lambda i, j: (i, last - j),
        lambda i, j: (last - i, j),
        lambda i, j: (last - i, last - j),
    ]
    turned = [lambda i, j, place=place: place(j, last - i) for place in places]
    pixels = list(itertools.product(range(side), repeat=2))
    rows = [[i * side + j for i, j in (place(*pixel) for pixel in pixels)] for place in (*places, *turned)]
    return torch.tensor(rows[:count])


def splits_into_units_and_scales(normalise: Normalise, count: int, side: int, seed: int) -> None:
    """Units of norm 1 with a centre that is not negative, times their scales, are the kernels; -w has the unit of w."""
    kernels = drawn(count, side, side, seed=seed)
    units, scales = _pair("normalise(kernels)", normalise(kernels))
    norms = torch.tensor([sum(value**2 for value in kernel.flatten().tolist()) ** 0.5 for kernel in kernels]).double()
    signs = torch.tensor([-1.0 if kernel[side // 2, side // 2] < 0 else 1.0 for kernel in kernels]).double()
    mistakes = {
        "the sign of the centre is missing: a kernel and its negative must share a unit": norms,
        "the sign is that of the centre element, not of the sum": norms * kernels.sum((1, 2)).sign(),
        "the norm is the Euclidean one, not the sum of absolute values": signs * kernels.abs().sum((1, 2)),
        "take the square root": signs * norms**2,
    }
    agree("the scales", scales, signs * norms, mistakes)
    wrong = {
        "the sign of the centre is missing: every unit's centre is positive": kernels / norms[:, None, None],
        "multiplied instead of divided": kernels * scales[:, None, None],
    }
    agree("the units", units, kernels / (signs * norms)[:, None, None], wrong)
    agree("the units of the negative kernels, which are the same,", normalise(-kernels)[0], units)


def normalises_zeros(normalise: Normalise) -> None:
    """A centre of 0 counts as positive; a kernel of zeros has the scale 0 and stays zero."""
    kernels = drawn(3, 3, 3, seed=0)
    kernels[0, 1, 1], kernels[1] = 0.0, 0.0
    units, scales = _pair("normalise(kernels)", normalise(kernels))
    agree("the scale of a kernel with centre 0, its norm with the sign +1,", scales[0], kernels[0].norm())
    agree("the scale of a kernel of zeros", scales[1], torch.tensor(0.0))
    agree("the unit of a kernel of zeros (0 / 0 is not a number; divide by 1 there)", units[1], torch.zeros(3, 3))
    agree("the unit of the kernel after it", units[2].flatten().norm(), torch.tensor(1.0))


def are_the_symmetries(permutations: Permutations, side: int, count: int) -> None:
    """The transforms of the paper in their order, as permutations that form a group and leave the centre alone."""
    found, right = permutations(side, count), symmetries(side, count)
    what = f"permutations({side}, {count})"
    assert isinstance(found, Tensor), f"{what} is a {type(found).__name__}; it should be a tensor"
    assert found.shape == right.shape, f"{what} has shape {tuple(found.shape)}; expected {tuple(right.shape)}"
    assert found.dtype == torch.int64, f"{what} is {found.dtype}; indices are int64"
    for t, row in enumerate(found):
        assert row.sort().values.tolist() == list(range(side * side)), f"row {t} of {what} is no permutation"
    for t in range(min(count, 4)):
        wanted = ("the identity", "the left-right flip", "the top-bottom flip", "both flips")[t]
        assert torch.equal(found[t], right[t]), (
            f"row {t} of {what} is {found[t].tolist()}; {wanted} is {right[t].tolist()}"
        )
    rows = {tuple(row.tolist()) for row in found}
    assert len(rows) == count, f"{what} has only {len(rows)} different rows"
    assert rows == {tuple(row.tolist()) for row in right}, (
        f"{what}: the last four should be the first four turned by a quarter, so that all symmetries are there"
    )


def other_sets_are_refused(permutations: Permutations) -> None:
    """Only 1, 2, 4 or 8 transforms, and a side of at least 1."""
    for side, count in ((3, 3), (3, 0), (3, 16), (0, 1)):
        refused(f"permutations({side}, {count})", lambda side=side, count=count: permutations(side, count))  # type: ignore[misc]


def undoes(inverse: Callable[[Tensor], Tensor], count: int, size: int, seed: int) -> None:
    """m[perm][inverse of perm] is m again, row by row."""
    generator = torch.Generator().manual_seed(seed)
    perms = torch.stack([torch.randperm(size, generator=generator) for _ in range(count)])
    right = torch.tensor([[row.index(j) for j in range(size)] for row in perms.tolist()])
    agree("inverse(perms)", inverse(perms), right, {"a flip undoes itself, a turn does not": perms})


def all_variants(variants: Callable[[Tensor, Tensor], Tensor], k: int, side: int, count: int, seed: int) -> None:
    """Row l T + t is centroid l under transform t."""
    centroids, perms = drawn(k, side * side, seed=seed), symmetries(side, count)
    right = torch.stack([centroids[label][perm] for label in range(k) for perm in perms])
    by_transform = torch.stack([centroids[label][perm] for perm in perms for label in range(k)])
    mistakes = {
        "first all transforms of centroid 0, then all of centroid 1: yours are the other way round": by_transform
    }
    agree("variants(centroids, perms)", variants(centroids, perms), right, mistakes)


def assigns_the_nearest(assign: Assign, n: int, k: int, side: int, count: int, seed: int) -> None:
    """Label and transform are those of the smallest distance, tried one by one."""
    points, centroids, perms = _clustering(n, k, side, count, seed)
    labels, transforms = _pair("assign(points, centroids, perms)", assign(points, centroids, perms))
    right, plain = _nearest(points, centroids, perms), _nearest(points, centroids, perms[:1])
    mistakes = {
        "only the first transform is tried; compare with all k T transformed centroids": plain[:, 0],
        "labels and transforms are exchanged": right[:, 1],
        "this is the row of variants; row l T + t belongs to centroid l": right[:, 0] * count + right[:, 1],
    }
    agree("the labels", labels, right[:, 0], mistakes)
    agree("the transforms", transforms, right[:, 1])


def averages_the_members(update: Update, n: int, k: int, side: int, count: int, seed: int) -> None:
    """A centroid is the mean of its members with their transforms undone; one without members stays."""
    points, centroids, perms = _clustering(n, k, side, count, seed)
    pairs = _nearest(points, centroids, perms)
    pairs[pairs[:, 0] == k - 1, 0] = 0  # the last cluster is empty
    untouched = centroids.clone()
    found = update(points, pairs[:, 0], pairs[:, 1], centroids, perms)
    assert torch.equal(centroids, untouched), "update changed the centroids that it was given; make a new tensor"
    undo = perms.argsort(1)

    def means(turn: Callable[[Tensor, int], Tensor]) -> Tensor:
        rows = centroids.clone()
        for label in range(k):
            members = [turn(point, t) for point, (own, t) in zip(points, pairs.tolist(), strict=True) if own == label]
            if members:
                rows[label] = torch.stack(members).mean(0)
        return rows

    right = means(lambda point, t: point[undo[t]])
    emptied = torch.where(pairs[:, 0].bincount(minlength=k)[:, None] > 0, right, 0.0)
    mistakes = {
        "the transforms are not undone before averaging": means(lambda point, t: point),
        "the transforms are applied once more; undo them": means(lambda point, t: point[perms[t]]),
        "a cluster without members lost its centroid; it should stay where it is": emptied,
    }
    agree("update(...)", found, right, mistakes)


def steps_never_cost_more(assign: Assign, update: Update, n: int, k: int, side: int, count: int, seed: int) -> None:
    """Assigning and averaging in turns, the sum of squared distances falls or stays, and falls at first."""
    points, centroids, perms = _clustering(n, k, side, count, seed)
    costs: list[float] = []
    for _ in range(6):
        labels, transforms = assign(points, centroids, perms)
        costs.append(cost(points, labels, transforms, centroids, perms))
        centroids = update(points, labels, transforms, centroids, perms)
        costs.append(cost(points, labels, transforms, centroids, perms))
    for step, (before, after) in enumerate(itertools.pairwise(costs)):
        which = "update" if step % 2 == 0 else "assign"
        assert after <= before * (1 + 1e-9), (
            f"{which} raised the sum of squared distances from {before:.4f} to {after:.4f}"
        )
    assert costs[-1] < costs[0], f"after six steps the sum of squared distances is still {costs[0]:.4f}"


def cost(points: Tensor, labels: Tensor, transforms: Tensor, centroids: Tensor, perms: Tensor) -> float:
    """The sum of the squared distances of points from their transformed centroids."""
    return float((points - centroids[labels].gather(1, perms[transforms])).square().sum())


def index_bits_suffice(index_bits: Callable[[int, int], int], most: int) -> None:
    """The fewest bits that tell k centroids, and those that tell T transforms, apart."""
    for k, transforms in itertools.product(range(1, most + 1), (1, 2, 4, 8)):
        right = sum(next(bits for bits in range(20) if 2**bits >= count) for count in (k, transforms))
        found = index_bits(k, transforms)
        why = "round log2 up"
        if found == right + 1:
            why = f"numbers from 0 to {k - 1} need that many"
        elif found == index_bits(k, 1) and transforms > 1:
            why = "the transform needs bits too"
        assert found == right, f"index_bits({k}, {transforms}) is {found}, not {right}: {why}"


def bits_add_up(bits: Callable[..., int], kernels: int, k: int, area: int, transforms: int, scaled: bool) -> None:
    """Indices, transforms and scales of N kernels, and the codebook once."""
    each = (k - 1).bit_length() + (transforms - 1).bit_length()
    codebook, right = k * area * 32, kernels * (each + 16 * scaled) + k * area * 32
    mistakes = {
        "the codebook is missing": right - codebook,
        "the codebook holds k centroids; their transforms are not stored": right + (transforms - 1) * codebook,
        "the codebook's numbers have 32 bits": right - codebook // 32 * 31,
        "scales are stored only if scaled, and take 16 bits": kernels * (each + 16 * (not scaled)) + codebook,
        "a scale takes 16 bits": kernels * (each + 32 * scaled) + codebook,
        "the scales are missing": kernels * each + codebook,
    }
    what = f"bits({kernels}, {k}, area={area}, transforms={transforms}, scaled={scaled})"
    agree(what, bits(kernels, k, area=area, transforms=transforms, scaled=scaled), right, mistakes)
    half = right - codebook // 2
    agree(f"{what[:-1]}, codebook_bits=16)", bits(kernels, k, area, transforms, scaled, codebook_bits=16), half)


def empty_clusters_are_filled(lloyd: Callable[..., tuple[Tensor, Tensor, Tensor]], count: int) -> None:
    """From a start with two useless centroids every cluster gets members, and they are where k-means should end.

    Args:
        lloyd: (points, centroids, perms) -> centroids, labels, transforms, run until nothing changes.
    """
    crowds = [0.1 * drawn(40, 9, seed=0), 5 + 0.1 * drawn(40, 9, seed=1), torch.full((1, 9), 40.0, dtype=torch.float64)]
    points, perms = torch.cat([*crowds, torch.full((1, 9), -30.0, dtype=torch.float64)]), symmetries(3, count)
    start = torch.stack([points[0], points[50], torch.full_like(points[0], 1e4), torch.full_like(points[0], -1e4)])
    centroids, labels, transforms = lloyd(points, start, perms)
    members = labels.bincount(minlength=4).tolist()
    assert min(members) > 0, (
        f"the clusters have {members} members; move an empty one to the point farthest from its own"
    )
    found = cost(points, labels, transforms, centroids, perms)
    right = sum(float((crowd - crowd.mean(0)).square().sum()) for crowd in crowds)
    assert found <= right * (1 + 1e-9), (
        f"the sum of squared distances is {found:.3f}; four clusters can reach {right:.3f}"
    )


def _pair(what: str, found: Any) -> tuple[Tensor, Tensor]:
    assert isinstance(found, tuple | list) and len(found) == 2, f"{what} should give two tensors: is there a return?"
    return found[0], found[1]


def _clustering(n: int, k: int, side: int, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points, centroids that are other random vectors, and transforms."""
    return drawn(n, side * side, seed=seed), drawn(k, side * side, seed=seed + 1), symmetries(side, count)


def _nearest(points: Tensor, centroids: Tensor, perms: Tensor) -> Tensor:
    """(n, 2) labels and transforms, distance by distance; the first of equal ones."""
    rows = []
    for point in points:
        tried = [
            (float((point - centroid[perm]).square().sum()), label, t)
            for label, centroid in enumerate(centroids)
            for t, perm in enumerate(perms)
        ]
        rows.append(min(tried)[1:])
    return torch.tensor(rows)
