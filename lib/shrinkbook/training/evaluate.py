"""Accuracy on the test images, and batch-norm statistics measured afresh."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shrinkbook.training.data import DataSet
from shrinkbook.training.precision import precision

Batch = tuple[Tensor, Tensor]
"""Inputs and int64 labels of as many images."""


@dataclass(frozen=True)
class Evaluation:
    """accuracy in percent, mean cross entropy in nats, and for each test image whether it was right (bool, CPU)."""

    accuracy: float
    loss: float
    correct: Tensor


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every module's own mode restored after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def evaluate(
    model: nn.Module,
    data: DataSet,
    device: torch.device | str = "cpu",
    batch: int = 500,
    dtype: str = "float32",
) -> Evaluation:
    """Run the model over the test images.

    Raises:
        ValueError: the data set has no test images.
    """
    return evaluate_batches(model, evaluation_batches(data, device, batch), device, dtype)


def evaluation_batches(data: DataSet, device: torch.device | str = "cpu", batch: int = 500) -> Iterator[Batch]:
    """The test images, normalised, and their labels, batch by batch on the device.

    Raises:
        ValueError: the data set has no test images.
    """
    if not len(data.y_test):
        raise ValueError(f"data set {data.name!r} has no test images to evaluate on")
    for images, labels in zip(data.x_test.split(batch), data.y_test.split(batch), strict=True):
        yield data.normalise(images.to(device)), labels.to(device)


def through(
    head: nn.Module, batches: Iterable[Batch], device: torch.device | str = "cpu", dtype: str = "float32"
) -> list[Batch]:
    """The first part of a network run once: what `evaluate_batches` of the rest takes, kept in memory."""
    head.to(device)
    with evaluating(head), torch.inference_mode(), precision(head, torch.device(device), dtype):
        return [(head(inputs), labels) for inputs, labels in batches]


def evaluate_batches(
    model: nn.Module, batches: Iterable[Batch], device: torch.device | str = "cpu", dtype: str = "float32"
) -> Evaluation:
    """Run a model, or the rest of one, over (inputs, labels)."""
    model.to(device)
    losses, correct = [], []
    with evaluating(model), torch.inference_mode():
        for inputs, labels in batches:
            with precision(model, torch.device(device), dtype):
                logits = model(inputs)
            losses.append(F.cross_entropy(logits.float(), labels, reduction="sum"))
            correct.append(logits.argmax(1) == labels)
    # Out of inference mode, so that the caller may use the tensor anywhere.
    right = torch.cat(correct).cpu().clone()
    loss = torch.stack(losses).double().sum().item() / len(right)
    return Evaluation(100 * right.double().mean().item(), loss, right)


def at_chance(accuracy: float, classes: int) -> bool:
    """Whether an accuracy in percent is at most one and a half times that of guessing."""
    return accuracy <= 150 / classes


def recalibrate_batch_norm(
    model: nn.Module, data: DataSet, images: int, device: torch.device | str = "cpu", batch: int = 128
) -> None:
    """Replace the running statistics of every batch norm by plain averages over batches of the first training images.

    In place. A last batch that is short weighs as much as the others.

    Weights do not change. The images are normalised but not augmented; a data set's training images are assumed
    to be in no particular order, so callers that need a draw shuffle the data set first.
    """
    device = torch.device(device)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    model.to(device)
    with evaluating(model), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative average
            norm.train()
        try:
            for part in data.x_train[:images].split(batch):
                if len(part) > 1:
                    model(data.normalise(part.to(device)))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
