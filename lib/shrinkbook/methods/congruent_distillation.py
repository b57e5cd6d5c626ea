"""Training by correlation congruence (Peng et al. 2019): teacher and student see one batch, three losses are added."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from shrinkbook.methods.correlation_congruence import (
    Kernel,
    Reading,
    combined,
    consecutive_product_loss,
    correlation_congruence_loss,
    gaussian_rbf,
)
from shrinkbook.methods.distillation import Report, distillation_loss, frozen_copy, report, with_inputs


def with_features(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """(features, logits) of one forward pass: what the network's last linear layer reads, (n, d), and its answer.

    Raises:
        ValueError: the network has no linear layer, or does not use it once.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layer whose input could serve as features")
    logits, seen = with_inputs(model, layers[-1], images)
    if len(seen) != 1:
        raise ValueError(f"{type(model).__name__} used its last linear layer {len(seen)} times, not once")
    return seen[0], logits


def frozen(teacher: nn.Module) -> nn.Module:
    """The teacher itself, if nothing can train it.

    Raises:
        ValueError: parameters that ask for gradients, or a network in training mode.
    """
    if any(parameter.requires_grad for parameter in teacher.parameters()):
        raise ValueError("the teacher's parameters ask for gradients; freeze it with teacher.requires_grad_(False)")
    if teacher.training:
        raise ValueError("the teacher is in training mode, its batch norms would learn; call teacher.eval()")
    return teacher


@dataclass
class CongruentDistillation:
    """The objective L_CCKD of a training loop: (student, images, labels) -> (loss, logits) (section 3.3).

    Args:
        teacher: frozen and in evaluation mode.
        kernel: phi of L_CC.
        beta: weight of L_CC; at 0 this is plain distillation, and L_CC is only watched.
        alpha: share of L_CE, or weight of L_KD; see :func:`combined`.
        temperature: tau of L_KD, whose factor tau^2 is kept.
        reading: how the three losses are combined.
        projection: of the teacher's features, such as a :class:`FrozenProjection`.
        trace: L_KD and L_CC of every step since :meth:`means` was called.

    Raises:
        ValueError: a teacher that could be trained.
    """

    teacher: nn.Module
    kernel: Kernel = gaussian_rbf
    beta: float = 0.0
    alpha: float = 0.1
    temperature: float = 4.0
    reading: Reading = "weighted"
    projection: nn.Module | None = None
    trace: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        frozen(self.teacher)

    def __call__(self, student: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            target, teacher_logits = with_features(self.teacher, images)
            if self.projection is not None:
                target = self.projection(target)
        features, logits = with_features(student, images)
        distillation = distillation_loss(logits, teacher_logits, self.temperature)
        congruence = correlation_congruence_loss(features, target, self.kernel)
        self.trace.append(torch.stack([distillation.detach(), congruence.detach()]))
        cross_entropy = F.cross_entropy(logits.float(), labels)
        return combined(cross_entropy, distillation, congruence, self.alpha, self.beta, self.reading), logits

    def means(self) -> dict[str, float]:
        """Means of L_KD and L_CC over the steps since the last call."""
        distillation, congruence = torch.stack(self.trace).mean(0).tolist()
        self.trace.clear()
        return {"distillation": distillation, "congruence": congruence}


def compress(
    teacher: nn.Module,
    student: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimiser: Optimizer,
    *,
    beta: float,
    kernel: Kernel = gaussian_rbf,
    alpha: float = 0.1,
    temperature: float = 4.0,
) -> tuple[nn.Module, Report]:
    """Train a smaller network by :class:`CongruentDistillation`, one step for each batch.

    Args:
        teacher: a trained network; it is not changed.
        student: trained in place.
        batches: (images, labels), as many as steps are wanted, on the networks' device.
        optimiser: of the student.
        beta, kernel, alpha, temperature: of :class:`CongruentDistillation`.

    Returns:
        The student in training mode and the report, with the history of ``distillation`` and ``congruence``.

    Raises:
        ValueError: no batch; a network without a linear layer at its end.
    """
    objective = CongruentDistillation(frozen_copy(teacher), kernel, beta, alpha, temperature)
    student.train()
    images, shape = 0, None
    for x, labels in batches:
        loss, _ = objective(student, x, labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        images, shape = images + len(x), x.shape[1:]
    if shape is None:
        raise ValueError("congruent_distillation: no batch of images and labels; there is nothing to train on")
    rows = [dict(zip(("distillation", "congruence"), row, strict=True)) for row in objective.trace]
    return student, report(teacher, student, shape, images, rows)


class Embedded(nn.Module):
    """A student with the two trainable linear maps that the benchmark's loss needs; it answers as the student does.

    Args:
        student: any network with a linear layer at its end.
        features, teacher_features: numbers of features of both.
        size: of the common space, 128 in the benchmark.
    """

    def __init__(self, student: nn.Module, features: int, teacher_features: int, size: int = 128) -> None:
        super().__init__()
        # Before the student, whose last linear layer has to stay the last one.
        self.embed, self.embed_teacher = nn.Linear(features, size), nn.Linear(teacher_features, size)
        self.student = student

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x)


@dataclass
class ConsecutiveProduct:
    """The benchmark's objective: L_CE + weight L_consecutive between embedded features, without L_KD.

    Args:
        teacher: frozen and in evaluation mode.
        weight: 0.02 in the benchmark.

    Raises:
        ValueError: called with a student that is not in :class:`Embedded`.
    """

    teacher: nn.Module
    weight: float = 0.02

    def __post_init__(self) -> None:
        frozen(self.teacher)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(model, Embedded):
            raise ValueError(
                f"ConsecutiveProduct: {type(model).__name__} has no embeddings to compare; wrap the student in Embedded"
            )
        with torch.no_grad():
            target, _ = with_features(self.teacher, images)
        features, logits = with_features(model, images)
        neighbours = consecutive_product_loss(model.embed(features), model.embed_teacher(target))
        return F.cross_entropy(logits.float(), labels) + self.weight * neighbours, logits
