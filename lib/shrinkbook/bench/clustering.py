"""Seconds for a Lloyd iteration beside scikit-learn's: `python -m shrinkbook.bench.clustering`.

Both cluster the same normalised 3x3 kernels from the same centroids, with the same number of iterations and threads:
128 centroids, and 32 centroids under the eight symmetries against scikit-learn's plain 256 (as many to compare with).
All four alternate within one process. Random kernels, as many as VGG-16 has, unless a checkpoint is given.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import sklearn
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from shrinkbook.bench import write
from shrinkbook.bench.throughput import ROUNDS
from shrinkbook.methods.kernel_clustering import normalise
from shrinkbook.methods.kernel_kmeans import kmeans
from shrinkbook.methods.kernel_transforms import permutations
from shrinkbook.training.checkpoint import CheckpointError, load

VGG16_KERNELS = 1_634_496
CASES = {"plain": (128, 1, 128), "TIC8": (32, 8, 256)}  # our centroids, our transforms, scikit-learn's centroids


def compare(points: Tensor, iterations: int) -> dict[str, Any]:
    """Both programs on both cases, in alternating rounds.

    Args:
        points: (n, 9) float32.
        iterations: of Lloyd, in each run; the time of a run, its start included, is divided by it.

    Returns:
        case -> ours, sklearn: seconds for an iteration, medians over the rounds; ratio: median of the rounds' own
        ratios (above 1: ours is faster), with low and high their extremes; inertia: ours over scikit-learn's.
    """
    runs: dict[tuple[str, str], Callable[[], float]] = {}
    for case, (k, transforms, plain_k) in CASES.items():
        runs[case, "ours"] = _ours(points, k, transforms, iterations)
        runs[case, "sklearn"] = _scikit_learn(points, plain_k, iterations)
    kmeans(points[:256], 2)  # compiles
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    inertia: dict[tuple[str, str], float] = {}
    for turn in range(ROUNDS):
        for key in runs if turn % 2 == 0 else reversed(runs):
            started = time.perf_counter()
            inertia[key] = runs[key]()
            seconds[key].append((time.perf_counter() - started) / iterations)
    results = {}
    for case in CASES:
        ours, theirs = seconds[case, "ours"], seconds[case, "sklearn"]
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        results[case] = {
            "ours": statistics.median(ours),
            "sklearn": statistics.median(theirs),
            "ratio": statistics.median(ratios),
            "low": min(ratios),
            "high": max(ratios),
            "inertia": inertia[case, "ours"] / inertia[case, "sklearn"],
            "rounds": [{"ours": a, "sklearn": b} for a, b in zip(ours, theirs, strict=True)],
        }
    return results


def _ours(points: Tensor, k: int, transforms: int, iterations: int) -> Callable[[], float]:
    perms = permutations(3, transforms)
    return lambda: kmeans(points, k, perms, start=points[:k], max_iterations=iterations).inertia


def _scikit_learn(points: Tensor, k: int, iterations: int) -> Callable[[], float]:
    array = points.numpy()

    def run() -> float:
        with threadpool_limits(torch.get_num_threads()):
            model = KMeans(k, init=array[:k], n_init=1, max_iter=iterations, tol=0, algorithm="lloyd")
            return float(model.fit(array).inertia_)

    return run


def random_kernels(count: int) -> Tensor:
    """Normalised 3x3 kernels of independent normal numbers, (count, 9)."""
    drawn = torch.randn(count, 3, 3, generator=torch.Generator().manual_seed(0))
    return normalise(drawn)[0].flatten(1)


def stored_kernels(path: str) -> Tensor:
    """The normalised 3x3 kernels of a checkpoint in random order, (n, 9), without those that are zero."""
    kernels = [tensor.float().flatten(0, 1) for tensor in load(path)[0].values() if tensor.shape[2:] == (3, 3)]
    if sum(map(len, kernels)) < max(k for _, _, k in CASES.values()):
        raise CheckpointError(f"{path} holds fewer 3x3 kernels than centroids: give the weights of a larger network")
    units, scales = normalise(torch.cat(kernels))
    units = units[scales != 0].flatten(1)
    return units[torch.randperm(len(units), generator=torch.Generator().manual_seed(0))]


def main(arguments: list[str] | None = None) -> int:
    """Print the table, write build/bench-clustering.json."""
    parser = argparse.ArgumentParser(prog="python -m shrinkbook.bench.clustering", description=__doc__.split("\n")[0])
    parser.add_argument("--weights", help="a checkpoint (safetensors) whose 3x3 kernels are clustered")
    parser.add_argument("--kernels", type=int, default=VGG16_KERNELS, help="number of random kernels without --weights")
    parser.add_argument("--iterations", type=int, default=10, help="of Lloyd, in each of the rounds")
    options = parser.parse_args(arguments)
    if options.kernels < max(k for _, _, k in CASES.values()) or options.iterations < 1:
        parser.error("at least 256 kernels and one iteration are needed")
    try:
        points = stored_kernels(options.weights) if options.weights else random_kernels(options.kernels)
    except CheckpointError as error:
        parser.error(str(error))
    source = "stored" if options.weights else "random"
    setting = f"{len(points):,} {source} kernels, {torch.get_num_threads()} threads, {options.iterations} iterations"
    print(f"seconds for a Lloyd iteration; {setting}")
    print(f"{'k':<26}{'sklearn':>10}{'ours':>10}{'ratio':>9}   (rounds)     inertia, ours / sklearn")
    results = compare(points, options.iterations)
    for case, r in results.items():
        k, transforms, plain_k = CASES[case]
        name = f"{k}" if transforms == 1 else f"{k} TIC{transforms}, sklearn {plain_k}"
        line = (
            f"{name:<26}{r['sklearn']:>10.4f}{r['ours']:>10.4f}{r['ratio']:>8.2f}x   ({r['low']:.2f}-{r['high']:.2f})"
        )
        print(f"{line}    {r['inertia']:.6f}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"peak memory of the process, both programs: {peak / 1e9:.2f} GB")
    write(
        "clustering",
        {
            "setting": setting,
            "torch": torch.__version__,
            "sklearn": sklearn.__version__,
            "peak_bytes": peak,
            "cases": results,
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
