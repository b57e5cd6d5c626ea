"""An experiment with its budgets, one run of it, identified by all it depends on, and what its function works on."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from shrinkbook.evidence import store
from shrinkbook.experiments import profiles
from shrinkbook.measure.cost import cost, state_bytes
from shrinkbook.training import data
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


class Diverged(ValueError):
    """A network whose weights are no numbers: the run ends with what it has measured, and counts as collapsed."""


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
