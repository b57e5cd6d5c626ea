"""Compiled loops of k-means over tiles of points: nearest centroids, seeding, distances.

Nothing is kept on disk between processes: compiling takes about a second a loop, and an installed package may not be
writable.
"""

import functools
from collections.abc import Callable

import numba
import numpy as np

TILE = 256  # points in a tile: with 9 dimensions, 9 KB of the first-level cache


@functools.cache
def nearest_loop(width: int, passes: int) -> Callable[..., int]:
    """The compiled assignment for vectors of width * passes numbers; constants, so that the inner loop is unrolled.

    || x - mu ||^2 / 2 without its constant term is || mu ||^2 / 2 - x mu.
    """
    size = width * passes
    last = size - width

    @numba.njit(nogil=True, fastmath={"contract", "nsz"})
    def nearest(tiles, table, half, codes, sums, counts, first, end):  # type: ignore[no-untyped-def]
        best = np.empty(TILE, np.float32)
        which = np.empty(TILE, np.int32)
        partial = np.empty((2, TILE), np.float32)
        changed = 0
        for tile in range(first, end):
            x = tiles[tile]
            best[:] = np.inf
            which[:] = 0
            for c in range(0, len(table), 2):
                half0, half1 = half[c], half[c + 1]
                code0, code1 = np.int32(c), np.int32(c + 1)
                if passes > 1:
                    partial[0], partial[1] = half0, half1
                    for done in range(0, last, width):
                        for j in range(TILE):
                            score0, score1 = partial[0, j], partial[1, j]
                            for p in range(width):
                                score0 -= table[c, done + p] * x[done + p, j]
                                score1 -= table[c + 1, done + p] * x[done + p, j]
                            partial[0, j], partial[1, j] = score0, score1
                for j in range(TILE):
                    score0, score1 = half0, half1
                    if passes > 1:
                        score0, score1 = partial[0, j], partial[1, j]
                    for p in range(width):
                        score0 -= table[c, last + p] * x[last + p, j]
                        score1 -= table[c + 1, last + p] * x[last + p, j]
                    low, code = best[j], which[j]
                    code = code0 if score0 < low else code
                    low = score0 if score0 < low else low
                    code = code1 if score1 < low else code
                    low = score1 if score1 < low else low
                    best[j], which[j] = low, code
            for j in range(min(TILE, len(codes) - tile * TILE)):
                code = which[j]
                changed += codes[tile * TILE + j] != code
                codes[tile * TILE + j] = code
                counts[code] += 1
                for p in range(sums.shape[1]):
                    sums[code, p] += x[p, j]
        return changed

    return nearest


@numba.njit(nogil=True)
def nearer(tiles, table, squared, first, end):  # type: ignore[no-untyped-def]
    """Lower ``squared`` to the distance from the centroids of ``table``; returns its sum over these tiles."""
    distance = np.empty(TILE, np.float32)
    total = 0.0
    for tile in range(first, end):
        known = squared[tile * TILE : (tile + 1) * TILE]
        for centroid in table:
            distance[:] = 0
            for p in range(len(centroid)):
                for j in range(TILE):
                    difference = tiles[tile, p, j] - centroid[p]
                    distance[j] += difference * difference
            for j in range(len(known)):
                known[j] = min(known[j], distance[j])
        for j in range(len(known)):
            total += known[j]
    return total


@numba.njit(nogil=True)
def distances(tiles, table, codes, squared, first, end):  # type: ignore[no-untyped-def]
    """Write each point's squared distance from its own centroid to ``squared``, in double precision."""
    for i in range(first * TILE, min(end * TILE, len(codes))):
        total = 0.0
        for p in range(table.shape[1]):
            difference = np.float64(tiles[i // TILE, p, i % TILE]) - table[codes[i], p]
            total += difference * difference
        squared[i] = total
