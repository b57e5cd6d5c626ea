"""Lloyd's k-means on short vectors, with or without transforms of the centroids (Son et al. 2018, equation of TIC).

min over centroids mu, indices l and transforms t of sum_i || x_i - Phi_{t_i}(mu_{l_i}) ||^2. Points are held in tiles,
dimension by dimension, so that one compiled loop compares a tile with two centroids at a time and keeps the nearest;
no distance is written out. Sums are kept in double precision and in an order that the number of threads
(``torch.get_num_threads``) does not change.
"""

import math
import operator
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shrinkbook.methods.kernel_transforms import inverse, variants

Start = Literal["random", "k-means++"] | Tensor

UNROLLED = 25  # dimensions summed in registers; longer vectors are summed in several passes
CHUNKS = 64  # parts of the points with sums of their own, at most; the fewest that keep many cores busy
SMALLEST_CHUNK = 16  # tiles


@dataclass(frozen=True)
class KMeans:
    """A clustering of n points.

    Args:
        centroids: (k, d) float32.
        labels: (n,) int64, the nearest of these centroids; of equally near ones the lowest.
        transforms: (n,) int64, the transform under which it is the nearest.
        inertia: sum of the squared distances to the transformed centroids.
        iterations: how often the centroids were averaged.
        converged: the last average changed no label and no transform.
    """

    centroids: Tensor
    labels: Tensor
    transforms: Tensor
    inertia: float
    iterations: int
    converged: bool


def kmeans(
    points: Tensor,
    k: int,
    perms: Tensor | None = None,
    *,
    start: Start = "random",
    seed: int = 0,
    max_iterations: int = 100,
) -> KMeans:
    """Lloyd's iterations until no label and no transform changes.

    Each assigns every point to the nearest of the k T transformed centroids, undoes the transform of the members, and
    averages them. A cluster without members moves to the point that is farthest from its centroid.

    Args:
        points: (n, d), computed in float32 on the CPU.
        k: number of centroids, 1 to n.
        perms: (T, d) transforms Phi_t(m) = m[perms[t]] that form a group; None is the identity alone.
        start: ``random`` takes k different points, as the authors do; ``k-means++`` (Arthur and Vassilvitskii 2007)
            draws each with probability proportional to the squared distance from those before; or k centroids (k, d).
        seed: of the start.
        max_iterations: the limit; the authors' code allows 4500.

    Raises:
        ValueError: an argument out of range or of the wrong shape, points that are not finite.
    """
    values, rows = _checked(points, k, perms, start, max_iterations)
    with ExitStack() as stack:
        tiled = _Tiled(values, stack)
        if isinstance(start, Tensor):
            centroids = start.detach().to("cpu", torch.float32, copy=True)
        elif start == "random":
            centroids = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))[:k]]
        else:
            centroids = _plus_plus(tiled, k, rows, seed)
        return _lloyd(tiled, centroids, rows, max_iterations)


def _lloyd(tiled: "_Tiled", centroids: Tensor, perms: Tensor, max_iterations: int) -> KMeans:
    k, transforms = len(centroids), len(perms)
    undo = inverse(perms)
    codes = np.full(len(tiled.points), -1, np.int32)  # label * T + transform
    iterations = 0
    while True:
        changed, sums, counts = tiled.assign(variants(centroids, perms), codes)
        if not changed or iterations == max_iterations:
            break
        iterations += 1
        totals = torch.from_numpy(sums).view(k, transforms, -1)
        members = torch.from_numpy(counts).view(k, transforms).sum(1)
        totals = totals.gather(2, undo.expand(k, -1, -1)).sum(1)
        centroids = (totals / members.clamp(min=1)[:, None]).float()
        if not members.all():
            _reseed(tiled, centroids, perms, codes, members == 0)
    inertia = float(tiled.distances(variants(centroids, perms), codes).sum())
    labels, used = (torch.from_numpy(part).long() for part in np.divmod(codes, np.int32(transforms)))
    return KMeans(centroids, labels, used, inertia, iterations, not changed)


def _reseed(tiled: "_Tiled", centroids: Tensor, perms: Tensor, codes: NDArray[np.int32], empty: Tensor) -> None:
    """Move centroids without members, in place, each to the point farthest from its own centroid.

    Points near a centroid that was moved here before count as its members, so two never move to the same point.
    """
    far = tiled.distances(variants(centroids, perms), codes)
    for cluster in empty.nonzero().flatten().tolist():
        centroids[cluster] = tiled.points[int(far.argmax())]
        tiled.nearer(variants(centroids[cluster, None], perms), far)


def _plus_plus(tiled: "_Tiled", k: int, perms: Tensor, seed: int) -> Tensor:
    stream = np.random.default_rng(seed)
    squared = np.full(len(tiled.points), np.inf)
    chosen = [int(stream.integers(len(tiled.points)))]
    while True:
        parts = tiled.nearer(variants(tiled.points[chosen[-1:]], perms), squared)
        if len(chosen) == k:
            return tiled.points[chosen]
        target = stream.random() * parts.sum()
        part = min(int(np.searchsorted(parts.cumsum(), target, side="right")), len(parts) - 1)
        low, high = (bound * tiled.loops.TILE for bound in tiled.bounds[part])
        within = squared[low:high].cumsum()
        index = int(np.searchsorted(within, target - parts[:part].sum(), side="right"))
        chosen.append(low + min(index, len(within) - 1))


