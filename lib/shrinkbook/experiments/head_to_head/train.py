"""Every arm made, trained for the same number of steps, measured, and written to a file that is read back."""

import copy
import dataclasses
import json
import time
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from shrinkbook.evidence import store
from shrinkbook.experiments import loop
from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.head_to_head.arms import Arm, arms
from shrinkbook.experiments.head_to_head.forms import (
    Step,
    applied,
    budget_of,
    in_words,
    read,
    resolved,
    search_space,
    write,
)
from shrinkbook.experiments.networks import NETS
from shrinkbook.experiments.public import public_network
from shrinkbook.experiments.run import load_parent
from shrinkbook.experiments.steps import Proxy, finite
from shrinkbook.methods.congruent_distillation import CongruentDistillation
from shrinkbook.methods.correlation_congruence import KERNELS
from shrinkbook.methods.dafl import Teacher, Weights
from shrinkbook.methods.dafl_training import Row, joint_training, noise
from shrinkbook.methods.lccl import gates
from shrinkbook.methods.lccl_saving import saving, sparsity
from shrinkbook.methods.metapruning import PruningNet
from shrinkbook.methods.metapruning_search import Constraint, Evolution, evolve
from shrinkbook.methods.metapruning_space import MacCount, SearchSpace
from shrinkbook.nets import initialize
from shrinkbook.training.batches import shortened, split_validation
from shrinkbook.training.data import IMAGENET_MEAN, IMAGENET_STD, DataSet
from shrinkbook.training.evaluate import at_chance, evaluation_batches

FRESH = 1000  # added to the seed where weights are drawn anew: not those that the trained network grew from
READ_BACK = 200  # test images on which a file's network must answer as the one that was written


def compared(run: Context) -> None:
    """All arms of the settings on one trained network. Each is stored when it is done: a run that was stopped goes on
    with the next. An arm that collapses says so in its own row; the run as a whole does not fail with it."""
    bench = Bench(run)
    run.measurements["budgets"] = {f"{removed:g}": budget for removed, budget in bench.budgets.items()}
    rows = run.measurements["arms"] = {}
    for arm in arms(run.config["removed"], run.config["centroids"]):
        rows[arm.name] = row = bench.row(arm)
        run.progress(f"{arm.name}: {row['accuracy']:.2f} %, {row['seconds']:.0f} s")
    run.status = "finished"


