"""The distillation loss against its definition: values by hand, gradient by formula, the factor tau^2, bad input."""

import math

import pytest
import torch
from torch.nn import functional as F

from shrinkbook.methods.distillation import distillation_loss


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_hand(student: torch.Tensor, teacher: torch.Tensor, tau: float) -> float:
    total = 0.0
    for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
        s_sum, t_sum = (sum(math.exp(v / tau) for v in row) for row in (s_row, t_row))
        for s, t in zip(s_row, t_row, strict=True):
            p, q = math.exp(t / tau) / t_sum, math.exp(s / tau) / s_sum
            total += p * math.log(p / q)
    return tau**2 * total / len(student)


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_it_is_the_divergence_summed_over_classes_and_averaged_over_the_batch(tau):
    student, teacher = drawn(5, 7), 3 * drawn(5, 7, seed=1)
    assert distillation_loss(student, teacher, tau).item() == pytest.approx(by_hand(student, teacher, tau), rel=1e-12)
    assert distillation_loss(teacher, teacher, tau).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_gradient_is_tau_times_the_difference_of_the_probabilities(tau):
    student, teacher = drawn(4, 6).requires_grad_(), drawn(4, 6, seed=1)
    distillation_loss(student, teacher, tau).backward()
    expected = tau * ((student / tau).softmax(1) - (teacher / tau).softmax(1)) / 4
    assert torch.allclose(student.grad, expected.detach(), rtol=1e-12)


def test_hot_distillation_matches_centred_logits():
    """What tau^2 is for: without it the gradient would vanish as 1 / tau^2."""
    student, teacher = drawn(4, 6).requires_grad_(), drawn(4, 6, seed=1)
    distillation_loss(student, teacher, 1e4).backward()
    centred = [logits - logits.mean(1, keepdim=True) for logits in (student.detach(), teacher)]
    assert torch.allclose(student.grad, (centred[0] - centred[1]) / 6 / 4, atol=1e-4)


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
    assert loss.item() == pytest.approx(by_hand(student.double(), teacher.double(), 1.0), rel=1e-5)


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
