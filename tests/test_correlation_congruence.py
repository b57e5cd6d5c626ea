"""Correlation congruence: kernels against loops and the exact RBF, what separates the paper's loss from the other."""

import math
import warnings
from functools import partial

import pytest
import torch
from torch import Tensor

from shrinkbook.course.checks import peng2019 as check
from shrinkbook.course.checks.compare import drawn
from shrinkbook.methods import correlation_congruence as cc
from shrinkbook.methods.correlation_congruence import KERNELS, correlation_congruence_loss, unit_length


def rotation(d: int) -> Tensor:
    return torch.linalg.qr(drawn(d, d, seed=9))[0]


STUDENT, TEACHER = drawn(6, 5), drawn(6, 5, seed=1).relu() + 0.1
LABELS = torch.tensor([0, 0, 1, 1, 1, 2])


def pairwise(name: str, x: list[float], y: list[float]) -> float:
    """phi(x, y) of two vectors by its formula, number by number."""
    if name == "mmd":
        return abs(math.fsum(x) / len(x) - math.fsum(y) / len(y))
    if name == "bilinear":
        return check.inner(x, y)
    if name == "rbf":
        return math.exp(-0.4 * math.fsum((a - b) ** 2 for a, b in zip(x, y, strict=True)))
    return check.series(x, y, int(name[3:]), 0.4)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_and_loss_are_their_formulas_pair_by_pair(name):
    units = check.directions(STUDENT)
    assert torch.allclose(KERNELS[name](units), check.pairs(units, partial(pairwise, name)), atol=1e-12)
    check.is_the_mean_over_pairs(correlation_congruence_loss, KERNELS[name], d=5, other=7)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_the_series_has_all_its_terms(order):
    check.is_the_series(cc.gaussian_rbf, order, gamma=0.9)


@pytest.mark.parametrize(("order", "largest"), [(1, 0.191), (2, 0.047), (3, 0.009), (4, 0.0014), (5, 0.0002)])
def test_the_series_tends_to_the_gaussian(order, largest):
    """The largest error over all cosines from -1 to 1, at gamma = 0.4."""
    angles = torch.linspace(0, math.pi, 181, dtype=torch.float64)
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    error = (cc.gaussian_rbf(circle, order) - cc.gaussian_rbf_exact(circle)).abs().max()
    assert error.item() == pytest.approx(largest, rel=0.06, abs=5e-5)
    check.tends_to_the_gaussian(cc.gaussian_rbf, gamma=0.4)
    gradients = []
    for kernel in (partial(cc.gaussian_rbf, order=20), cc.gaussian_rbf_exact):
        student = STUDENT.clone().requires_grad_()
        correlation_congruence_loss(student, TEACHER, kernel).backward()
        gradients.append(student.grad)
    assert torch.allclose(*gradients, atol=1e-14)


def test_order_one_is_the_bilinear_kernel_at_another_weight():
    """So that with beta tuned for each kernel the two are one arm."""
    factor = (0.8 * math.exp(-0.8)) ** 2
    assert factor == pytest.approx(0.129, abs=5e-4)
    first = correlation_congruence_loss(STUDENT, TEACHER, KERNELS["rbf1"])
    assert first.item() == pytest.approx(factor * correlation_congruence_loss(STUDENT, TEACHER, cc.bilinear).item())


def losses(student: Tensor, teacher: Tensor) -> dict[str, float]:
    found = {name: correlation_congruence_loss(student, teacher, kernel).item() for name, kernel in KERNELS.items()}
    return found | {"consecutive": cc.consecutive_product_loss(student, teacher).item()}


def test_the_papers_loss_ignores_the_order_of_the_batch_and_the_benchmarks_does_not():
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    before, after = losses(STUDENT, TEACHER), losses(STUDENT[order], TEACHER[order])
    moved = {name for name in before if after[name] != pytest.approx(before[name], rel=1e-12)}
    assert moved == {"consecutive"}


