"""Which images make up a batch: an order that seed and epoch alone decide, cropped and flipped on the device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from shrinkbook.training.augment import crop_flip, draw_crop_flip
from shrinkbook.training.data import DataSet
from shrinkbook.training.recipe import Recipe

PADDING = 4  # He et al. 2016, section 4.2
Sampler = Callable[[Tensor, torch.Generator], Sequence[Tensor]]
"""(indices of the training images, generator) -> the batches of one epoch, each a tensor of indices."""


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


def shortened(batch: int, steps: int) -> Sampler:
    """A sampler of short epochs: the first ``steps`` batches of a random order, fewer if there are no more images."""
    return lambda indices, generator: uniform(indices, generator, batch)[:steps]


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
