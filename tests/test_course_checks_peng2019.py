"""The checks of the assignment on correlation congruence: the library passes, a student's likely mistakes are named."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from shrinkbook.course.checks import peng2019 as check
from shrinkbook.methods.correlation_congruence import (
    bilinear,
    consecutive_product_loss,
    correlation_congruence_loss,
    gaussian_rbf,
    unit_length,
)
from shrinkbook.methods.distillation import distillation_loss


def terms(features, gamma, powers, factorial=True):
    cosine = features @ features.T
    return sum((2 * gamma * cosine) ** p / (math.factorial(p) if factorial else 1) for p in powers)


def congruence(student, teacher, kernel, normal=unit_length, total=lambda squares: squares.mean()):
    return total((kernel(normal(student)) - kernel(normal(teacher))).square())


def softened(student, teacher, tau, power=2, reduction="batchmean", turned=False):
    logs = [F.log_softmax(logits / tau, 1) for logits in (student, teacher)]
    return tau**power * F.kl_div(*(logs[::-1] if turned else logs), reduction=reduction, log_target=True)


def divided_in_place(features):
    features /= features.norm(dim=1, keepdim=True)
    return features


def divided_by_at_least(features):
    return features / features.norm(dim=1, keepdim=True).clamp_min(1e-12)


def repaired(features):
    return torch.nan_to_num(features / features.norm(dim=1, keepdim=True))


def test_the_librarys_functions_pass():
    for seed, n, d in ((0, 6, 5), (1, 3, 9)):
        check.rows_have_unit_length(unit_length, seed, n, d)
        check.zero_rows_stay_zero(unit_length, seed, n, d)
        check.is_the_inner_product(bilinear, seed, n, d)
        check.is_the_series(gaussian_rbf, 3, 0.7, seed, n, d)
        check.is_the_mean_over_pairs(correlation_congruence_loss, bilinear, seed, n, d, d + 2)
        check.ignores_order_length_and_axes(correlation_congruence_loss, gaussian_rbf, seed, n, d)
        check.is_tau_squared_times_the_divergence(distillation_loss, 3.0, seed, n, d)
        check.gradient_keeps_its_size(distillation_loss, 3.0, seed, n, d)
    check.tends_to_the_gaussian(gaussian_rbf, 0.7)
    check.benchmark_sees_nothing(
        torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.0, -2.0], [0.0, 1.0]]),
        consecutive_product_loss, correlation_congruence_loss,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        (lambda f: f, "nothing was divided"),
        (lambda f: f / f.norm(dim=0), "normalised the columns"),
        (lambda f: f / f.norm(), "each row's own norm"),
        (lambda f: f / f.square().sum(1, keepdim=True), "not by its square"),
        (lambda f: f / f.abs().sum(1, keepdim=True), "sum of absolute values"),
        (lambda f: f / (f.norm(dim=1, keepdim=True) + 0.1), "expected"),
        (divided_in_place, "make a new tensor"),
        (lambda f: None, "is there a return"),
    ],
)
def test_lengths_that_are_wrong(mistake, named):
    with pytest.raises(AssertionError, match=named):
        check.rows_have_unit_length(mistake)


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        (lambda f: f / f.norm(dim=1, keepdim=True), "zero vector is NaN"),
        (repaired, "makes the gradient NaN"),
        (divided_by_at_least, "put zeros in that row"),
    ],
)
def test_zero_rows_that_are_wrong(mistake, named):
    with pytest.raises(AssertionError, match=named):
        check.zero_rows_stay_zero(mistake)


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        (lambda f: f.T @ f, r"has shape \(5, 5\); expected \(6, 6\)"),
        (lambda f: bilinear(unit_length(f)), "the loss normalises them"),
        (lambda f: bilinear(f).square(), "not squared"),
    ],
)
def test_inner_products_that_are_wrong(mistake, named):
    with pytest.raises(AssertionError, match=named):
        check.is_the_inner_product(mistake)


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        (lambda f, order, gamma: math.exp(-2 * gamma) * terms(f, gamma, range(order + 1), False), "1 / p! is missing"),
        (lambda f, order, gamma: terms(f, gamma, range(order + 1)), r"exp\(-2 gamma\) is missing"),
        (lambda f, order, gamma: math.exp(-2 * gamma) * terms(f, gamma, range(1, order + 1)), "p = 0 is missing"),
        (lambda f, order, gamma: math.exp(-2 * gamma) * terms(f, gamma, range(order)), "stops before p = P"),
        (lambda f, order, gamma: math.exp(-2 * gamma) * terms(f, gamma / 2, range(order + 1)), r"not gamma\^p"),
        (lambda f, order, gamma: math.exp(-gamma) * terms(f, gamma, range(order + 1)), r"exp\(-gamma\) for"),
        (lambda f, order, gamma: torch.exp(-gamma * (2 - 2 * f @ f.T)), "the exact RBF"),
        (lambda f, order, gamma: gaussian_rbf(f, order), "expected"),  # gamma is not looked at
    ],
)
def test_series_that_are_wrong(mistake, named):
    with pytest.raises(AssertionError, match=named):
        check.is_the_series(mistake, order=3, gamma=0.7)


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        (lambda f, order, gamma: gaussian_rbf(f, 2, gamma), "each order should come closer|still misses"),
        (lambda f, order, gamma: math.exp(2 * gamma) * gaussian_rbf(f, order, gamma), "still misses|come closer"),
    ],
)
def test_limits_that_are_wrong(mistake, named):
    with pytest.raises(AssertionError, match=named):
        check.tends_to_the_gaussian(mistake, 0.4)


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        (partial(congruence, normal=lambda f: f), "brought to unit length"),
        (partial(congruence, total=torch.sum), r"divided by n\^2$"),
        (partial(congruence, total=lambda squares: squares.sum() / len(squares)), "not by n"),
        (partial(congruence, total=lambda squares: squares.mean().sqrt()), "has to be squared"),
        (partial(congruence, total=lambda squares: squares.sum().sqrt() / squares.numel()), r"the norm over n\^2"),
        (partial(congruence, total=lambda squares: squares.sqrt().mean()), "not made positive"),
        (lambda s, t, kernel: congruence(s, t, bilinear), "kernel that is given is not used"),
        (lambda s, t, kernel: congruence(s.detach(), t, kernel), "no gradient reaches the student"),
    ],
)
def test_congruence_that_is_wrong(mistake, named):
    with pytest.raises(AssertionError, match=named):
        check.is_the_mean_over_pairs(mistake, lambda f: (f @ f.T).exp())


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        (partial(congruence, normal=lambda f: f), "other lengths"),
        (lambda s, t, kernel: consecutive_product_loss(s, t), "another order"),
        (lambda s, t, kernel: (unit_length(s) - unit_length(t)).square().mean(), "rotation"),
    ],
)
def test_losses_that_see_what_they_should_not(mistake, named):
    with pytest.raises(AssertionError, match=named):
        check.ignores_order_length_and_axes(mistake, bilinear)


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        (partial(softened, power=0), r"the factor tau\^2 is missing"),
        (partial(softened, power=1), r"tau\^2, not tau"),
        (partial(softened, turned=True), "wrong way round"),
        (lambda s, t, tau: tau**2 * softened(s, t, 1), "not divided by tau"),
        (lambda s, t, tau: tau**4 * softened(s, t, 1 / tau), "not multiplied"),
        (lambda s, t, tau: softened(s, t, tau) / s.shape[1], "average over the batch only"),
        (partial(softened, reduction="sum"), "instead of adding it up"),
        (lambda s, t, tau: -softened(s, t, tau), "sign"),
        (lambda s, t, tau: tau**2 * F.cross_entropy(s / tau, (t / tau).softmax(1)), "subtract the teacher's entropy"),
    ],
)
def test_distillation_that_is_wrong(mistake, named):
    with pytest.raises(AssertionError, match=named):
        check.is_tau_squared_times_the_divergence(mistake, 3.0)


@pytest.mark.parametrize(("power", "named"), [(0, "is missing"), (1, "not tau$")])
def test_a_missing_power_of_tau_shows_in_the_gradient(power, named):
    with pytest.raises(AssertionError, match=f"the gradient at tau 3: the factor .*{named}"):
        check.gradient_keeps_its_size(partial(softened, power=power), 3.0)


def test_features_that_solve_no_stretch_task():
    features = torch.eye(3)
    with pytest.raises(AssertionError, match="they are congruent, too"):
        check.benchmark_sees_nothing(features, features, consecutive_product_loss, correlation_congruence_loss)
    with pytest.raises(AssertionError, match="not 0"):
        check.benchmark_sees_nothing(features, features + 1, consecutive_product_loss, correlation_congruence_loss)