def test_rotating_the_students_features_alone_moves_the_benchmarks_loss_and_naive_mmd():
    before, after = losses(STUDENT, TEACHER), losses(STUDENT @ rotation(5), TEACHER)
    moved = {name for name in before if after[name] != pytest.approx(before[name], rel=1e-12)}
    assert moved == {"consecutive", "mmd"}


def test_the_consecutive_product_is_its_formula():
    expected = math.fsum(
        abs(STUDENT[i, d] - TEACHER[i, d]).item() * abs(STUDENT[i + 1, d] - TEACHER[i + 1, d]).item()
        for i in range(5)
        for d in range(5)
    )
    assert cc.consecutive_product_loss(STUDENT, TEACHER).item() == pytest.approx(expected / 5)
    alternating = TEACHER + torch.tensor([1.0, 0, 1, 0, 1, 0], dtype=torch.float64)[:, None]
    assert cc.consecutive_product_loss(alternating, TEACHER) == 0  # every second image wrong costs it nothing
    assert correlation_congruence_loss(alternating, TEACHER) > 1e-4


def test_a_step_down_the_gradient_brings_the_student_to_the_teacher():
    student = STUDENT.clone().requires_grad_()
    start = cc.congruence_error(student, TEACHER)
    for _ in range(600):
        (gradient,) = torch.autograd.grad(correlation_congruence_loss(student, TEACHER), student)
        student = (student - 20 * gradient).detach().requires_grad_()
    assert cc.congruence_error(student, TEACHER) < 0.01 < start


def test_both_readings_of_the_objective():
    ce, kd, congruence = (torch.tensor(value) for value in (2.0, 3.0, 5.0))
    assert cc.combined(ce, kd, congruence, 0.25, 0.1, "weighted").item() == pytest.approx(0.25 * 2 + 0.75 * 3 + 0.5)
    assert cc.combined(ce, kd, congruence, 0.25, 0.1, "added").item() == pytest.approx(2 + 0.25 * 3 + 0.5)
    with pytest.raises(ValueError, match="there are weighted, added"):
        cc.combined(ce, kd, congruence, 0.5, 1.0, "mixed")  # type: ignore[arg-type]
    for alpha, beta, reading in ((1.5, 1.0, "weighted"), (-0.1, 1.0, "added"), (0.5, -1.0, "weighted")):
        with pytest.raises(ValueError, match="weights are not negative"):
            cc.combined(ce, kd, congruence, alpha, beta, reading)
    assert cc.combined(ce, kd, congruence, 1.5, 0.0, "added").item() == pytest.approx(6.5)


def test_the_frozen_projection_keeps_inner_products_in_the_mean_and_cannot_be_trained():
    x = unit_length(drawn(8, 40)).float()
    inner = torch.stack([cc.bilinear(cc.FrozenProjection(40, 16, seed)(x)) for seed in range(600)]).mean(0)
    assert torch.allclose(inner, cc.bilinear(x), atol=0.06)
    projection = cc.FrozenProjection(40, 16)
    assert not list(projection.parameters()) and "weight" in projection.state_dict()
    assert torch.equal(projection.weight, cc.FrozenProjection(40, 16).weight)


def test_what_a_trained_projection_of_the_teacher_does():
    """Congruence alone lets a trainable teacher side collapse: the loss falls although nothing is learnt."""
    student, teacher = STUDENT.abs() + 3, TEACHER.clone().requires_grad_()  # a student that tells nothing apart
    start = (cc.bilinear(unit_length(student)) - cc.bilinear(unit_length(teacher))).square().mean().item()
    for _ in range(400):
        loss = (cc.bilinear(unit_length(student)) - cc.bilinear(unit_length(teacher))).square().mean()
        (gradient,) = torch.autograd.grad(loss, teacher)
        teacher = (teacher - 2 * gradient).detach().requires_grad_()
    assert loss.item() < 0.02 * start
    assert cc.intra_class_similarity(teacher, torch.zeros(6, dtype=torch.int64)) > 0.95


