"""Checks of the assignment on Chen et al. 2019: three losses of a generator number by number, in both forms."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shrinkbook.course.checks.compare import Number, agree, drawn
from shrinkbook.training import data

Loss = Callable[..., Tensor]

WHOSE = {"code": "the authors' code", "paper": "the paper"}


def probabilities(logits: Tensor) -> list[list[float]]:
    """softmax of each row, number by number."""
    exponentials = [[math.exp(value) for value in row] for row in logits.tolist()]
    return [[value / math.fsum(row) for value in row] for row in exponentials]


def mean(values: Sequence[float]) -> float:
    """Their mean."""
    return math.fsum(values) / len(values)


def entropy(p: Sequence[float]) -> float:
    """- sum_j p_j ln p_j, in nats, with 0 ln 0 = 0."""
    return -math.fsum(value * math.log(value) for value in p if value > 0)


def one_hot(logits: Tensor) -> float:
    """L_oh: what is wanted is the class that is largest already, so minus the log of its probability."""
    return mean([-math.log(max(p)) for p in probabilities(logits)])


def activation(features: Tensor, form: str) -> float:
    """L_a: minus the sum over the width in the paper, minus the mean in the code; mean over the batch."""
    sums = [math.fsum(abs(value) for value in row) for row in features.tolist()]
    return -mean(sums) / (1 if form == "paper" else features.shape[1])


def information_entropy(logits: Tensor, form: str) -> float:
    """L_ie: minus the entropy of the mean prediction; over k in the paper, to base ten in the code."""
    average = [mean(column) for column in zip(*probabilities(logits), strict=True)]
    return -entropy(average) / (len(average) if form == "paper" else math.log(10))


def is_minus_log_of_the_largest(loss: Loss, seed: int = 0, n: int = 6, k: int = 4) -> None:
    """L_oh of drawn logits, and 0 where every prediction is certain."""
    logits = 2 * drawn(n, k, seed=seed)
    p, right = torch.tensor(probabilities(logits)), one_hot(logits)
    mistakes: dict[str, Number] = {
        "take the mean over the batch, not the sum": right * n,
        "the sign is wrong: certain predictions must give the least loss": -right,
        "use the natural logarithm, not base 10": right / math.log(10),
        "use the natural logarithm, not base 2": right / math.log(2),
        "the target is the largest class alone, not the whole prediction": mean([entropy(row) for row in p.tolist()]),
        "cross_entropy takes logits; softmax was applied twice": one_hot(p),
        "this is the probability itself, its logarithm is missing": mean([-max(row) for row in p.tolist()]),
    }
    agree("one_hot_loss(logits)", loss(logits), right, mistakes)
    agree("one_hot_loss of certain predictions", loss(100 * torch.eye(k)), 0.0, atol=1e-5)


def makes_predictions_certain(loss: Loss, seed: int = 0, n: int = 6, k: int = 4) -> None:
    """The gradient is (softmax - one-hot) / n: a step down it raises the largest probability of every row."""
    logits = drawn(n, k, seed=seed).requires_grad_()
    found = loss(logits)
    assert isinstance(found, Tensor) and found.requires_grad, (
        "no gradient leads from one_hot_loss to the logits: is there a detach(), an item() or no_grad()?"
    )
    (gradient,) = torch.autograd.grad(found, logits)
    p = logits.detach().softmax(1)
    target = nn.functional.one_hot(p.argmax(1), k)
    right = (p - target) / n
    mistakes: dict[str, Number] = {
        "the sign is wrong: a step down makes predictions less certain": -right,
        "take the mean over the batch, not the sum": n * right,
    }
    agree("the gradient of one_hot_loss", gradient, right, mistakes, atol=1e-7)
    moved = (logits.detach() - gradient).softmax(1).amax(1)
    assert (moved > p.amax(1)).all(), "a step down the gradient makes some prediction less certain"


def is_minus_the_norm(loss: Loss, form: str, seed: int = 0, n: int = 5, width: int = 7) -> None:
    """L_a of drawn features, negative ones among them."""
    features = drawn(n, width, seed=seed)
    right, other = activation(features, form), activation(features, "code" if form == "paper" else "paper")
    mistakes: dict[str, Number] = {
        "the sign is wrong: active features must give a small loss": -right,
        "this is the other form: the paper sums over the width, the code takes the mean": other,
        "take the mean over the batch, not the sum": activation(features, "paper") * n,
        "features may be negative: their absolute values are meant": features.sum() / features.abs().sum() * right,
        "the l1 norm is meant, not the l2 norm": -features.norm(dim=1).mean(),
    }
    agree(f"activation_loss in the form of {WHOSE[form]}", loss(features, form), right, mistakes)


def is_minus_the_entropy_of_the_mean(loss: Loss, form: str, seed: int = 0, n: int = 12, k: int = 5) -> None:
    """L_ie of drawn logits: first the mean over the batch, then its entropy."""
    logits = 2 * drawn(n, k, seed=seed)
    p, right = probabilities(logits), information_entropy(logits, form)
    other = information_entropy(logits, "code" if form == "paper" else "paper")
    average = [mean(column) for column in zip(*p, strict=True)]
    nats = entropy(average)
    scale = right / nats  # from an entropy in nats to this form of the loss
    mistakes: dict[str, Number] = {
        "the sign is wrong: a batch of all classes must give the least loss": -right,
        "this is the other form: 1 / k and ln belong to the paper, log10 without 1 / k to the code": other,
        "the factor 1 / k is missing": -nats,
        "use the natural logarithm in the paper's form": -nats / math.log(10) / k,
        "this is the mean of the entropies; the entropy of the mean is meant": mean([entropy(row) for row in p])
        * scale,
        "take the mean of the probabilities, not of the logits": information_entropy(
            logits.mean(0, keepdim=True), form
        ),
        "the batch is averaged, not added up": entropy([n * value for value in average]) * scale,
        "base 2 was used": -nats / math.log(2) / (k if form == "paper" else 1),
    }
    what = f"information_entropy_loss in the form of {WHOSE[form]}"
    agree(what, loss(logits, form), right, mistakes, atol=1e-5)


def is_least_for_balanced_batches(loss: Loss, k: int) -> None:
    """-ln(k) / k where certain predictions show each class once or nothing is certain; 0, not NaN, for one class."""
    least = -math.log(k) / k
    mistakes: dict[str, Number] = {
        "each image may be certain; the entropy is that of their mean": 0.0,
        "the factor 1 / k is missing": least * k,
    }
    certain = 1000 * torch.eye(k)
    batches = {
        f"{k} certain images, each of another class": (certain, least),
        f"{k} images without any preference": (torch.zeros(k, k), least),
        f"{k} certain images of one class": (certain[torch.zeros(k, dtype=torch.long)], 0.0),
    }
    for name, (batch, right) in batches.items():
        found = loss(batch, "paper")
        assert not torch.as_tensor(found).isnan(), (
            f"L_ie of {name} is NaN: 0 log 0 counts as 0; torch.special.entr knows that"
        )
        agree(f"L_ie of {name}", found, right, mistakes, atol=1e-5)
    logits = drawn(2 * k, k, seed=k).requires_grad_()
    found = loss(logits, "paper")
    assert isinstance(found, Tensor) and found.requires_grad, "no gradient leads from L_ie to the logits"
    (gradient,) = torch.autograd.grad(found, logits)
    after = information_entropy((logits - k * gradient).detach(), "paper")
    assert after < information_entropy(logits.detach(), "paper"), "a step down the gradient makes classes less balanced"


def weighs_the_three(
    generator_loss: Callable[..., Any], weights: Callable[[float, float, float], Any], form: str, seed: int = 0
) -> None:
    """L_oh + alpha L_a + beta L_ie with every weight in its place, the parts beside it, and gradient to both inputs.

    Args:
        weights: of the one-hot, the entropy and the activation loss, in this order.
    """
    logits, features = drawn(9, 4, seed=seed).requires_grad_(), drawn(9, 6, seed=seed + 1).requires_grad_()
    factors, other = (2.0, 3.0, 5.0), "code" if form == "paper" else "paper"
    parts = one_hot(logits), information_entropy(logits, form), activation(features, form)
    turned = one_hot(logits), information_entropy(logits, other), activation(features, other)
    found = generator_loss(logits, features, weights(*factors), form)
    for name, factor, part, wrong in zip(("one_hot", "entropy", "activation"), factors, parts, turned, strict=True):
        remarks = {"it is weighted; parts are given as they are": factor * part, "form is not handed on to it": wrong}
        agree(f"{name} in the form of {WHOSE[form]}", getattr(found, name), part, remarks, atol=1e-5)

    def total(*chosen: float) -> float:
        return math.fsum(weight * part for weight, part in zip(chosen, parts, strict=True))

    mistakes: dict[str, Number] = {
        "the weights of the activation and the entropy loss are swapped": total(2, 5, 3),
        "the one-hot loss has a weight, too": total(1, 3, 5),
        "the weights are not used": total(1, 1, 1),
    }
    agree(f"the total in the form of {WHOSE[form]}", found.total, total(*factors), mistakes, atol=1e-5)
    gradients = torch.autograd.grad(found.total, (logits, features), allow_unused=True)
    assert all(one is not None and one.any() for one in gradients), "no gradient reaches the logits or the features"


def knows_digits(student: nn.Module, least: float = 60.0) -> float:
    """Self-check of the stretch task: accuracy of a student on real digits, in percent."""
    digits = data.load("digits")
    with torch.no_grad():
        found = student.eval()(digits.normalise(digits.x_test)).argmax(1)
    accuracy = 100 * (found == digits.y_test).double().mean().item()
    assert accuracy >= least, (
        f"{accuracy:.1f} % of real digits are right; {least:g} % can be reached without seeing any"
    )
    return accuracy