class _Tiled:
    """Points (n, d) as (tiles, d, TILE), zero behind the last, and threads that work on chunks of the tiles."""

    def __init__(self, points: Tensor, stack: ExitStack) -> None:
        from shrinkbook.methods import kernel_loops as loops  # here: numba takes long to import, and few runs cluster

        count, size = points.shape
        self.points, self.loops = points, loops
        self.passes = -(-size // UNROLLED)
        self.width = -(-size // self.passes)
        tiles = -(-count // loops.TILE)
        whole = count // loops.TILE
        tiled = torch.zeros(tiles, self.passes * self.width, loops.TILE)
        tiled[:whole, :size] = points[: whole * loops.TILE].view(whole, loops.TILE, size).transpose(1, 2)
        tiled[whole:, :size, : count % loops.TILE] = points[whole * loops.TILE :].T
        self.tiles = tiled.numpy()
        chunk = max(SMALLEST_CHUNK, -(-tiles // CHUNKS))
        self.bounds = [(low, min(low + chunk, tiles)) for low in range(0, tiles, chunk)]
        self.run: Callable[..., Iterable[Any]] = map
        if torch.get_num_threads() > 1 and len(self.bounds) > 1:
            self.run = stack.enter_context(ThreadPoolExecutor(torch.get_num_threads())).map

    def assign(self, centroids: Tensor, codes: NDArray[np.int32]) -> tuple[int, NDArray[np.float64], NDArray[np.int64]]:
        """Write the nearest of the centroids (K, d) of every point to ``codes``.

        Returns:
            How many changed; sums (K, d) and counts (K,) of the members.
        """
        count, size = centroids.shape
        table = np.zeros((count + count % 2, self.passes * self.width), np.float32)
        table[:count, :size] = centroids.numpy()
        half = (table.astype(np.float64) ** 2).sum(1).astype(np.float32) / 2
        half[count:] = np.inf  # makes the number of centroids even and is never the nearest
        loop = self.loops.nearest_loop(self.width, self.passes)
        sums = np.zeros((len(self.bounds), count, size))
        counts = np.zeros((len(self.bounds), count), np.int64)

        def work(part: int) -> int:
            return loop(self.tiles, table, half, codes, sums[part], counts[part], *self.bounds[part])

        changed = sum(self.run(work, range(len(self.bounds))))
        return changed, sums.sum(0), counts.sum(0)

    def nearer(self, centroids: Tensor, squared: NDArray[np.float64]) -> NDArray[np.float64]:
        """Lower ``squared`` (n,) to the squared distance from the nearest of these centroids (K, d) where it is less.

        Returns:
            The sum of the lowered distances of each chunk.
        """
        table = centroids.numpy()

        def work(bounds: tuple[int, int]) -> float:
            return self.loops.nearer(self.tiles, table, squared, *bounds)

        return np.array(list(self.run(work, self.bounds)))

    def distances(self, centroids: Tensor, codes: NDArray[np.int32]) -> NDArray[np.float64]:
        """Squared distance of every point from its own centroid, (n,)."""
        table, squared = centroids.numpy(), np.empty(len(codes))

        def work(bounds: tuple[int, int]) -> None:
            self.loops.distances(self.tiles, table, codes, squared, *bounds)

        list(self.run(work, self.bounds))
        return squared


def _checked(points: Tensor, k: int, perms: Tensor | None, start: Start, max_iterations: int) -> tuple[Tensor, Tensor]:
    """The points as contiguous float32 on the CPU, and the transforms; refuse what does not fit."""
    if points.ndim != 2 or not points.numel() or not points.is_floating_point():
        raise ValueError(f"kmeans: points must be floating (n, d), got {points.dtype} {tuple(points.shape)}")
    count, size = points.shape
    values = points.detach().to("cpu", torch.float32).contiguous()
    largest = float(torch.stack(values.aminmax()).abs().max())
    if not math.isfinite(largest):
        raise ValueError("kmeans: the points hold NaN or infinity; remove them first")
    if size * largest**2 > torch.finfo(torch.float32).max:
        raise ValueError(f"kmeans: points up to {largest:g} are too large for float32 distances; scale them down")
    if not 1 <= operator.index(k) <= count:
        raise ValueError(f"kmeans: k = {k} centroids for {count} points; give 1 to {count}")
    if max_iterations < 1:
        raise ValueError(f"kmeans: max_iterations = {max_iterations}; give 1 or more")
    identity = torch.arange(size)
    rows = identity[None] if perms is None else perms.detach().to("cpu", torch.int64)
    if rows.ndim != 2 or not len(rows) or not torch.equal(rows.sort(1).values, identity.expand(len(rows), -1)):
        raise ValueError(f"kmeans: each row of perms must be a permutation of 0 to {size - 1}")
    if isinstance(start, Tensor):
        if start.shape != (k, size) or not torch.isfinite(start).all():
            raise ValueError(f"kmeans: start must be finite {(k, size)} centroids, got {tuple(start.shape)}")
    elif start not in ("random", "k-means++"):
        raise ValueError(f"kmeans: unknown start {start!r}; there are random, k-means++, or k centroids")
    return values, rows
