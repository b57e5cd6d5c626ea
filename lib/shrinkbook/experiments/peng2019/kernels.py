"""CE, KD and KD with correlation congruence side by side: kernels at their own beta, orders, losses, similarities."""

from typing import Any

import torch
from torch import Tensor, nn

from shrinkbook.experiments.experiment import Context
from shrinkbook.experiments.peng2019.students import (
    Student,
    best,
    features_of,
    sampler_of,
    teacher_of,
    train_student,
    tuned,
)
from shrinkbook.methods.correlation_congruence import bilinear, congruence_error, intra_class_similarity, unit_length
from shrinkbook.training.batches import Sampler

DEFAULT = "rbf2"  # the kernel that stands for CCKD; its loss is watched in plain distillation, too
SHOWN = 3  # test images of each class in the similarity maps


def by_kernel(run: Context) -> None:
    """Every arm from the same weights; those that are distilled share batches, too.

    Each kernel gets the beta of its own that does best on validation images, here or in the parent that tuned it.
    Cross entropy and the benchmark's loss, which have no distillation term, see uniform batches.
    """
    teacher = teacher_of(run)
    run.stage("teacher", teacher)
    config = run.config
    sampler = sampler_of(run, teacher, config["sampler"])
    arms = {
        "ce": train_student(run, "ce", teacher, None),
        "kd": train_student(run, "kd", teacher, DEFAULT, 0.0, sampler),
    }
    if config["consecutive"]:
        arms["consecutive"] = train_student(run, "consecutive", teacher, "consecutive")
    curves: dict[str, dict[str, Any]] = {}
    for kernel, betas in candidates(run).items():
        arms[kernel], curves[kernel] = tuned(run, teacher, kernel, betas, sampler)
        run.progress(f"{kernel}: beta {curves[kernel]['chosen']:g}, {arms[kernel].test.accuracy:.2f} %")
    run.measurements["accuracy"] = {name: run.stage(name, student.model) for name, student in arms.items()}
    run.measurements["beta"] = curves
    run.measurements["gaps"] = compare_accuracies(run.measurements["accuracy"])
    if DEFAULT in arms and not arms["kd"].diverged and not arms[DEFAULT].diverged:
        compare_losses(run, arms)
        compare_features(run, teacher, arms)
        if config["ends"]:
            wide_beta(run, teacher, curves[DEFAULT], sampler)
        if config["common_beta"]:
            common_beta(run, teacher, curves, sampler)
    for name, address in config["cells"].items():
        run.cell(address, run.measurements["accuracy"][name])


def candidates(run: Context) -> dict[str, list[float]]:
    """The betas to try, kernel by kernel; one each where a parent has chosen."""
    source = run.config["betas_from"]
    if source is None:
        return dict(run.config["betas"])
    chosen = run.parents[source]["measurements"]["beta"]
    return {kernel: [chosen[kernel]["chosen"]] for kernel in run.config["betas"]}


def compare_accuracies(accuracy: dict[str, float]) -> dict[str, Any]:
    """Gaps that claims read. Order 1 is the bilinear kernel at another beta and so, beta being tuned, the same arm."""
    gaps: dict[str, Any] = {}
    if "bilinear" in accuracy:
        accuracy["rbf1"] = accuracy["bilinear"]
    if "bilinear" in accuracy and DEFAULT in accuracy:
        gaps["rbf_bilinear_within_1"] = 1 - abs(accuracy[DEFAULT] - accuracy["bilinear"])
    if "consecutive" in accuracy:
        gaps["consecutive_gain_below_1"] = 1 - (accuracy["consecutive"] - accuracy["ce"])
    return gaps


def compare_losses(run: Context, arms: dict[str, Student]) -> None:
    """L_KD and L_CC by epoch with and without congruence, means over the steps; of the last epoch also in numbers."""
    curves = run.measurements["losses"] = {
        name: {part: [round(row[part], 6) for row in arms[name].history] for part in ("distillation", "congruence")}
        for name in ("kd", DEFAULT)
    }
    last = {part: {name: curve[part][-1] for name, curve in curves.items()} for part in ("distillation", "congruence")}
    plain, congruent = (last["distillation"][name] for name in ("kd", DEFAULT))
    run.measurements["last_epoch"] = last
    run.measurements["gaps"]["distillation_within_10_percent"] = 10 - 100 * abs(congruent / plain - 1)


def compare_features(run: Context, teacher: nn.Module, arms: dict[str, Student]) -> None:
    """Intra-class similarity and distance to the teacher's similarities over all test images, and maps of some."""
    target, labels = features_of(run, teacher)
    similarity = {"teacher": intra_class_similarity(target, labels)}
    error, maps = {}, {"teacher": similarity_map(target, labels)}
    for name, student in arms.items():
        if student.diverged:
            continue
        features, _ = features_of(run, student.model)
        similarity[name] = intra_class_similarity(features, labels)
        error[name] = congruence_error(features, target)
        if name in ("kd", DEFAULT):
            maps[name] = similarity_map(features, labels)
    run.measurements["intra_class"] = similarity
    run.measurements["congruence_error"] = error
    run.measurements["similarity"] = maps


def similarity_map(features: Tensor, labels: Tensor) -> list[str]:
    """Cosines, in percent, of the first test images of each of up to ten classes, sorted by class; a text a row."""
    chosen = [torch.nonzero(labels == label)[:SHOWN, 0] for label in labels.unique()[:10]]
    cosines = bilinear(unit_length(features[torch.cat(chosen)]))
    return [" ".join(str(round(100 * value)) for value in row) for row in cosines.tolist()]


def wide_beta(run: Context, teacher: nn.Module, curve: dict[str, Any], sampler: Sampler | None) -> None:
    """The beta curve of the default kernel with a small and a large beta at its ends; the best on validation images
    against both ends, on test images."""
    _, ends = tuned(run, teacher, DEFAULT, run.config["ends"], sampler)
    columns = ("beta", "validation", "validation_loss", "test")
    points = sorted(zip(*[[*curve[name], *ends[name]] for name in columns], strict=True), key=lambda point: point[0])
    wide = {name: [point[index] for point in points] for index, name in enumerate(columns)}
    test = wide["test"]
    run.measurements["wide_beta"] = wide | {"above_ends": [test[best(wide)] - test[end] for end in (0, -1)]}


def common_beta(run: Context, teacher: nn.Module, curves: dict[str, Any], sampler: Sampler | None) -> None:
    """Taylor orders 1, 2 and 3 at one beta: the scale of the loss, which grows with the order, is not taken out."""
    beta = run.config["common_beta"]
    first = train_student(run, f"rbf1 at beta {beta:g}", teacher, "rbf1", beta, sampler)
    others = {name: curves[name]["test"][curves[name]["beta"].index(beta)] for name in ("rbf2", "rbf3")}
    run.measurements["common_beta"] = {"rbf1": first.test.accuracy, **others}
