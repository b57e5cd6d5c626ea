"""The checks of the assignment on data-free learning: the library passes, a student's likely mistakes are named."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from shrinkbook import nets
from shrinkbook.course.checks import chen2019 as check
from shrinkbook.methods.dafl import (
    Losses,
    Weights,
    activation_loss,
    generator_loss,
    information_entropy_loss,
    one_hot_loss,
)
from shrinkbook.training import data


def entropies(logits):
    """Of each image, not of their mean."""
    return torch.special.entr(logits.softmax(1)).sum(1)


def plain(logits, form="paper"):
    """p log p without care for 0 log 0."""
    mean = logits.softmax(1).mean(0)
    return (mean * mean.log()).sum() / (logits.shape[1] if form == "paper" else math.log(10))


def by_form(paper, code):
    return lambda values, form: paper(values) if form == "paper" else code(values)


@pytest.mark.parametrize("form", ["paper", "code"])
def test_the_librarys_functions_pass(form):
    for seed, n, k in ((0, 6, 4), (1, 12, 10)):
        check.is_minus_log_of_the_largest(one_hot_loss, seed, n, k)
        check.makes_predictions_certain(one_hot_loss, seed, n, k)
        check.is_minus_the_norm(activation_loss, form, seed, n, k)
        check.is_minus_the_entropy_of_the_mean(information_entropy_loss, form, seed, n, k)
        check.is_least_for_balanced_batches(information_entropy_loss, k)
        check.weighs_the_three(generator_loss, Weights, form, seed)


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        (lambda z: F.cross_entropy(z, z.argmax(1), reduction="sum"), "not the sum"),
        (lambda z: -one_hot_loss(z), "sign"),
        (lambda z: -z.softmax(1).amax(1).log10().mean(), "not base 10"),
        (lambda z: -z.softmax(1).amax(1).log2().mean(), "not base 2"),
        (lambda z: F.cross_entropy(z, z.softmax(1)), "the largest class alone"),
        (lambda z: one_hot_loss(z.softmax(1)), "applied twice"),
        (lambda z: -z.softmax(1).amax(1).mean(), "its logarithm is missing"),
        (lambda z: -z.softmax(1).amax(1).log(), "has shape"),
    ],
)
def test_one_hot_losses_that_are_wrong(mistake, named):
    with pytest.raises(AssertionError, match=named):
        check.is_minus_log_of_the_largest(mistake)


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        (lambda z: one_hot_loss(z.detach()), "no gradient leads"),
        (lambda z: one_hot_loss(z).item(), "no gradient leads"),
        (lambda z: one_hot_loss(z) * len(z), "mean over the batch"),
        (lambda z: -one_hot_loss(z), "less certain"),
    ],
)
def test_one_hot_gradients_that_are_wrong(mistake, named):
    with pytest.raises(AssertionError, match=named):
        check.makes_predictions_certain(mistake)


@pytest.mark.parametrize("form", ["paper", "code"])
@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        (lambda f, form: -activation_loss(f, form), "sign"),
        (lambda f, form: activation_loss(f, "code" if form == "paper" else "paper"), "the other form"),
        (lambda f, form: -f.abs().sum(), "not the sum"),
        (by_form(lambda f: -f.sum(1).mean(), lambda f: -f.mean()), "absolute values"),
        (lambda f, form: -f.norm(dim=1).mean(), "not the l2 norm"),
    ],
)
def test_activation_losses_that_are_wrong(mistake, named, form):
    with pytest.raises(AssertionError, match=named):
        check.is_minus_the_norm(mistake, form)


@pytest.mark.parametrize(
    ("form", "mistake", "named"),
    [
        ("paper", lambda z, form: -plain(z), "sign"),
        ("code", lambda z, form: -plain(z, "code"), "sign"),
        ("paper", lambda z, form: plain(z, "code"), "the other form"),
        ("code", lambda z, form: plain(z), "the other form"),
        ("paper", lambda z, form: plain(z) * z.shape[1], "the factor 1 / k is missing"),
        ("paper", lambda z, form: plain(z) / math.log(10), "natural logarithm"),
        ("paper", lambda z, form: plain(z) / math.log(2), "base 2"),
        ("code", lambda z, form: plain(z, "code") * math.log(10) / math.log(2), "base 2"),
        ("paper", lambda z, form: -entropies(z).mean() / z.shape[1], "the mean of the entropies"),
        ("code", lambda z, form: -entropies(z).mean() / math.log(10), "the mean of the entropies"),
        ("paper", lambda z, form: plain(z.mean(0, keepdim=True)), "not of the logits"),
        ("paper", lambda z, form: -torch.special.entr(z.softmax(1).sum(0)).sum() / z.shape[1], "not added up"),
    ],
)
def test_entropy_losses_that_are_wrong(form, mistake, named):
    with pytest.raises(AssertionError, match=named):
        check.is_minus_the_entropy_of_the_mean(mistake, form)


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        (lambda z, form: plain(z), "0 log 0 counts as 0"),
        (lambda z, form: -entropies(z).mean() / z.shape[1], "the entropy is that of their mean"),
        (lambda z, form: information_entropy_loss(z, form) * z.shape[1], "the factor 1 / k is missing"),
        (lambda z, form: information_entropy_loss(z.detach(), form), "no gradient leads"),
    ],
)
def test_entropy_losses_that_are_wrong_at_their_ends(mistake, named):
    with pytest.raises(AssertionError, match=named):
        check.is_least_for_balanced_batches(mistake, 6)


def test_a_little_added_before_the_logarithm_is_right_enough():
    def added(logits, form):
        mean = logits.softmax(1).mean(0)
        return (mean * (mean + 1e-8).log()).sum() / logits.shape[1]

    check.is_minus_the_entropy_of_the_mean(added, "paper")
    check.is_least_for_balanced_batches(added, 6)


@pytest.mark.parametrize("form", ["paper", "code"])
@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        (lambda z, f, w, form: generator_loss(z, f, Weights(w.one_hot, w.activation, w.entropy), form), "swapped"),
        (lambda z, f, w, form: generator_loss(z, f, replace(w, one_hot=1), form), "the one-hot loss has a weight, too"),
        (lambda z, f, w, form: generator_loss(z, f, Weights(1, 1, 1), form), "weights are not used"),
        (
            lambda z, f, w, form: generator_loss(z, f, w, "code" if form == "paper" else "paper"),
            "form is not handed on",
        ),
        (lambda z, f, w, form: generator_loss(z.detach(), f, w, form), "no gradient reaches"),
        (lambda z, f, w, form: generator_loss(z, f.detach(), w, form), "no gradient reaches"),
    ],
)
def test_sums_that_are_wrong(mistake, named, form):
    with pytest.raises(AssertionError, match=named):
        check.weighs_the_three(mistake, Weights, form)


def test_parts_that_are_weighted_or_in_the_wrong_place():
    def weighted(z, f, w, form):
        found = generator_loss(z, f, w, form)
        return replace(found, one_hot=w.one_hot * found.one_hot)

    def swapped(z, f, w, form):
        found = generator_loss(z, f, w, form)
        return Losses(found.total, found.one_hot, found.activation, found.entropy)

    for mistake, named in ((weighted, "parts are given as they are"), (swapped, "entropy in the form")):
        with pytest.raises(AssertionError, match=named):
            check.weighs_the_three(mistake, Weights, "paper")


def test_a_student_is_asked_about_real_digits():
    digits = data.load("digits")
    student = nets.initialize(nets.hinton_net(32, 64), 1)
    with pytest.raises(AssertionError, match="% of real digits are right"):
        check.knows_digits(student)
    for _ in range(40):
        loss = F.cross_entropy(student(digits.normalise(digits.x_train)), digits.y_train)
        for weight, gradient in zip(
            student.parameters(), torch.autograd.grad(loss, [*student.parameters()]), strict=True
        ):
            weight.data -= 0.3 * gradient
    assert check.knows_digits(student) > 80
