"""How to train, as data: optimiser, rates and batch, and the optimiser that follows from it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


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


def optimiser_of(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser, in one fused kernel; weight decay on every parameter, as the papers have it."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if recipe.optimiser != "sgd":
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimiser]
        return kind(parameters, recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    return torch.optim.SGD(
        parameters, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov, fused=True
    )


def plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON can hold it."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(recipe).items()}
