"""Images in folders by class (``train/<class>/*``, ``val/<class>/*``), read with Pillow, for training that streams."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from shrinkbook.training.batches import derived_seed
from shrinkbook.training.checkpoint import resume_training, save_training
from shrinkbook.training.data import IMAGENET_MEAN, IMAGENET_STD, DataError, DataSet
from shrinkbook.training.download import resize_crop
from shrinkbook.training.fit import Objective, cross_entropy, train_epoch, train_step
from shrinkbook.training.recipe import Recipe, optimiser_of

ENDINGS = (".jpeg", ".jpg", ".png")
# Principal components of ImageNet's colours (Krizhevsky et al. 2012), for noise in the lighting.
PCA_VALUES = (0.2175, 0.0188, 0.0045)
PCA_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


@dataclass(frozen=True)
class Folder:
    """Paths and labels of one split; classes are numbered in the order of their folders' names."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: int

    def split(self, per_class: int) -> tuple[Folder, Folder]:
        """Without the first images of every class, and those: for training a PruningNet, and for searching."""
        seen = [0] * self.classes
        held: list[tuple[Path, int]] = []
        kept: list[tuple[Path, int]] = []
        for path, label in zip(self.paths, self.labels, strict=True):
            (held if seen[label] < per_class else kept).append((path, label))
            seen[label] += 1
        return tuple(  # type: ignore[return-value]
            Folder(tuple(p for p, _ in part), tuple(y for _, y in part), self.classes) for part in (kept, held)
        )


def listed(root: Path, split: str) -> Folder:
    """Every image of ``root/split``.

    Raises:
        DataError: no such folder, or a class without images.
    """
    place = root / split
    names = sorted(path.name for path in place.iterdir() if path.is_dir()) if place.is_dir() else []
    if not names:
        raise DataError(f"{place} holds no folder of a class: unpack the images there, one folder a class")
    paths, labels = [], []
    for label, name in enumerate(names):
        found = sorted(path for path in (place / name).iterdir() if path.suffix.lower() in ENDINGS)
        if not found:
            raise DataError(f"{place / name} holds no image ({', '.join(ENDINGS)}): unpack it again")
        paths += found
        labels += [label] * len(found)
    return Folder(tuple(paths), tuple(labels), len(names))


def opened(path: Path) -> Image.Image:
    """An image in colour.

    Raises:
        DataError: the file is no image.
    """
    try:
        return Image.open(path).convert("RGB")
    except OSError as error:
        raise DataError(f"{path} cannot be read as an image ({error}): unpack it again") from error


def random_crop(image: Image.Image, side: int, draws: random.Random) -> np.ndarray:
    """A part of 8 % to 100 % of the area and 3:4 to 4:3 in shape, scaled to side x side, mirrored at random: uint8."""
    width, height = image.size
    left, top, across, down = 0, 0, width, height
    for _ in range(10):
        area = width * height * draws.uniform(0.08, 1.0)
        shape = math.exp(draws.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            left, top, across, down = draws.randint(0, width - w), draws.randint(0, height - h), w, h
            break
    box = (left, top, left + across, top + down)
    found = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box))
    return found[:, ::-1] if draws.random() < 0.5 else found


def resident(folder: Folder, side: int) -> tuple[Tensor, Tensor]:
    """All images, resized and centre-cropped, as uint8 (n, 3, side, side), and their labels."""
    shorter = round(side * 256 / 224)
    images = np.stack([resize_crop(opened(path), side, shorter) for path in folder.paths])
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor(folder.labels)


def as_data_set(train: Folder, test: Folder, images: int, side: int, seed: int) -> DataSet:
    """Some training images, drawn by the seed, and all test images, kept in memory: to measure and evaluate with."""
    chosen = sorted(random.Random(seed).sample(range(len(train.paths)), min(images, len(train.paths))))
    part = replace(train, paths=tuple(train.paths[i] for i in chosen), labels=tuple(train.labels[i] for i in chosen))
    (x, y), (x_test, y_test) = resident(part, side), resident(test, side)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    return DataSet("imagenet", x[order], y[order], x_test, y_test, mean, std, train.classes, "image folder")


