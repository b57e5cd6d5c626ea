"""Evaluations of a search on several processes: the same numbers, sooner."""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

import torch

from shrinkbook.experiments import profiles
from shrinkbook.experiments.steps import Proxy
from shrinkbook.methods.metapruning_search import Spread
from shrinkbook.methods.metapruning_space import Genes

_PROXY: list[Proxy] = []


@contextmanager
def spreading(proxy: Proxy) -> Iterator[Spread]:
    """How candidates are evaluated: here, or on as many processes as were asked for, each with the run's threads."""
    processes = int(os.environ.get(profiles.PROCESSES, "1"))
    if processes == 1:
        yield map
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, context, _begin, (proxy, torch.get_num_threads())) as pool:
        yield lambda _, vectors: pool.map(_evaluated, vectors)


def _begin(proxy: Proxy, threads: int) -> None:
    torch.set_num_threads(threads)
    _PROXY[:] = [proxy]


def _evaluated(genes: Genes) -> float:
    return _PROXY[0](genes)