class Bench:
    """The trained network of one run, the budgets that follow from it, and what several arms share.

    Attributes:
        original: the trained network, on the CPU, in evaluation mode.
        shape: (channels, height, width) of an image.
        budgets: share of the maps that go -> multiply-accumulates and bytes on disk of the network without them.
    """

    def __init__(self, run: Context) -> None:
        self.run = run
        public = run.config["weights"] == "public"
        data = run.load_data(**({"normalise": (IMAGENET_MEAN, IMAGENET_STD)} if public else {}))
        count = run.config["test_images"]
        self.data = run.data = dataclasses.replace(data, x_test=data.x_test[:count], y_test=data.y_test[:count])
        model = public_network(run.config["net"]) if public else load_parent(run, NETS[run.config["net"]]())
        if public:
            run.measurements["selection"] = "test"
        self.original = model.cpu().eval()
        self.shape = tuple(data.x_test.shape[1:])
        self.budgets = {}
        for removed in run.config["removed"]:
            path = run.unit.part(f"budget {removed:g}")
            self.budgets[removed] = budget_of(self.original, removed, self.shape, path)

    @cached_property
    def teacher(self) -> nn.Module:
        """The trained network, frozen, on the run's device."""
        return copy.deepcopy(self.original).to(self.run.device).requires_grad_(False)

    @cached_property
    def space(self) -> SearchSpace:
        """The networks that the search may choose from."""
        return search_space(self.original, self.run.config["ratios"])

    @cached_property
    def proxy(self) -> Proxy:
        """The trained PruningNet with images held out of its training: one for all budgets."""
        run, settings = self.run, self.run.config["search"]
        keep, held = split_validation(len(self.data.y_train), settings["val_fraction"], run.seed)
        held = held[: settings["val_images"]]
        part = dataclasses.replace(
            self.data.tested_on(held), x_train=self.data.x_train[keep], y_train=self.data.y_train[keep]
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed + FRESH)
            net = PruningNet(self.space, settings["hidden"])
        run.history = [row for row in run.history if row["phase"] != "PruningNet"]  # an arm done before brought it back
        run.seconds.pop("PruningNet", None)
        self.train(net, "PruningNet", settings["recipe"], data=part, resume=True)
        return Proxy(net.eval(), part, settings["images"], run.device)

    def row(self, arm: Arm) -> dict[str, Any]:
        """What there is to say about one arm, from its file if it was done before."""
        run, path = self.run, self.run.unit.part(arm.name).with_suffix(".json")
        if not path.exists():
            history, seconds = len(run.history), set(run.seconds)
            row = self._computed(arm)
            kept = {
                "row": row, "stage": run.stages[arm.name], "history": run.history[history:],
                "seconds": {name: spent for name, spent in run.seconds.items() if name not in seconds},
            }  # fmt: skip
            store.write_text(path, json.dumps(kept) + "\n")
            return row
        kept = json.loads(path.read_text(encoding="utf-8"))
        run.stages[arm.name] = kept["stage"]
        run.history += kept["history"]
        run.seconds |= kept["seconds"]
        row = kept["row"]
        return dict(row)

    def _computed(self, arm: Arm) -> dict[str, Any]:
        run, seconds, images = self.run, 0.0, 0
        if arm.method == "searched":  # one PruningNet serves every budget; each arm has to pay for it
            net = self.proxy.net
            seconds, images = run.seconds["PruningNet"], self._images(run.config["search"]["recipe"], net)
        run.status = "finished"  # of this arm's own network, whatever became of the PruningNet
        model, steps, knobs = copy.deepcopy(self.original), list[Step](), list[str]()
        parts = max(1, len(arm.wanted))
        for number in range(parts):
            if number < len(arm.wanted):
                started, model = time.perf_counter(), model.cpu()
                steps.append(self._resolved(model, *arm.wanted[number]))
                knobs.append(in_words(model, steps[-1]))
                model = applied(model, steps[-1], self.shape, run.seed, run.config["iterations"])
                seconds += time.perf_counter() - started
            if arm.random:
                initialize(model, run.seed + FRESH)
            images += self._taught(arm, model, parts)
        seconds += run.seconds.get(arm.name, 0.0)
        accuracy = run.stage(arm.name, model)
        if arm.teaching == "generator" and at_chance(accuracy, self.data.classes):
            run.status = "collapsed"
        row = {
            "method": arm.method, "removed": arm.removed, "steps": steps, "knob": ", ".join(knobs),
            "accuracy": accuracy,
            "mac": run.stages[arm.name]["mac"], "weights": run.stages[arm.name]["weights"],
            **self._on_disk(arm, model), "images": images, "generated": arm.teaching == "generator",
            "seconds": round(seconds, 3), "status": run.status,
        }  # fmt: skip
        return row | self._gated(model)

    def _resolved(self, model: nn.Module, kind: str, value: Any) -> Step:
        """A wanted step with its knob set by the budget, or by the search within it."""
        if kind == "search":
            return {"widths": self._searched(value)}
        budget = self.budgets.get(value) if isinstance(value, float) else None
        return resolved(model, kind, value, self.shape, budget)

    def _searched(self, removed: float) -> dict[str, int]:
        """Widths of the best network within the budget, by accuracy with generated weights on held-out images."""
        limit = Constraint(MacCount(self.space, self.shape), self.budgets[removed]["mac"])
        settings = Evolution(**self.run.config["search"]["evolution"])
        return self.space.widths(evolve(self.space, self.proxy, limit, settings, self.run.seed).best.genes)

    def _taught(self, arm: Arm, model: nn.Module, parts: int) -> int:
        """Train an arm's share of the steps; how many images that took."""
        run = self.run
        if arm.teaching == "nothing":
            return 0
        settings = run.config["fresh" if arm.random else "tune"]
        if arm.teaching == "generator":
            return self._without_data(arm, model)
        recipe = {**settings, "epochs": settings["epochs"] // parts}
        objective: dict[str, Any] = {}
        if arm.teaching == "teacher":
            congruent = CongruentDistillation(self.teacher, KERNELS["rbf2"], **run.config["congruence"])
            objective = {"objective": congruent, "notes": congruent.means}
        self.train(model, arm.name, recipe, **objective)
        return self._images(recipe, model)

    def train(
        self, model: nn.Module, name: str, recipe: dict[str, Any], data: DataSet | None = None, resume: bool = False,
        **how: Any,
    ) -> None:  # fmt: skip
        """Train on short epochs, in an order of images that the run's seed alone decides."""
        run = self.run
        run.data = data or self.data
        sampler = shortened(recipe["batch"], run.config["steps"])
        path = run.unit.part(name) if resume else None
        run.train(model, run.recipe(recipe), name, resume=path, sampler=sampler, **how)
        run.data = self.data

    def _images(self, recipe: dict[str, Any], model: nn.Module) -> int:
        """Images in training steps of a recipe; a PruningNet has fewer than there are, for some are held out."""
        count = len(self.proxy.data.y_train) if isinstance(model, PruningNet) else len(self.data.y_train)
        return int(recipe["epochs"] * min(count, recipe["batch"] * self.run.config["steps"]))

    def _without_data(self, arm: Arm, student: nn.Module) -> int:
        """DAFL: generator and student at once, the student by the recipe of every network with fresh weights."""
        run, config = self.run, self.run.config
        generator, teacher = loop.fresh_generator(run), Teacher(self.teacher, "linear")
        recipe = run.recipe(config["fresh"])
        maker = run.recipe({**config["generator"], "epochs": recipe.epochs, "batch": recipe.batch})
        both = loop.Arm(
            run, arm.name, {"student": student, "generator": generator}, {"student": recipe, "generator": maker}
        )
        optimisers = both.optimisers["generator"], both.optimisers["student"]
        weights = Weights(**config["loss_weights"])

        def steps(source: torch.Generator) -> Iterator[Row]:
            draws = (noise(recipe.batch, generator.latent, source, run.device) for _ in range(config["steps"]))
            return joint_training(generator, student, teacher, optimisers, draws, weights)

        both.train(steps)
        return recipe.epochs * config["steps"] * recipe.batch

    def _on_disk(self, arm: Arm, model: nn.Module) -> dict[str, Any]:
        """Bytes of the network's file, and whether the network that is read from it gives the same outputs."""
        if not finite(model):
            return {"bytes": None, "same_outputs": None}  # a diverged network is not written
        path = self.run.unit.part(f"{arm.name} file")
        model = model.cpu().eval()
        size = write(model, path)
        images = self.data.normalise(self.data.x_test[:READ_BACK]).cpu()
        with torch.inference_mode():
            ours, theirs = model(images), read(path, model)(images)
        return {"bytes": size, "same_outputs": torch.allclose(ours, theirs, rtol=0, atol=0, equal_nan=True)}

    def _gated(self, model: nn.Module) -> dict[str, Any]:
        """Of a network with gates: the zeros of each, and the multiply-accumulates that are left, gates included."""
        if not gates(model):
            return {}
        model = model.to(self.run.device).eval()
        batches: Iterator[Tensor] = (images for images, _ in evaluation_batches(self.data, self.run.device))
        try:
            zeros = {path: one.mean for path, one in sparsity(model, batches).items()}
        except ValueError:  # a diverged network has no zeros to count: nothing can be skipped
            return {"zeros": None}
        return {"zeros": zeros, "mac": saving(model, self.shape, zeros).mac_after}
