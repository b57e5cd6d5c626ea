"""A run is a pure function of (experiment, profile, seed): stored once, found again by what it depends on."""

import fcntl
import hashlib
import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shrinkbook.evidence import store
from shrinkbook.experiments import profiles
from shrinkbook.experiments.provenance import provenance, remember_source
from shrinkbook.measure.cost import cost, state_bytes
from shrinkbook.measure.energy import meter
from shrinkbook.training import checkpoint, data, weights
from shrinkbook.training.batches import Sampler
from shrinkbook.training.evaluate import Evaluation, evaluate, evaluate_batches, evaluation_batches, through
from shrinkbook.training.fit import Objective, cross_entropy, fit
from shrinkbook.training.recipe import Recipe

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Experiment:
    """What to run and at which budget.

    Args:
        name: ``<paper>.<what>``; a shortened or scaled-down variant is an experiment of its own.
        function: fills a :class:`Context`.
        configs: profile -> settings; everything the result depends on and nothing else.
        version: raised by hand when the code changes what the same settings mean.
        parents: experiments whose run of the same profile and seed must stand first.
        seeds: profile -> how many seeds, where the profile's own number is not right (counting needs one).
        seconds: profile -> expected seconds of one run on two cores, or on a GPU where it is meant for one.
        alone: it times something; never computed beside another run of the same command.
        gpu: too long for a processor; left out of a plan for one.
        needs: public weights it reads; left out of a plan on a machine that has not fetched them.
        packages: what it imports beyond the suite's own requirements; left out of a plan where they are missing.
    """

    name: str
    function: Callable[["Context"], None]
    configs: Mapping[str, Mapping[str, Any]]
    version: int = 1
    parents: tuple[str, ...] = ()
    seeds: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    alone: bool = False
    gpu: bool = False
    needs: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


class Diverged(ValueError):
    """A network whose weights are no numbers: the run ends with what it has measured, and counts as collapsed."""


def counting(
    name: str, function: Callable[["Context"], None], seconds: float, version: int = 1, schedule: str = "none"
) -> Experiment:
    """An experiment that trains and times nothing: the same in every profile, one run on one thread.

    Its schedule is ``arithmetic`` where its cells follow from printed ones.
    """
    every = profiles.PROFILES
    return Experiment(
        name,
        function,
        {profile: {"threads": 1, "schedule": schedule} for profile in every},
        version=version,
        seeds=dict.fromkeys(every, 1),
        seconds=dict.fromkeys(every, seconds),
    )


