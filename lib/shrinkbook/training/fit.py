"""Training with SGD or Adam: one loop for every paper, exact to resume, the data resident on the device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shrinkbook.training.batches import Sampler, batches, derived_seed, split_validation
from shrinkbook.training.checkpoint import resume_training, save_training
from shrinkbook.training.data import DataSet
from shrinkbook.training.evaluate import at_chance, evaluate
from shrinkbook.training.precision import precision
from shrinkbook.training.recipe import Recipe, optimiser_of, plain
from shrinkbook.training.replay import Replay, Step

Objective = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Fit:
    """What a training run gave.

    history: a row an epoch: epoch, lr, loss (None where not finite), train_accuracy, val_accuracy (percent), seconds.
    status: "finished" or "collapsed" (a loss that is not finite, or chance level in the last epoch).
    best_by_val: the best validation accuracy in percent, None without a held-out slice; best_state are the weights
    that reached it, while the model itself keeps the last ones.
    """

    history: list[dict[str, Any]]
    status: str
    seconds: float
    best_by_val: float | None = None
    best_state: dict[str, Tensor] | None = None


def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The default objective: (mean cross entropy in float32, logits)."""
    logits = model(images)
    return F.cross_entropy(logits.float(), labels), logits


def train_step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    dtype: str = "float32",
    objective: Objective = cross_entropy,
) -> tuple[Tensor, Tensor]:
    """Forward, backward, update. Returns (loss, number of right answers), both still on the device."""
    with precision(model, images.device, dtype):
        loss, logits = objective(model, images, labels)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return loss.detach(), (logits.detach().argmax(1) == labels).sum()


def train_epoch(model: nn.Module, stream: Iterator[tuple[Tensor, Tensor]], step: Step) -> tuple[float, float]:
    """Train on every batch of a stream. Returns (mean loss, accuracy in percent) as seen while training."""
    model.train()
    losses, right, sizes = [], [], []
    for images, labels in stream:
        loss, correct = step(images, labels)
        losses.append(loss.float())
        right.append(correct)
        sizes.append(len(labels))
    seen = torch.tensor(sizes, dtype=torch.float64)
    mean = (torch.stack(losses).cpu().double() @ seen / seen.sum()).item()
    return mean, 100 * int(torch.stack(right).sum()) / int(seen.sum())


def fit(
    model: nn.Module,
    data: DataSet,
    recipe: Recipe,
    seed: int,
    device: torch.device | str = "cpu",
    checkpoint: Path | str | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
    objective: Objective = cross_entropy,
    save_every: float = 60.0,
    looks: Sequence[float] = (),
    look: Callable[[float], None] | None = None,
    sampler: Sampler | None = None,
    notes: Callable[[], Mapping[str, float]] | None = None,
    replay: bool = False,
) -> Fit:
    """Train the model in place.

    Args:
        checkpoint: a file to save to and to resume from; resuming gives bit for bit the weights of a run that was
            never interrupted. Written between epochs, `save_every` seconds apart, and at the end.
        progress: called with every finished row of the history; an exception it raises ends the run.
        objective: (model, images, labels) -> (loss, logits), for losses other than cross entropy.
        looks: shares of the first epoch after which ``look`` is called with the share, between two steps; it may
            evaluate the model. The epoch's seconds count without it.
        sampler: composes the batches of an epoch; about as many as uniform draws give. Default: every image once.
        notes: called after the steps of an epoch; what it returns joins the epoch's row (None where not finite), and a
            resumed run has it.
        replay: on a GPU, record a step and replay it (:class:`Replay`): only where model and objective do the same in
            every call, draw nothing on the host and keep nothing there.

    Raises:
        ValueError: no training images, or a checkpoint that belongs to another run.
    """
    device = torch.device(device)
    data = data.to(device)
    keep, held_out = split_validation(len(data.y_train), recipe.val_fraction, seed)
    if len(keep) < 2:
        raise ValueError(f"data set {data.name!r} leaves {len(keep)} training images: at least 2 are needed")
    validation = data.tested_on(held_out)
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = optimiser_of(model, recipe)
    identity = {"seed": seed, "recipe": plain(recipe), "data": data.fingerprint}
    history: list[dict[str, Any]] = []
    best: dict[str, Tensor] | None = None
    if checkpoint is not None and Path(checkpoint).exists():
        history, best = resume_training(Path(checkpoint), model, optimiser, identity)
    network = cast(nn.Module, torch.compile(model)) if recipe.compile else model
    step: Step = partial(train_step, network, optimiser, dtype=recipe.dtype, objective=objective)
    if replay:
        step = Replay(step, lambda: tuple(group["lr"] for group in optimiser.param_groups))
    saved = time.monotonic()
    for epoch in range(len(history), recipe.epochs):
        if _collapsed(history, recipe, data.classes):
            break
        started = time.perf_counter()
        torch.manual_seed(derived_seed(seed, epoch))  # dropout and whatever else the model draws
        steps = math.ceil(len(keep) / recipe.batch)
        looked = [0.0]
        stream = _rated(batches(data, keep, recipe, seed, epoch, sampler), steps, recipe, epoch, optimiser)
        if look is not None and epoch == 0:
            stream = _looking(stream, steps, looks, look, looked)
        loss, accuracy = train_epoch(network, stream, step)
        rate = optimiser.param_groups[0]["lr"]
        row: dict[str, Any] = {"epoch": epoch, "lr": rate, "loss": loss if math.isfinite(loss) else None}
        row["train_accuracy"] = accuracy
        if notes is not None:
            row |= {key: value if math.isfinite(value) else None for key, value in notes().items()}
        if len(held_out):
            row["val_accuracy"] = evaluate(model, validation, device, dtype=recipe.dtype).accuracy
            if all(row["val_accuracy"] > earlier["val_accuracy"] for earlier in history):
                best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        row["seconds"] = time.perf_counter() - started - sum(looked)
        history.append(row)
        over = epoch + 1 == recipe.epochs or row["loss"] is None
        if checkpoint is not None and (over or time.monotonic() - saved >= save_every):
            save_training(Path(checkpoint), model, optimiser, identity, history, best)
            saved = time.monotonic()
        if progress is not None:
            progress(row)
    return Fit(
        history,
        "collapsed" if _collapsed(history, recipe, data.classes) else "finished",
        sum(row["seconds"] for row in history),
        max((row["val_accuracy"] for row in history if "val_accuracy" in row), default=None),
        best,
    )


def _rated(
    stream: Iterator[tuple[Tensor, Tensor]], steps: int, recipe: Recipe, epoch: int, optimiser: torch.optim.Optimizer
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of an epoch, each behind the learning rate of its step."""
    for step, batch in enumerate(stream):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate(epoch + step / steps)
        yield batch


def _looking(
    stream: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    shares: Sequence[float],
    look: Callable[[float], None],
    seconds: list[float],
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches; before the one that follows a share of the steps, ``look(share)`` is called and timed."""
    at = {round(share * steps): share for share in shares}
    for step, batch in enumerate(stream):
        if step in at:
            started = time.perf_counter()
            look(at[step])
            seconds.append(time.perf_counter() - started)
        yield batch


def _collapsed(history: list[dict[str, Any]], recipe: Recipe, classes: int) -> bool:
    if not history:
        return False
    guessing = at_chance(history[-1]["train_accuracy"], classes)
    return history[-1]["loss"] is None or (len(history) == recipe.epochs and guessing)
