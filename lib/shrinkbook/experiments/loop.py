"""One arm of data-free learning: epochs of so many iterations, student measured after each, exact to resume."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from shrinkbook.experiments.experiment import Context
from shrinkbook.methods.dafl import Generator
from shrinkbook.methods.dafl_training import Row
from shrinkbook.training import checkpoint
from shrinkbook.training.batches import derived_seed
from shrinkbook.training.recipe import Recipe, optimiser_of

SAVE_EVERY = 60.0  # seconds
Steps = Callable[[torch.Generator], Iterable[Row]]


class Arm:
    """Networks that train together, each with an optimiser and a recipe.

    Args:
        run: the run that it belongs to.
        name: of the arm; files and history carry it.
        networks: by name; the one called ``student`` is measured.
        recipes: of the networks, by the same names; epochs are those of the first.
    """

    def __init__(
        self, run: Context, name: str, networks: Mapping[str, nn.Module], recipes: Mapping[str, Recipe]
    ) -> None:
        self.run, self.name, self.recipes = run, name, recipes
        self.networks = {part: network.to(run.device).train() for part, network in networks.items()}
        self.optimisers = {part: optimiser_of(network, recipes[part]) for part, network in self.networks.items()}
        self.history: list[dict[str, Any]] = []

    def train(self, steps: Steps, phase: str = "") -> list[dict[str, Any]]:
        """Run the epochs that are missing; returns the history, a row an epoch.

        A row has the means of what the steps saw, the student's test accuracy (for a curve; nothing is chosen by it)
        and seconds. A loss that is not finite ends the arm.

        Args:
            steps: the steps of one epoch, given the source of its random numbers.
            phase: name of the stage where an arm has two.
        """
        label = f"{self.name} {phase}".strip()
        path = self.run.unit.part(label)
        epochs = next(iter(self.recipes.values())).epochs
        history = self._resume(path)
        saved = time.monotonic()
        for epoch in range(len(history), epochs):
            if history and not history[-1]["finite"]:
                break
            started = time.perf_counter()
            self._rate(epoch)
            rows = list(steps(torch.Generator().manual_seed(derived_seed(self.run.seed, epoch))))
            means = {key: torch.stack([row[key].double() for row in rows]).mean().item() for key in rows[0]}
            finite = all(math.isfinite(value) for value in means.values())
            row: dict[str, Any] = {"epoch": epoch, **{k: v if math.isfinite(v) else None for k, v in means.items()}}
            spent = time.perf_counter() - started
            row |= {"test_accuracy": self.run.accuracy(self.networks["student"]), "finite": finite, "seconds": spent}
            history.append(row)
            if epoch + 1 == epochs or time.monotonic() - saved >= SAVE_EVERY:
                self._save(path, history)
                saved = time.monotonic()
            self.run.progress(f"{label}: epoch {epoch + 1}/{epochs}, student {row['test_accuracy']:.1f} %")
        self.run.history += [{"phase": label, **row} for row in history]
        spent = sum(row["seconds"] for row in history)
        self.run.seconds[label] = round(spent, 3)
        self.history += history
        return history

    def _rate(self, epoch: int) -> None:
        for part, optimiser in self.optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = self.recipes[part].rate(epoch)

    def _save(self, path: Path, history: list[dict[str, Any]]) -> None:
        tensors = {
            f"{part}/{name}": value for part, one in self.networks.items() for name, value in one.state_dict().items()
        }
        for part, optimiser in self.optimisers.items():
            for index, state in optimiser.state_dict()["state"].items():
                tensors |= {f"{part}.state/{index}/{key}": value for key, value in state.items() if value is not None}
        checkpoint.save(tensors, path, {"run": self.run.unit.run_id, "history": history})

    def _resume(self, path: Path) -> list[dict[str, Any]]:
        if not path.exists():
            return []
        tensors, metadata = checkpoint.load(path)
        if metadata.get("run") != self.run.unit.run_id:
            raise ValueError(f"{path} belongs to another run: delete it")
        for part, network in self.networks.items():
            own = {
                name.removeprefix(f"{part}/"): value for name, value in tensors.items() if name.startswith(f"{part}/")
            }
            network.load_state_dict(own)
            states: dict[int, dict[str, Any]] = {}
            for name, value in tensors.items():
                if name.startswith(f"{part}.state/"):
                    _, index, key = name.split("/")
                    states.setdefault(int(index), {})[key] = value
            _restore(self.optimisers[part], states)
        history: list[dict[str, Any]] = metadata["history"]
        return history


def fresh_generator(run: Context) -> Generator:
    """PyTorch's own starting weights: those of :func:`initialize` would saturate the tanh before the last layer."""
    assert run.data is not None
    channels, side = run.data.x_test.shape[1:3]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed + 2000)
        return Generator(side, channels, run.config["latent"], run.config["width"]).to(run.device)


def _restore(optimiser: Optimizer, states: dict[int, dict[str, Any]]) -> None:
    optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
