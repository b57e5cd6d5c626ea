"""Evaluations of a search, and networks that do not wait for one another, on several processes: the same, sooner."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from typing import Any, TypeVar

import torch

from shrinkbook.experiments import profiles
from shrinkbook.experiments.experiment import Context, Unit
from shrinkbook.experiments.steps import Proxy
from shrinkbook.methods.metapruning_search import Spread
from shrinkbook.methods.metapruning_space import Genes
from shrinkbook.training import checkpoint

_PROXY: list[Proxy] = []
Label = TypeVar("Label", bound=str)
What = TypeVar("What")


@contextmanager
def spreading(proxy: Proxy) -> Iterator[Spread]:
    """How candidates are evaluated: here, or on as many processes as were asked for, each with the run's threads."""
    if _processes() == 1:
        yield map
        return
    with _pool(proxy) as pool:
        yield lambda _, vectors: pool.map(_evaluated, vectors)


def train_ahead(run: Context, train: Callable[[Context, Label, What], object], what: Mapping[Label, What]) -> None:
    """Train networks side by side, if several processes were asked for, and leave their finished checkpoints.

    The run then does what it does anyway, one after another, and finds each training at its end: results, their order
    and what an interrupted run goes on from are those of one process.

    Args:
        train: of a module, given a context of the same run with nothing in it, a label and what it stands for; saves
            to the run's checkpoint of that label.
        what: by label; those that take longest should come first.
    """
    missing = {label: one for label, one in what.items() if not checkpoint.complete(run.unit.part(label))}
    if _processes() == 1 or not missing:
        return
    with _pool() as pool:
        started = {pool.submit(_trained, run.unit, run.device, train, *one): one[0] for one in missing.items()}
        for done in as_completed(started):
            done.result()
            run.progress(f"{started[done]}: trained")


def _processes() -> int:
    return int(os.environ.get(profiles.PROCESSES, "1"))


def _pool(proxy: Proxy | None = None) -> ProcessPoolExecutor:
    """Processes with as many threads each as this one."""
    return ProcessPoolExecutor(_processes(), get_context("spawn"), _begin, (torch.get_num_threads(), proxy))


def _begin(threads: int, proxy: Proxy | None) -> None:
    torch.set_num_threads(threads)
    _PROXY[:] = [] if proxy is None else [proxy]
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed run must not leave processes that wait for work for ever."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _evaluated(genes: Genes) -> float:
    return _PROXY[0](genes)


def _trained(unit: Unit, device: str, train: Callable[..., object], label: str, what: Any) -> None:
    train(Context(unit, device, {}, lambda message: None), label, what)
