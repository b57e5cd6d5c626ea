"""One student of a comparison: its objective, its training, what its features say on the test images."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.networks import NETS
from shrinkbook.experiments.public import public_network
from shrinkbook.experiments.run import load_parent
from shrinkbook.methods.batch_samplers import class_uniform, superclasses
from shrinkbook.methods.congruent_distillation import (
    CongruentDistillation,
    ConsecutiveProduct,
    Embedded,
    with_features,
)
from shrinkbook.methods.correlation_congruence import KERNELS
from shrinkbook.nets import initialize
from shrinkbook.training.batches import Sampler, split_validation
from shrinkbook.training.data import IMAGENET_MEAN, IMAGENET_STD, DataSet
from shrinkbook.training.evaluate import Evaluation, evaluate, evaluating, evaluation_batches
from shrinkbook.training.fit import Objective, cross_entropy


def teacher_of(run: Context) -> nn.Module:
    """The teacher of the settings, frozen: the parent's network, or public weights with their own constants."""
    net, parent = run.config["teacher"], run.config["teacher_from"]
    if parent == "public":
        run.load_data(normalise=(IMAGENET_MEAN, IMAGENET_STD))
        model = public_network(net).to(device=run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    else:
        run.load_data()
        model = load_parent(run, NETS[net](), parent)
    return model.eval().requires_grad_(False)


def features_of(run: Context, model: nn.Module, data: DataSet | None = None) -> tuple[Tensor, Tensor]:
    """Features (images, d) and labels of the test images of ``data``, by default the run's, on the CPU."""
    features, labels = [], []
    with evaluating(model), torch.no_grad():
        for images, truth in evaluation_batches(data or the_data(run), run.device):
            features.append(with_features(model, images)[0].float().cpu())
            labels.append(truth.cpu())
    return torch.cat(features), torch.cat(labels)


def the_data(run: Context) -> DataSet:
    """The run's data, which :func:`teacher_of` has loaded."""
    assert run.data is not None
    return run.data


def sampler_of(run: Context, teacher: nn.Module, settings: Mapping[str, int] | None) -> Sampler | None:
    """Uniform batches for None; else class-uniform with ``per_class`` images, or superclass-uniform.

    Args:
        settings: ``per_class``, and ``superclasses`` for so many clusters of the teacher's features.
    """
    if settings is None:
        return None
    data, recipe, k = the_data(run), run.recipe(run.config["recipe"]), settings["per_class"]
    labels = data.y_train
    if count := settings.get("superclasses"):
        keep = split_validation(len(labels), recipe.val_fraction, run.seed)[0].to(labels.device)
        found = superclasses(features_of(run, teacher, data.tested_on(keep))[0], count, run.seed, smallest=k)
        labels = torch.full_like(labels, -1).index_copy(0, keep, found.to(labels.device))
    return class_uniform(labels, recipe.batch, k)


@dataclasses.dataclass
class Student:
    """A trained student, its results on test images and on a held-out slice if there is one, the rows of its epochs."""

    model: nn.Module
    test: Evaluation
    validation: Evaluation | None
    history: list[dict[str, Any]]

    @property
    def diverged(self) -> bool:
        """Whether training ended with a loss that is not finite: it has an accuracy, but no features to compare."""
        return self.history[-1]["loss"] is None


def train_student(
    run: Context,
    name: str,
    teacher: nn.Module,
    kernel: str | None,
    beta: float = 0.0,
    sampler: Sampler | None = None,
) -> Student:
    """Train one student from the seed's weights on the seed's batches.

    Args:
        kernel: of L_CC; ``consecutive`` for the benchmark's loss, None for cross entropy alone.
    """
    data, recipe = the_data(run), run.recipe(run.config["recipe"])
    student = initialize(NETS[run.config["net"]](), run.seed).to(run.device)
    model: nn.Module = student
    objective: Objective = cross_entropy
    notes = None
    if kernel == "consecutive":
        sizes = [with_features(one, data.normalise(data.x_test[:2]))[0].shape[1] for one in (student.eval(), teacher)]
        embedded = Embedded(student, *sizes)
        initialize(nn.ModuleList([embedded.embed, embedded.embed_teacher]), run.seed + 1000)
        model, objective = embedded, ConsecutiveProduct(teacher)
    elif kernel is not None:
        alpha, temperature = run.config["alpha"], run.config["temperature"]
        objective = congruent = CongruentDistillation(teacher, KERNELS[kernel], beta, alpha, temperature)
        notes = congruent.means
    run.train(model, recipe, name, run.unit.part(name), objective=objective, sampler=sampler, notes=notes)
    return Student(
        student,
        run.evaluate(student),
        on_held_out(run, student, recipe.val_fraction),
        [row for row in run.history if row["phase"] == name],
    )


def on_held_out(run: Context, student: nn.Module, fraction: float) -> Evaluation | None:
    """The student on the training images that were held out, None if none were."""
    data = the_data(run)
    held_out = split_validation(len(data.y_train), fraction, run.seed)[1].to(data.y_train.device)
    if not len(held_out):
        return None
    return evaluate(student, data.tested_on(held_out), run.device, dtype=run.config["dtype"])


def tuned(
    run: Context, teacher: nn.Module, kernel: str, betas: Sequence[float], sampler: Sampler | None
) -> tuple[Student, dict[str, Any]]:
    """The student of the beta that does best on validation images: by accuracy, then by cross entropy.

    Returns:
        The student, and beta, validation and test accuracy of every one, with the chosen beta.
    """
    students = {
        beta: train_student(run, f"{kernel} at beta {beta:g}", teacher, kernel, beta, sampler) for beta in betas
    }
    validation = {beta: one.validation for beta, one in students.items() if one.validation is not None}
    curve: dict[str, Any] = {
        "beta": list(betas),
        "validation": [one.accuracy for one in validation.values()],
        "validation_loss": [one.loss if math.isfinite(one.loss) else None for one in validation.values()],
        "test": [one.test.accuracy for one in students.values()],
    }
    curve["chosen"] = betas[best(curve)] if validation else betas[0]
    return students[curve["chosen"]], curve


def best(curve: Mapping[str, Any]) -> int:
    """Where a beta curve is best on validation images: by accuracy, then by cross entropy."""
    points = list(zip(curve["validation"], curve["validation_loss"], strict=True))
    return max(range(len(points)), key=lambda i: (points[i][0], -math.inf if points[i][1] is None else -points[i][1]))
