"""Symmetries of the square that transform-invariant clustering applies to kernels (Son et al. 2018)."""

import torch
from torch import Tensor

TRANSFORM_SETS = (1, 2, 4, 8)


def permutations(side: int, transforms: int) -> Tensor:
    """The transforms Phi_t as permutations of a flattened kernel: Phi_t(m) = m[row t].

    1 is the identity; 2 adds the horizontal flip; 4 adds the vertical flip and both; 8 adds these four of the kernel
    turned by 90 degrees, so that all symmetries of the square are there. The centre element never moves.

    Args:
        side: height and width of the kernels.
        transforms: one of ``TRANSFORM_SETS``.

    Returns:
        (transforms, side * side) int64, the identity first, closed under composition and inverse.

    Raises:
        ValueError: another number of transforms, a side below 1.
    """
    if transforms not in TRANSFORM_SETS:
        sets = ", ".join(map(str, TRANSFORM_SETS))
        raise ValueError(f"transforms = {transforms!r} is no set of symmetries; choose from {sets}")
    if side < 1:
        raise ValueError(f"side = {side} is not the side of a kernel; give 1 or more")
    square = torch.arange(side * side).view(side, side)
    rows = [square, square.flip(1), square.flip(0), square.flip(0, 1)]
    rows += [row.rot90() for row in rows]
    return torch.stack(rows[:transforms]).flatten(1)


def inverse(perms: Tensor) -> Tensor:
    """The permutations that undo each row: m[perms[t]][inverse(perms)[t]] = m."""
    return perms.argsort(dim=1)


def variants(centroids: Tensor, perms: Tensor) -> Tensor:
    """All transformed centroids, (k T, d): row l T + t is Phi_t(mu_l).

    Args:
        centroids: (k, d).
        perms: (T, d).
    """
    return centroids[:, perms].flatten(0, 1)