@dataclass(frozen=True)
class Unit:
    """One run before it is computed: its resolved settings and the identity that follows from them."""

    experiment: Experiment
    profile: str
    seed: int
    config: Mapping[str, Any]
    parents: tuple["Unit", ...]

    @property
    def run_id(self) -> str:
        """Sixteen hexadecimal digits of experiment, version, settings, seed and the parents' identities."""
        identity = {
            "experiment": self.experiment.name,
            "version": self.experiment.version,
            "config": dict(self.config),
            "seed": self.seed,
            "parents": [parent.run_id for parent in self.parents],
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    def find(self, folder: Path) -> dict[str, Any] | None:
        """The stored run, if the folder holds it; what profiles share (counting does) is each one's own."""
        stored = store.find(folder, self.experiment.name, self.run_id)
        return stored and {**stored, "profile": self.profile}

    @property
    def checkpoint(self) -> Path:
        """Where the run keeps its weights (and the state it resumes from)."""
        return store.build_dir() / "checkpoints" / f"{self.experiment.name}-{self.run_id}.safetensors"

    def part(self, name: str) -> Path:
        """The same for one of several networks that the run trains."""
        return self.checkpoint.with_suffix(f".{name.replace(' ', '-')}.safetensors")


class Context:
    """What an experiment's function gets and fills: settings, data, parents on one side, results on the other."""

    def __init__(self, unit: Unit, device: str, parents: Mapping[str, dict[str, Any]], progress: Progress) -> None:
        self.unit, self.seed, self.config = unit, unit.seed, unit.config
        self.device, self.parents, self.progress = device, parents, progress
        self.data: data.DataSet | None = None
        self.status = "finished"
        self.collapsed: list[str] = []
        self.stages: dict[str, Any] = {}
        self.evaluations: dict[str, Evaluation] = {}
        self.cells: dict[str, dict[str, dict[str, float]]] = {}
        self.measurements: dict[str, Any] = {}
        self.per_image: dict[str, dict[str, str]] = {}
        self.per_image_pairs: dict[str, list[list[str]]] = {}
        self.fixed_network = False
        self.history: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = {}

    def load_data(self, **options: Any) -> data.DataSet:
        """The data set named in the settings, on the run's device."""
        self.data = data.load(self.config["data"], **options).to(self.device)
        return self.data

    def cell(self, address: str, value: float) -> None:
        """Our value for the printed cell ``table/row/column``."""
        table, row, column = address.split("/")
        self.cells.setdefault(table, {}).setdefault(row, {})[column] = value

    def recipe(self, settings: Mapping[str, Any]) -> Recipe:
        """A training recipe from plain settings; precision is the run's."""
        settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        return Recipe(**settings, dtype=self.config["dtype"])

    def train(
        self,
        model: nn.Module,
        recipe: Recipe,
        phase: str,
        resume: Path | None = None,
        curve: dict[float, Evaluation] | None = None,
        objective: Objective = cross_entropy,
        sampler: Sampler | None = None,
        notes: Callable[[], Mapping[str, float]] | None = None,
        seed: int | None = None,
        replay: bool = False,
    ) -> nn.Module:
        """Train in place, say so, and note history, seconds and collapse.

        Args:
            resume: checkpoint to save to and continue from.
            curve: gets the test images' evaluation at 0, after every epoch, and within the first one after the shares
                that the settings' ``looks`` names; for a figure, nothing may be chosen by it. Its time is not counted.
            objective: the loss, where it is not cross entropy.
            sampler: composes the batches, where not every image comes once an epoch.
            notes: called after every epoch; what it returns joins the epoch's row of the history.
            seed: of the order of the images; the run's own unless given.
            replay: see :func:`shrinkbook.training.fit.fit`.
        """

        def look(epoch: float) -> None:
            if curve is not None:
                curve[epoch] = self.evaluate(model)

        def tell(row: dict[str, Any]) -> None:
            look(row["epoch"] + 1)
            if row["seconds"] > 5 or row["epoch"] + 1 == recipe.epochs:
                done = f"epoch {row['epoch'] + 1}/{recipe.epochs}"
                self.progress(f"{phase}: {done}, {row['train_accuracy']:.1f} % in training")

        assert self.data is not None, "load_data() comes before train()"
        looks = () if curve is None else self.config.get("looks", ())
        look(0)
        result = fit(
            model, self.data, recipe, self.seed if seed is None else seed, self.device, resume, tell, objective,
            looks=looks, look=look, sampler=sampler, notes=notes, replay=replay,
        )  # fmt: skip
        self.history += [{"phase": phase, **row} for row in result.history]
        self.seconds[phase] = round(self.seconds.get(phase, 0) + result.seconds, 3)
        if result.status == "collapsed":
            self.status = "collapsed"
            self.collapsed.append(phase)
        return model

    def evaluate(self, model: nn.Module) -> Evaluation:
        """The model on the test images, at the run's precision."""
        assert self.data is not None, "load_data() comes before evaluate()"
        return evaluate(model, self.data, self.device, dtype=self.config["dtype"])

    def evaluate_tail(self, head: nn.Module, tail: nn.Module) -> Callable[[nn.Module], Evaluation]:
        """As :meth:`evaluate` for a network cut in two: the head runs now, once; each call runs the tail, whatever
        happened to its weights since. The network it is called with is not looked at: the tail shares its weights."""
        assert self.data is not None, "load_data() comes before evaluate_tail()"
        dtype = self.config["dtype"]
        kept = through(head, evaluation_batches(self.data, self.device), self.device, dtype)
        return lambda _: evaluate_batches(tail, kept, self.device, dtype)

    def accuracy(self, model: nn.Module) -> float:
        """Test accuracy in percent."""
        return self.evaluate(model).accuracy

    def stage(self, name: str, model: nn.Module) -> float:
        """Measure one stage of a network's life (original, slimmed, tuned, scratch, ...); returns its test accuracy.

        Right answers image by image stay in ``evaluations``.
        """
        assert self.data is not None, "load_data() comes before stage()"
        counted = cost(model, tuple(self.data.x_test.shape[1:]))
        self.evaluations[name] = self.evaluate(model)
        accuracy = self.evaluations[name].accuracy
        self.stages[name] = {
            "accuracy": {"last": accuracy, "best_by_val": None},
            "mac": counted.mac,
            "weights": counted.weights,
            "bytes": state_bytes(model),
            "latency": None,
        }
        return accuracy

    def load_parent(self, model: nn.Module, name: str | None = None) -> nn.Module:
        """Fill ``model`` with the weights of a parent, by default the only one; retrained if its checkpoint is gone, or
        was left in the middle of that, and by one process only."""
        (parent,) = [one for one in self.unit.parents if name in (None, one.experiment.name)]
        with _lock(parent.run_id):
            if not checkpoint.complete(parent.checkpoint):
                self.progress(f"the weights of {parent.experiment.name} are not here: training them again")
                _execute(parent, self.device, self.progress)
        state, _ = checkpoint.load(parent.checkpoint)
        weights = {name.removeprefix("model/"): value for name, value in state.items() if name.startswith("model/")}
        model.load_state_dict(weights)
        return model.to(self.device)


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
