"""Knowledge distillation (Hinton, Vinyals and Dean 2015): softened predictions of a teacher, and its features."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shrinkbook.measure.cost import Change, change


@dataclass(frozen=True)
class Report(Change):
    """What a student costs beside its teacher, who is the network before, and how it was trained.

    Args:
        images: that it saw, repeated ones counted again.
        history: name of a loss -> its value in every step.
    """

    images: int
    history: dict[str, list[float]]


def report(
    teacher: nn.Module,
    student: nn.Module,
    input_shape: Sequence[int],
    images: int,
    rows: Sequence[Mapping[str, Tensor]],
) -> Report:
    """The report of a training whose steps saw these rows of scalars."""
    history = {name: torch.stack([row[name] for row in rows]).tolist() for name in (rows[0] if rows else ())}
    return Report(**asdict(change(teacher, student, input_shape)), images=images, history=history)


def frozen_copy(teacher: nn.Module) -> nn.Module:
    """The teacher in evaluation mode and without gradients; the original keeps its mode and its gradients."""
    return copy.deepcopy(teacher).eval().requires_grad_(False)


def with_inputs(model: nn.Module, module: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The answer of one forward pass, and what ``module`` inside the model read, once for each time it was used."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        return model(images), seen
    finally:
        handle.remove()


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """tau^2 KL(softmax(teacher / tau) || softmax(student / tau)), Hinton et al. 2015, section 2.

    The factor tau^2 keeps the gradient's size: d loss / d student = tau (softmax(s / tau) - softmax(t / tau)) tends to
    the difference of the centred logits over the number of classes as tau grows. At tau = 1 the loss is the cross
    entropy with the teacher's probabilities as targets less their own entropy, so both have the same gradient.

    Args:
        student_logits: (n, k), any precision.
        teacher_logits: (n, k), without gradient.
        temperature: tau, above 0.

    Returns:
        A scalar in nats: summed over the classes, mean over the batch, computed in float32 or better.

    Raises:
        ValueError: a temperature that is not positive, unequal or empty shapes, a teacher that asks for a gradient.
    """
    if not temperature > 0:
        raise ValueError(
            f"distillation_loss: temperature {temperature} is not positive; 1 leaves the logits as they are"
        )
    if student_logits.shape != teacher_logits.shape or student_logits.ndim != 2 or not len(student_logits):
        shapes = f"student {tuple(student_logits.shape)}, teacher {tuple(teacher_logits.shape)}"
        raise ValueError(f"distillation_loss: {shapes}; both must be (batch, classes), the same and not empty")
    if teacher_logits.requires_grad:
        raise ValueError(
            "distillation_loss: the teacher's logits ask for a gradient; compute them under torch.no_grad()"
        )
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    student, teacher = (F.log_softmax(logits.to(dtype) / temperature, 1) for logits in (student_logits, teacher_logits))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
