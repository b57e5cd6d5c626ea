"""What the loss costs beside a training step of the student: both timed in turns in one process."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.networks import NETS
from shrinkbook.measure.latency import seconds
from shrinkbook.methods.congruent_distillation import with_features
from shrinkbook.methods.correlation_congruence import (
    KERNELS,
    consecutive_product_loss,
    correlation_congruence_loss,
)
from shrinkbook.nets import initialize
from shrinkbook.training.fit import train_step

REPEATS = 20  # of a loss, which takes a thousandth of a step


def timed(run: Context) -> None:
    """Each round: one step of cross entropy, then every loss forward and backward on features of that batch's size.

    The teacher's forward pass is not counted: distillation needs it anyway.
    """
    config, generator = run.config, torch.Generator().manual_seed(run.seed)
    model = initialize(NETS[config["net"]](), run.seed).to(device=run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(config["batch"], 3, 32, 32, generator=generator).to(run.device)
    labels = torch.arange(config["batch"], device=run.device) % 100
    optimiser = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=5e-4, fused=True)
    student = with_features(model, images)[0].detach().requires_grad_()
    teacher = torch.rand(student.shape, generator=generator).to(run.device)
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        name: partial(correlation_congruence_loss, kernel=kernel) for name, kernel in KERNELS.items()
    }
    losses["consecutive"] = consecutive_product_loss
    steps: list[float] = []
    shares: dict[str, list[float]] = {name: [] for name in losses}
    for turn in range(-1, config["rounds"]):
        step = seconds(partial(train_step, model, optimiser, images, labels), run.device)
        for name, loss in losses.items():
            one = seconds(partial(repeated, loss, student, teacher), run.device) / REPEATS
            if turn >= 0:
                shares[name].append(100 * one / step)
        if turn >= 0:
            steps.append(step)
    median = {name: float(np.median(share)) for name, share in shares.items()}
    run.measurements["overhead"] = {"percent": median, "step_seconds": float(np.median(steps))}
    run.measurements["gaps"] = {"below_3_percent": [3 - median[name] for name in ("mmd", "bilinear", "rbf2", "rbf3")]}


def repeated(loss: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor) -> None:
    """Forward and backward through a loss, :data:`REPEATS` times."""
    for _ in range(REPEATS):
        student.grad = None
        loss(student, teacher).backward()