class Augmented(Dataset[tuple[Tensor, int]]):
    """Random crops of a folder's images; what an image looks like depends on seed, epoch and its place only."""

    def __init__(self, folder: Folder, side: int, seed: int) -> None:
        self.folder, self.side, self.seed, self.epoch = folder, side, seed, 0

    def __len__(self) -> int:
        return len(self.folder.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        draws = random.Random(f"{self.seed}/{self.epoch}/{index}")
        crop = random_crop(opened(self.folder.paths[index]), self.side, draws)
        return torch.from_numpy(crop.copy()).permute(2, 0, 1), self.folder.labels[index]


def lighting(images: Tensor, strength: float = 0.1) -> Tensor:
    """Normalised images with colour noise along the principal components, another draw for each image."""
    draws = torch.randn(len(images), 3, generator=torch.Generator().manual_seed(int(torch.randint(2**31, (1,)))))
    shift = (draws * strength * torch.tensor(PCA_VALUES)) @ torch.tensor(PCA_VECTORS).T
    return images + (shift / torch.tensor(IMAGENET_STD)).to(images.device)[:, :, None, None]


def fit_stream(
    model: nn.Module,
    folder: Folder,
    recipe: Recipe,
    side: int,
    seed: int,
    device: torch.device,
    checkpoint: Path,
    rank: int = 0,
    world: int = 1,
    workers: int = 8,
    objective: Objective = cross_entropy,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Train a model, or its share of a data-parallel one, on images that are read while it trains; exact to resume.

    The rate falls linearly to 0 over all steps, or at the recipe's milestones if it has any. A last incomplete batch
    is left out.

    Args:
        model: on the device; inside DistributedDataParallel where world > 1.
        recipe: its batch is that of all processes together.
        checkpoint: written by rank 0 after every epoch, read by all.
        workers: processes that read images, for each rank.

    Returns:
        A row an epoch: epoch, lr, loss, train_accuracy (of this rank's images).

    Raises:
        DataError: fewer images than one batch.
    """
    bare = cast(nn.Module, model.module) if world > 1 else model
    optimiser, images = optimiser_of(bare, recipe), Augmented(folder, side, seed)
    steps = len(images) // recipe.batch
    if not steps:
        raise DataError(f"{len(images)} training images are fewer than a batch of {recipe.batch}")
    step = partial(train_step, model, optimiser, dtype=recipe.dtype, objective=objective)
    identity = {"seed": seed, "images": len(images), "epochs": recipe.epochs}
    history: list[dict[str, Any]] = (
        resume_training(checkpoint, bare, optimiser, identity)[0] if checkpoint.exists() else []
    )
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    for epoch in range(len(history), recipe.epochs):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(derived_seed(seed, epoch))).tolist()
        images.epoch = epoch
        share = _share(order[: steps * recipe.batch], recipe.batch, rank, world)
        loader = DataLoader(
            images, recipe.batch // world, sampler=share, num_workers=workers, pin_memory=device.type == "cuda"
        )
        torch.manual_seed(derived_seed(seed, epoch))  # the same width vector on every rank

        def stream(loader: DataLoader = loader, epoch: int = epoch) -> Iterator[tuple[Tensor, Tensor]]:
            for number, (batch, labels) in enumerate(loader):
                over = (epoch + number / steps) / recipe.epochs
                rate = recipe.rate(epoch) if recipe.milestones else recipe.lr * (1 - over)
                for group in optimiser.param_groups:
                    group["lr"] = rate
                pixels = batch.to(device, non_blocking=True, memory_format=torch.channels_last).float() / 255
                yield lighting((pixels - mean) / std), labels.to(device, non_blocking=True)

        loss, accuracy = train_epoch(model, stream(), step)
        history.append(
            {"epoch": epoch, "lr": optimiser.param_groups[0]["lr"], "loss": loss, "train_accuracy": accuracy}
        )
        if rank == 0:
            save_training(checkpoint, bare, optimiser, identity, history, None)
        if progress:
            progress(history[-1])
    return history


def _share(order: Sequence[int], batch: int, rank: int, world: int) -> list[int]:
    """This rank's part of every batch, batch after batch."""
    part = batch // world
    return [
        index
        for start in range(0, len(order), batch)
        for index in order[start + rank * part : start + (rank + 1) * part]
    ]
