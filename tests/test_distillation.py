"""The distillation loss against its definition: values by hand, gradient by formula, the factor tau^2, bad input."""

import pytest
import torch
from torch.nn import functional as F

from shrinkbook.course.checks import peng2019 as check
from shrinkbook.course.checks.compare import drawn
from shrinkbook.methods.distillation import distillation_loss


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_it_is_the_divergence_summed_over_classes_and_averaged_over_the_batch(tau):
    check.is_tau_squared_times_the_divergence(distillation_loss, tau)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_the_gradient_keeps_its_size(tau):
    """What tau^2 is for: without it the gradient would vanish as 1 / tau^2."""
    check.gradient_keeps_its_size(distillation_loss, tau)


def test_at_temperature_one_the_gradient_is_that_of_cross_entropy_with_soft_targets():
    teacher = drawn(4, 6, seed=1)
    gradients = []
    for loss in (distillation_loss, lambda s, t: F.cross_entropy(s, t.softmax(1))):
        student = drawn(4, 6).requires_grad_()
        loss(student, teacher).backward()
        gradients.append(student.grad)
    assert torch.allclose(*gradients, rtol=1e-12)


def test_half_precision_is_computed_in_float32():
    student, teacher = drawn(4, 6).bfloat16(), drawn(4, 6, seed=1).bfloat16()
    loss = distillation_loss(student, teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(check.divergence(student.double(), teacher.double(), 1.0), rel=1e-5)


@pytest.mark.parametrize("tau", [0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(tau):
    with pytest.raises(ValueError, match="temperature .* is not positive"):
        distillation_loss(drawn(4, 6), drawn(4, 6), tau)


@pytest.mark.parametrize("shapes", [((4, 6), (3, 6)), ((4, 6), (4, 5)), ((6,), (6,)), ((0, 6), (0, 6))])
def test_shapes_that_do_not_fit_are_named(shapes):
    with pytest.raises(ValueError, match=r"student \(.*\), teacher \(.*\)"):
        distillation_loss(*(drawn(*shape) for shape in shapes))


def test_a_teacher_with_gradients_on_is_refused():
    with pytest.raises(ValueError, match=r"torch\.no_grad"):
        distillation_loss(drawn(4, 6), drawn(4, 6).requires_grad_())
