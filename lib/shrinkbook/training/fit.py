"""Training with SGD or Adam: one loop for every paper, exact to resume, the data resident on the device."""

from __future__ import annotations

import dataclasses
import hashlib
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

from shrinkbook.training import checkpoint as checkpoints
from shrinkbook.training.augment import crop_flip, draw_crop_flip
from shrinkbook.training.data import DataSet
from shrinkbook.training.evaluate import evaluate
from shrinkbook.training.precision import autocast_dtype as autocast_dtype
from shrinkbook.training.precision import bf16_units as bf16_units
from shrinkbook.training.precision import precision

PADDING = 4  # He et al. 2016, section 4.2
Objective = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
STATE = {"momentum_buffer": "momentum", "step": "step", "exp_avg": "first", "exp_avg_sq": "second"}  # of optimisers
Sampler = Callable[[Tensor, torch.Generator], Sequence[Tensor]]
"""(indices of the training images, generator) -> the batches of one epoch, each a tensor of indices."""


@dataclass(frozen=True)
class Recipe:
    """How to train: SGD with a stepwise learning rate, or Adam or AdamW with the same.

    milestones are fractions of the epochs after which the rate is multiplied by gamma; warmup is the share of all
    steps, at the start, that it is multiplied by gamma, too; augment means a crop from 4 pixels of padding and a flip;
    val_fraction of the training images is held out to select by.
    """

    epochs: int
    batch: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 1e-4
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    nesterov: bool = False
    augment: bool = False
    dtype: str = "float32"
    compile: bool = False
    val_fraction: float = 0.0
    warmup: float = 0.0
    optimiser: str = "sgd"

    def __post_init__(self) -> None:
        if self.optimiser not in ("sgd", "adam", "adamw"):
            raise ValueError(f"recipe optimiser {self.optimiser!r}: choose sgd, adam or adamw")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"recipe dtype {self.dtype!r}: choose float32 or bfloat16")
        if self.epochs < 0 or self.batch < 1 or not 0 <= self.val_fraction < 1 or not 0 <= self.warmup < 1:
            raise ValueError("recipe needs epochs >= 0, batch >= 1, 0 <= val_fraction < 1 and 0 <= warmup < 1")

    def rate(self, epoch: float) -> float:
        """Learning rate in an epoch, counted from 0; within a warm-up a fraction says how much of it is over."""
        times = sum(epoch >= round(share * self.epochs) for share in self.milestones) + (
            epoch < self.warmup * self.epochs
        )
        return self.lr * self.gamma**times


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


