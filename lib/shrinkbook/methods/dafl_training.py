"""The steps of data-free learning (Chen et al. 2019): generator and student at once, or one after the other.

Both networks are in training mode throughout. A step changes what its optimisers hold and nothing else.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from shrinkbook.methods.dafl import Form, Generator, Losses, Teacher, Weights, generator_loss, mean_entropy
from shrinkbook.methods.distillation import Report, distillation_loss, frozen_copy, report
from shrinkbook.nets import skeleton

MNIST = Weights()
"""The paper's weights there, for losses in the code's form."""
Row = dict[str, Tensor]
"""What a step saw, by name: scalars without gradient, still on the device, for a history."""


def noise(count: int, latent: int, source: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """(count, latent) of standard normal numbers, drawn where ``source`` lives: the same on every device."""
    return torch.randn(count, latent, generator=source, device=source.device).to(device)


def generator_step(
    generator: Generator, teacher: Teacher, optimiser: Optimizer, z: Tensor, weights: Weights, form: Form = "code"
) -> Row:
    """Module 1 of the paper's algorithm: one update of the generator by L_total.

    Args:
        optimiser: over the generator's parameters.
        z: (n, latent).
    """
    losses, _, logits = _ask(generator, teacher, z, weights, form)
    _update(losses.total, optimiser)
    return _row(losses, logits)


def student_step(
    student: nn.Module, teacher: Teacher, optimiser: Optimizer, images: Tensor, temperature: float = 1.0
) -> Row:
    """Module 2 of the paper's algorithm: one update of the student by L_KD, on images from anywhere.

    Generated images, noise and other data differ here in nothing else.
    """
    with torch.no_grad():
        logits, _ = teacher(images)
    loss = distillation_loss(student(images), logits, temperature)
    _update(loss, optimiser)
    return {"distillation": loss.detach(), "mean_entropy": mean_entropy(logits)}


def joint_step(
    generator: Generator,
    student: nn.Module,
    teacher: Teacher,
    optimisers: tuple[Optimizer, Optimizer],
    z: Tensor,
    weights: Weights,
    form: Form = "code",
    temperature: float = 1.0,
) -> Row:
    """As the authors' code trains: one batch, one backward pass of L_total + L_KD, both optimisers step.

    The student sees the images detached, so that the generator gets no gradient from L_KD: generator and student move
    as in :func:`generator_step` and :func:`student_step` on the batch before either moved.

    Args:
        optimisers: of the generator, of the student.
        z: (n, latent).
    """
    losses, images, logits = _ask(generator, teacher, z, weights, form)
    distillation = distillation_loss(student(images.detach()), logits.detach(), temperature)
    _update(losses.total + distillation, *optimisers)
    return {"distillation": distillation.detach(), **_row(losses, logits)}


def joint_training(
    generator: Generator,
    student: nn.Module,
    teacher: Teacher,
    optimisers: tuple[Optimizer, Optimizer],
    batches: Iterable[Tensor],
    weights: Weights,
    form: Form = "code",
    temperature: float = 1.0,
) -> Iterator[Row]:
    """One :func:`joint_step` for each batch of noise; yields what each saw."""
    for z in batches:
        yield joint_step(generator, student, teacher, optimisers, z, weights, form, temperature)


def two_stage_training(
    generator: Generator,
    student: nn.Module,
    teacher: Teacher,
    optimisers: tuple[Optimizer, Optimizer],
    batches: tuple[Iterable[Tensor], Iterable[Tensor]],
    weights: Weights,
    form: Form = "code",
    temperature: float = 1.0,
) -> Iterator[Row]:
    """The order of the paper's algorithm: the generator to its end, then the student on what it makes.

    Args:
        batches: of noise, for the generator's stage and for the student's.
    """
    for z in batches[0]:
        yield generator_step(generator, teacher, optimisers[0], z, weights, form)
    for z in batches[1]:
        with torch.no_grad():
            images = generator(z)
        yield student_step(student, teacher, optimisers[1], images, temperature)


def compress(
    teacher: nn.Module,
    student: nn.Module,
    features: str,
    generator: Generator,
    optimisers: tuple[Optimizer, Optimizer],
    steps: int,
    batch: int = 512,
    *,
    weights: Weights = MNIST,
    form: Form = "code",
    temperature: float = 1.0,
    seed: int = 0,
) -> tuple[nn.Module, Report]:
    """Train a smaller network without any data, by :func:`joint_training`.

    Args:
        teacher: a trained network; it is not changed.
        student: trained in place, on its own device.
        features: of :class:`shrinkbook.methods.dafl.Teacher`, such as the path of the classifier.
        generator: makes images as the teacher takes them; on the student's device.
        optimisers: of the generator, of the student.
        steps: batches.
        batch: images in each; no fewer than there are classes.
        weights, form, temperature: of :func:`joint_step`.
        seed: of the noise.

    Returns:
        The student in training mode and the report, whose history is that of :func:`joint_step`.

    Raises:
        ValueError: no module ``features``, fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"dafl_training: {steps} steps train nothing; give at least 1")
    fixed = Teacher(frozen_copy(teacher), features)
    source, device = torch.Generator().manual_seed(seed), next(student.parameters()).device
    batches = (noise(batch, generator.latent, source, device) for _ in range(steps))
    student, generator = student.train(), generator.train()
    rows = list(joint_training(generator, student, fixed, optimisers, batches, weights, form, temperature))
    made = skeleton(generator)(torch.empty(2, generator.latent, device="meta"))
    return student, report(teacher, student, made.shape[1:], steps * batch, rows)


def _ask(
    generator: Generator, teacher: Teacher, z: Tensor, weights: Weights, form: Form
) -> tuple[Losses, Tensor, Tensor]:
    if not generator.training:
        raise ValueError("the generator is in evaluation mode, where its last batch norm drifts; call train() first")
    images = generator(z)
    logits, features = teacher(images)
    return generator_loss(logits, features, weights, form), images, logits


def _update(loss: Tensor, *optimisers: Optimizer) -> None:
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    loss.backward()
    for optimiser in optimisers:
        optimiser.step()


def _row(losses: Losses, logits: Tensor) -> Row:
    parts = {"one_hot": losses.one_hot, "entropy": losses.entropy, "activation": losses.activation}
    return {**{name: part.detach() for name, part in parts.items()}, "mean_entropy": mean_entropy(logits)}
