"""One step of transform-invariant Lloyd in plain PyTorch (Son et al. 2018): slow, short and obviously right.

:mod:`shrinkbook.methods.kernel_kmeans` does the same in a compiled loop, and fills clusters that have no members.
"""

import torch
from torch import Tensor

from shrinkbook.methods.kernel_transforms import inverse, variants


def assign(points: Tensor, centroids: Tensor, perms: Tensor) -> tuple[Tensor, Tensor]:
    """For every point the nearest of the k T transformed centroids: argmin over l and t of || x_i - Phi_t(mu_l) ||^2.

    Args:
        points: (n, d).
        centroids: (k, d).
        perms: (T, d), Phi_t(m) = m[perms[t]].

    Returns:
        labels l and transforms t, each (n,) int64.
    """
    distances = torch.cdist(points, variants(centroids, perms), compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.argmin(1)
    return nearest // len(perms), nearest % len(perms)


def update(points: Tensor, labels: Tensor, transforms: Tensor, centroids: Tensor, perms: Tensor) -> Tensor:
    """The centroids that fit the members best: undo each member's transform, then average over the cluster.

    Args:
        points: (n, d).
        labels, transforms: (n,), as :func:`assign` gives them.
        centroids: (k, d); one without members stays where it is.
        perms: (T, d).

    Returns:
        (k, d), the new centroids.
    """
    turned_back = points.gather(1, inverse(perms)[transforms])
    sums = torch.zeros_like(centroids).index_add(0, labels, turned_back)
    members = labels.bincount(minlength=len(centroids))[:, None]
    return torch.where(members > 0, sums / members.clamp(min=1), centroids)
