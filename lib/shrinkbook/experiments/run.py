"""A run is a pure function of (experiment, profile, seed): stored once, found again by what it depends on."""

import fcntl
import importlib.util
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shrinkbook.evidence import store
from shrinkbook.experiments import profiles
from shrinkbook.experiments.experiment import Context, Diverged, Experiment, Progress, Unit
from shrinkbook.experiments.provenance import provenance, remember_source
from shrinkbook.measure.energy import meter
from shrinkbook.training import checkpoint, weights


def unit(
    experiments: Mapping[str, Experiment],
    name: str,
    profile: str,
    seed: int,
    overrides: Mapping[str, Any] | None = None,
    parents: Mapping[str, Unit] | None = None,
) -> Unit:
    """Resolve one run.

    Args:
        experiments: every experiment by name.
        overrides: settings to change, for a reader who tries something else; a different identity follows.
        parents: by experiment, runs that stand in for the profile's own.

    Raises:
        ValueError: unknown experiment, profile, or setting; an experiment that this profile does not run.
    """
    chosen = profiles.profile(profile)
    if name not in experiments:
        raise ValueError(f"unknown experiment {name!r}; there are {', '.join(sorted(experiments))}")
    experiment = experiments[name]
    if profile not in experiment.configs:
        raise ValueError(f"{name} has no budget in profile {profile}; it runs in {', '.join(experiment.configs)}")
    if seed < 0:
        raise ValueError(f"seed {seed} is negative; use 0, 1, 2, ...")
    config = {
        "threads": chosen.threads,
        "dtype": "float32",
        "data": None,
        "schedule": "none",
        **experiment.configs[profile],
    }
    for key, value in (overrides or {}).items():
        if key not in config:
            raise ValueError(f"{name} has no setting {key!r}; it has {', '.join(config)}")
        config[key] = value
    given = parents or {}
    chosen_parents = tuple(given.get(name) or unit(experiments, name, profile, seed) for name in experiment.parents)
    return Unit(experiment, profile, seed, config, chosen_parents)


def seeds_of(experiment: Experiment, profile: str, seeds: Sequence[int] | None = None) -> list[int]:
    """The seeds an experiment runs: its own number where it has one, else those asked for, else the profile's."""
    if profile in experiment.seeds:
        return list(range(experiment.seeds[profile]))
    return list(range(profiles.profile(profile).seeds)) if seeds is None else list(seeds)


def ensure(wanted: Unit, device: str | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """The run, from this machine's build folder if it stands there, else computed and stored.

    Two processes that want the same run compute it once: the second waits for the first.
    """
    progress = progress or (lambda message: None)
    if stored := wanted.find(store.runs_dir()):
        return stored
    with _lock(wanted.run_id):
        if stored := wanted.find(store.runs_dir()):
            return stored
        run = _execute(wanted, device, progress)
        store.write(run, store.runs_dir())
    return run


def load_parent(run: Context, model: nn.Module, name: str | None = None) -> nn.Module:
    """Fill ``model`` with the weights of a run's parent, by default the only one; retrained if its checkpoint is gone,
    or was left in the middle of that, and by one process only."""
    (parent,) = [one for one in run.unit.parents if name in (None, one.experiment.name)]
    with _lock(parent.run_id):
        if not checkpoint.complete(parent.checkpoint):
            run.progress(f"the weights of {parent.experiment.name} are not here: training them again")
            _execute(parent, run.device, run.progress)
    state, _ = checkpoint.load(parent.checkpoint)
    weights = {name.removeprefix("model/"): value for name, value in state.items() if name.startswith("model/")}
    model.load_state_dict(weights)
    return model.to(run.device)


def obstacle(experiment: Experiment, device: str) -> str:
    """Why an experiment is not in a plan for this machine, empty if it is: always where nothing may be computed."""
    if stored_only():
        return ""
    if experiment.gpu and device == "cpu":
        return "needs a GPU"
    missing = [name for name in experiment.needs if not weights.PUBLIC[name].path.exists()]
    found = [f"needs `make data DATA={name}`" for name in missing]
    if any(importlib.util.find_spec(package) is None for package in experiment.packages):
        found.append("needs `make phone-extra`")
    return " and ".join(found)


def offered(wanted: Iterable[Unit]) -> list[Unit]:
    """These units; where nothing may be computed, those of them that are stored."""
    return [one for one in wanted if not stored_only() or one.find(store.runs_dir())]


def stored_only() -> bool:
    """Whether nothing may be computed (``SHRINKBOOK_STORED=1``): runs of any machine are shown, on any machine."""
    return os.environ.get("SHRINKBOOK_STORED") == "1"


def stored_runs(wanted: Sequence[Unit], folder: Path) -> list[dict[str, Any]]:
    """The runs of these units that a folder of run files holds."""
    return [found for one in wanted if (found := one.find(folder))]


def resolve_device(profile: str, device: str | None) -> str:
    """``cpu`` or ``cuda``: what was asked for, else what the profile says and the machine has.

    Raises:
        ValueError: an unknown device, or a GPU where there is none.
    """
    device = device or profiles.profile(profile).device
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"unknown device {device!r}; there are auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("DEVICE=cuda, but PyTorch sees no GPU here; use DEVICE=cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _execute(wanted: Unit, device: str | None, progress: Progress) -> dict[str, Any]:
    parents = {parent.experiment.name: ensure(parent, device, progress) for parent in wanted.parents}
    device = resolve_device(wanted.profile, device)
    torch.set_num_threads(wanted.config["threads"])
    context = Context(wanted, device, parents, progress)
    remember_source()
    joules, reason = meter(device)
    started = time.perf_counter()
    try:
        wanted.experiment.function(context)
    except Diverged as error:
        context.status = "collapsed"
        progress(str(error))
    seconds = {**context.seconds, "total": round(time.perf_counter() - started, 3)}
    run: dict[str, Any] = {
        "schema": store.SCHEMA,
        "experiment": wanted.experiment.name,
        "version": wanted.experiment.version,
        "profile": wanted.profile,
        "seed": wanted.seed,
        "run_id": wanted.run_id,
        "config": dict(wanted.config),
        "parents": [parent.run_id for parent in wanted.parents],
        "status": context.status,
        "stages": context.stages,
        "cells": context.cells,
        "measurements": context.measurements,
        "history": context.history,
        "seconds": seconds,
        "energy": {"joule": joules and round(joules(), 3), "reason": reason},
        "provenance": provenance(context.data, device, profiles.pinned(wanted.profile)),
    }
    if context.per_image:
        run["per_image"] = context.per_image
        run["per_image_pairs"] = context.per_image_pairs
    if context.fixed_network:
        run["fixed_network"] = True
    return run


@contextmanager
def _lock(run_id: str) -> Iterator[None]:
    path = store.build_dir() / "locks" / run_id
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise store.StoreError(f"{path}: cannot be written ({error.strerror}); choose a folder that can be") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released by the system when the process ends, however it ends
        yield