def test_diagnostics_are_means_over_pairs_of_the_cosine_matrix():
    s, t = (cc.bilinear(unit_length(features)) for features in (STUDENT, TEACHER))
    off = ~torch.eye(6, dtype=torch.bool)
    same = (LABELS[:, None] == LABELS[None]) & off
    assert cc.intra_class_similarity(STUDENT, LABELS) == pytest.approx(s[same].mean().item())
    assert cc.congruence_error(STUDENT, TEACHER) == pytest.approx((s - t)[off].square().mean().sqrt().item())
    assert cc.congruence_error(TEACHER @ rotation(5), TEACHER) == pytest.approx(0, abs=1e-7)
    tight = torch.eye(3, dtype=torch.float64)[LABELS]
    assert cc.intra_class_similarity(tight, LABELS) == pytest.approx(1)


def test_rows_are_brought_to_unit_length():
    check.rows_have_unit_length(unit_length)
    check.zero_rows_stay_zero(unit_length)


def test_features_without_a_direction_are_warned_of_and_get_no_gradient():
    student = STUDENT.clone()
    student[2] = 0
    student.requires_grad_()
    with pytest.warns(UserWarning, match="some feature vectors have norm 0"):
        loss = correlation_congruence_loss(student, TEACHER)
    loss.backward()
    assert student.grad.isfinite().all() and not student.grad[2].any() and student.grad[1].any()
    with pytest.warns(UserWarning, match="norm 0"):
        error = cc.congruence_error(student, TEACHER)
    directions = torch.nn.functional.normalize(student.detach())
    difference = cc.bilinear(directions) - cc.bilinear(unit_length(TEACHER))
    assert error == pytest.approx(difference[~torch.eye(6, dtype=torch.bool)].square().mean().sqrt().item())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        correlation_congruence_loss(STUDENT, TEACHER)


def test_half_precision_is_computed_in_float32():
    loss = correlation_congruence_loss(STUDENT.bfloat16(), TEACHER.bfloat16())
    assert loss.dtype == torch.float32
    exact = correlation_congruence_loss(STUDENT.bfloat16().double(), TEACHER.bfloat16().double())
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("kernel", cc.KERNELS.values(), ids=cc.KERNELS)
def test_autocast_takes_no_digits_from_the_similarities(kernel):
    student, teacher = STUDENT.float(), TEACHER.float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = correlation_congruence_loss(student, teacher, kernel)
    assert loss.dtype == torch.float32 and loss.item() == correlation_congruence_loss(student, teacher, kernel).item()


@pytest.mark.parametrize("loss", [correlation_congruence_loss, cc.consecutive_product_loss, cc.congruence_error])
def test_batches_that_do_not_fit_are_named(loss):
    with pytest.raises(ValueError, match=r"student \(6, 5\), teacher \(4, 5\)"):
        loss(STUDENT, TEACHER[:4])
    with pytest.raises(ValueError, match="1 image; a correlation needs at least two"):
        loss(STUDENT[:1], TEACHER[:1])
    with pytest.raises(ValueError, match=r"must be \(images, features\)"):
        loss(STUDENT[:, :, None], TEACHER[:, :, None])


def test_other_bad_input_is_named():
    with pytest.raises(ValueError, match=r"ask for a gradient.*torch\.no_grad"):
        correlation_congruence_loss(STUDENT, TEACHER.clone().requires_grad_())
    with pytest.raises(ValueError, match="5 and 3 features.*map both to one size"):
        cc.consecutive_product_loss(STUDENT, TEACHER[:, :3])
    assert correlation_congruence_loss(STUDENT, TEACHER[:, :3]).isfinite()  # matrices of pairs fit all the same
    for order, gamma in ((0, 0.4), (2, 0.0), (2, -1.0)):
        with pytest.raises(ValueError, match="the order starts at 1, gamma is above 0"):
            cc.gaussian_rbf(STUDENT, order, gamma)
    with pytest.raises(ValueError, match="flatten them"):
        unit_length(drawn(4, 4)[None])
    with pytest.raises(ValueError, match="one label an image"):
        cc.intra_class_similarity(STUDENT, LABELS[:3])
    with pytest.raises(ValueError, match="no two of 6 images are of one class"):
        cc.intra_class_similarity(STUDENT, torch.arange(6))