def derived_seed(seed: int, epoch: int) -> int:
    """A seed for one epoch; depends on nothing else, so resuming needs no generator state."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:8], "big") >> 1


def split_validation(count: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (training, validation) of `count` training images; the second holds round(fraction * count)."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(derived_seed(seed, -1)))
    held_out = round(fraction * count)
    return order[held_out:].sort().values, order[:held_out].sort().values


def uniform(indices: Tensor, generator: torch.Generator, batch: int) -> Sequence[Tensor]:
    """Every image once, in random order; the last batch is what is left."""
    return indices[torch.randperm(len(indices), generator=generator)].split(batch)


def batches(
    data: DataSet, indices: Tensor, recipe: Recipe, seed: int, epoch: int, sampler: Sampler | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of (float32 images, labels) on the data's device, in an order that (seed, epoch) alone decide.

    Every image once, unless a sampler composes the batches. A batch of a single image is left out: batch norm cannot
    train on it.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, epoch))  # on the CPU: the same on every device
    device = data.x_train.device
    parts = (sampler or partial(uniform, batch=recipe.batch))(indices.cpu(), generator)
    sizes = [len(part) for part in parts]
    order = torch.cat(list(parts)).to(device)  # one copy to the device, not one a step
    draws = draw_crop_flip(len(order), PADDING, generator).to(device).split(sizes) if recipe.augment else None
    for number, chosen in enumerate(order.split(sizes)):
        if len(chosen) == 1:
            continue
        images = data.x_train.permute(0, 2, 3, 1)[chosen].permute(0, 3, 1, 2)  # stays channels-last
        if draws is not None:
            images = crop_flip(images, draws[number], PADDING)
        yield data.normalise(images), data.y_train[chosen]


def optimiser_of(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser, in one fused kernel; weight decay on every parameter, as the papers have it."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if recipe.optimiser != "sgd":
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimiser]
        return kind(parameters, recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    return torch.optim.SGD(
        parameters, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov, fused=True
    )


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


def train_epoch(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    stream: Iterator[tuple[Tensor, Tensor]],
    dtype: str = "float32",
    objective: Objective = cross_entropy,
) -> tuple[float, float]:
    """Train on every batch of a stream. Returns (mean loss, accuracy in percent) as seen while training."""
    model.train()
    losses, right, sizes = [], [], []
    for images, labels in stream:
        loss, correct = train_step(model, optimiser, images, labels, dtype, objective)
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

    Raises:
        ValueError: no training images, or a checkpoint that belongs to another run.
    """
    device = torch.device(device)
    data = data.to(device)
    keep, held_out = split_validation(len(data.y_train), recipe.val_fraction, seed)
    if len(keep) < 2:
        raise ValueError(f"data set {data.name!r} leaves {len(keep)} training images: at least 2 are needed")
    validation = dataclasses.replace(data, x_test=data.x_train[held_out], y_test=data.y_train[held_out])
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = optimiser_of(model, recipe)
    identity = {"seed": seed, "recipe": _plain(recipe), "data": data.fingerprint}
    history: list[dict[str, Any]] = []
    best: dict[str, Tensor] | None = None
    if checkpoint is not None and Path(checkpoint).exists():
        history, best = _resume(Path(checkpoint), model, optimiser, identity)
    network = cast(nn.Module, torch.compile(model)) if recipe.compile else model
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
        loss, accuracy = train_epoch(network, optimiser, stream, recipe.dtype, objective)
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
            _save(Path(checkpoint), model, optimiser, identity, history, best)
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
    at_chance = history[-1]["train_accuracy"] <= 150 / classes
    return history[-1]["loss"] is None or (len(history) == recipe.epochs and at_chance)


def _plain(recipe: Recipe) -> dict[str, Any]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(recipe).items()}


def _save(
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    identity: dict[str, Any],
    history: list[dict[str, Any]],
    best: dict[str, Tensor] | None,
) -> None:
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimiser.state.get(parameter, {}).items():
            if value is not None:
                tensors[f"{STATE[key]}/{name}"] = value
    tensors |= {f"best/{name}": tensor for name, tensor in (best or {}).items()}
    checkpoints.save(tensors, path, {**identity, "history": history})


def _resume(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, identity: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Tensor] | None]:
    tensors, metadata = checkpoints.load(path)
    for key, value in identity.items():
        found = metadata.get(key)
        if key == "recipe" and found is not None:  # a field that came later had its default then
            found = {field.name: field.default for field in dataclasses.fields(Recipe)} | found
        if found != value:
            raise ValueError(f"{path} belongs to another run (its {key} differs): delete it or name another checkpoint")
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, **{part: {} for part in STATE.values()}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    try:
        model.load_state_dict(parts["model"])
    except RuntimeError as error:
        raise ValueError(f"{path} holds another network: delete it or name another checkpoint") from error
    for name, parameter in model.named_parameters():
        for key, part in STATE.items():
            if (stored := parts[part].get(name)) is None:
                continue
            if stored.shape == parameter.shape:
                # The parameter's own strides: the fused kernel walks both memories side by side.
                stored = torch.empty_like(parameter).copy_(stored).detach()
            optimiser.state[parameter][key] = stored.to(parameter.device)
    return metadata["history"], parts["best"] or None
