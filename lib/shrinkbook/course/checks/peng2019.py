"""Checks of the assignment on Peng et al. 2019: kernels pair by pair, what the loss may not see, the factor tau^2."""

import math
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from shrinkbook.course.checks.compare import Number, agree, drawn

Kernel = Callable[..., Tensor]
Loss = Callable[..., Tensor]


def inner(x: list[float], y: list[float]) -> float:
    """x . y of two vectors, number by number."""
    return math.fsum(a * b for a, b in zip(x, y, strict=True))


def series(x: list[float], y: list[float], order: int, gamma: float) -> float:
    """The Taylor series of the Gaussian RBF for two vectors of unit length, term by term."""
    terms = ((2 * gamma) ** p / math.factorial(p) * inner(x, y) ** p for p in range(order + 1))
    return math.exp(-2 * gamma) * math.fsum(terms)


def pairs(features: Tensor, phi: Callable[[list[float], list[float]], float]) -> Tensor:
    """The matrix phi(f_i, f_j) of a batch, pair by pair."""
    rows = features.tolist()
    return torch.tensor([[phi(x, y) for y in rows] for x in rows], dtype=torch.float64)


def directions(features: Tensor) -> Tensor:
    """Each row divided by its length, number by number."""
    rows = [[value / math.sqrt(inner(row, row)) for value in row] for row in features.tolist()]
    return torch.tensor(rows, dtype=torch.float64)


def rows_have_unit_length(unit_length: Callable[[Tensor], Tensor], seed: int = 0, n: int = 6, d: int = 5) -> None:
    """Directions are kept, lengths become 1."""
    features = drawn(n, d, seed=seed) * torch.arange(1, n + 1)[:, None]
    before = features.clone()
    mistakes: dict[str, Number] = {
        "each row is an image; you normalised the columns": features / features.norm(dim=0),
        "divide by each row's own norm, not by that of the whole matrix": features / features.norm(),
        "divide by the Euclidean norm, not by its square": features / features.square().sum(1, keepdim=True),
        "divide by the Euclidean norm, not by the sum of absolute values": features / features.abs().sum(1, True),
        "nothing was divided": features,
    }
    agree("unit_length(features)", unit_length(features), directions(features), mistakes)
    assert torch.equal(features, before), "unit_length changed the features that it was given; make a new tensor"


def zero_rows_stay_zero(unit_length: Callable[[Tensor], Tensor], seed: int = 0, n: int = 5, d: int = 4) -> None:
    """A vector without direction stays zero and gets no gradient, the others are as they would be without it."""
    features = drawn(n, d, seed=seed)
    features[1] = 0
    features.requires_grad_()
    others = [row for row in range(n) if row != 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = unit_length(features)
    assert not found[1].isnan().any(), "the row of a zero vector is NaN: do not divide it by its norm, which is zero"
    agree("the row of a zero vector", found[1], torch.zeros(d))
    agree("the rows beside a zero vector", found[others], directions(features.detach()[others]))
    (gradient,) = torch.autograd.grad((found * drawn(n, d, seed=seed + 1)).sum(), features)
    assert gradient.isfinite().all(), "a zero vector makes the gradient NaN: choose the divisor before you divide"
    assert not gradient[1].any(), (
        f"a zero vector gets a gradient of up to {gradient[1].abs().max():.2g}: dividing by a tiny number makes "
        "it huge; put zeros in that row instead"
    )


def is_the_inner_product(kernel: Kernel, seed: int = 0, n: int = 6, d: int = 5) -> None:
    """phi(x, y) = x . y for all pairs of the batch."""
    features = drawn(n, d, seed=seed)
    mistakes: dict[str, Number] = {
        "the kernel takes the features as they are; the loss normalises them": pairs(directions(features), inner),
        "inner products are not squared here": pairs(features, inner).square(),
    }
    agree("bilinear(features)", kernel(features), pairs(features, inner), mistakes)


def is_the_series(kernel: Kernel, order: int, gamma: float, seed: int = 0, n: int = 6, d: int = 5) -> None:
    """All terms from p = 0 to P, with their factors."""
    features = directions(drawn(n, d, seed=seed))
    rows = partial(pairs, features)
    right = rows(partial(series, order=order, gamma=gamma))
    front, cosine = math.exp(-2 * gamma), rows(inner)
    without = sum((2 * gamma * cosine) ** p for p in range(order + 1))
    halved = rows(partial(series, order=order, gamma=gamma / 2)) * math.exp(gamma)
    mistakes: dict[str, Number] = {
        "1 / p! is missing": front * without,
        "the factor exp(-2 gamma) is missing": right / front,
        "the term of p = 0 is missing": right - front,
        "the sum stops before p = P": rows(partial(series, order=order - 1, gamma=gamma)),
        "it is (2 gamma)^p, not gamma^p": front * halved,
        "exp(-gamma) for exp(-2 gamma)": right / front * math.exp(-gamma),
        "this is the exact RBF, not its series": torch.exp(-gamma * (2 - 2 * cosine)),
    }
    what = f"gaussian_rbf of order {order} with gamma {gamma}"
    agree(what, kernel(features, order=order, gamma=gamma), right, mistakes)


def tends_to_the_gaussian(kernel: Kernel, gamma: float) -> None:
    """On vectors of unit length the error falls with every order, to nothing."""
    angles = torch.linspace(0, math.pi, 91, dtype=torch.float64)
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    exact = torch.exp(-gamma * (circle[:, None] - circle[None]).square().sum(2))
    errors = [(kernel(circle, order=order, gamma=gamma) - exact).abs().max().item() for order in (1, 2, 3, 4, 30)]
    assert errors == sorted(errors, reverse=True), (
        f"with gamma {gamma} the largest errors at orders 1, 2, 3, 4, 30 are {', '.join(f'{e:.2g}' for e in errors)}: "
        "each order should come closer to exp(-gamma |x - y|^2)"
    )
    assert errors[-1] < 1e-9, f"with gamma {gamma} order 30 still misses exp(-gamma |x - y|^2) by {errors[-1]:.2g}"


def is_the_mean_over_pairs(loss: Loss, kernel: Kernel, seed: int = 0, n: int = 6, d: int = 5, other: int = 5) -> None:
    """1 / n^2 times the sum of squared differences, of features of unit length, with the kernel that was given."""
    student, teacher = drawn(n, d, seed=seed), drawn(n, other, seed=seed + 1).relu() + 0.1
    differences = [kernel(directions(student)), kernel(directions(teacher))]
    squares = (differences[0] - differences[1]).square()
    right = math.fsum(squares.flatten().tolist()) / n**2
    plain = (kernel(student) - kernel(teacher)).square().mean()
    off = ~torch.eye(n, dtype=torch.bool)
    mistakes: dict[str, Number] = {
        "both features have to be brought to unit length first": plain,
        "the sum has to be divided by n^2": right * n**2,
        "the sum has to be divided by n^2, not by n": right * n,
        "the norm has to be squared": math.sqrt(right),
        "this is the norm over n^2; the norm has to be squared": squares.sum().sqrt() / n**2,
        "pairs of an image with itself count, too": squares[off].mean(),
        "differences are squared, not made positive": squares.sqrt().mean(),
        "the kernel that is given is not used": (pairs(directions(student), inner) - pairs(directions(teacher), inner))
        .square()
        .mean(),
    }
    agree("correlation_congruence_loss", loss(student, teacher, kernel), right, mistakes)
    student.requires_grad_()
    found = loss(student, teacher, kernel)
    assert found.requires_grad, "no gradient reaches the student: is there a detach() or no_grad() on its side?"
    (gradient,) = torch.autograd.grad(found, student)
    assert gradient.isfinite().all() and gradient.any(), "the student's gradient is zero or not finite"


def ignores_order_length_and_axes(loss: Loss, kernel: Kernel, seed: int = 0, n: int = 6, d: int = 5) -> None:
    """The same for another order of the batch, for longer vectors, and when the student's features are rotated."""
    student, teacher = drawn(n, d, seed=seed), drawn(n, d, seed=seed + 1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    longer = drawn(n, 1, seed=seed + 2).abs() + 0.5
    rotation = torch.linalg.qr(drawn(d, d, seed=seed + 3))[0]
    before = loss(student, teacher, kernel)
    agree(
        "the loss of the batch in another order, which changes nothing,",
        loss(student[order], teacher[order], kernel),
        before,
    )
    agree(
        "the loss of features of other lengths, which change nothing,", loss(student * longer, teacher, kernel), before
    )
    what = "the loss after a rotation of the student's features, which changes nothing,"
    agree(what, loss(student @ rotation, teacher, kernel), before)


def divergence(student: Tensor, teacher: Tensor, tau: float) -> float:
    """Mean over the batch of KL(softmax(teacher / tau) || softmax(student / tau)), number by number, without tau^2."""
    total = 0.0
    for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
        s_sum, t_sum = (math.fsum(math.exp(v / tau) for v in row) for row in (s_row, t_row))
        for s, t in zip(s_row, t_row, strict=True):
            p, q = math.exp(t / tau) / t_sum, math.exp(s / tau) / s_sum
            total += p * math.log(p / q)
    return total / len(student)


def is_tau_squared_times_the_divergence(loss: Loss, tau: float, seed: int = 0, n: int = 5, k: int = 7) -> None:
    """Summed over the classes, averaged over the batch, the teacher in front; nothing where both agree."""
    student, teacher = drawn(n, k, seed=seed), 3 * drawn(n, k, seed=seed + 1)
    plain = divergence(student, teacher, tau)
    soft = (teacher / tau).softmax(1)
    mistakes: dict[str, Number] = {
        "the factor tau^2 is missing": plain,
        "the factor is tau^2, not tau": tau * plain,
        "teacher and student are the wrong way round": tau**2 * divergence(teacher, student, tau),
        "the logits are not divided by tau": tau**2 * divergence(student, teacher, 1),
        "the logits have to be divided by tau, not multiplied": tau**2 * divergence(student, teacher, 1 / tau),
        "sum over the classes and average over the batch only": tau**2 * plain / k,
        "average over the batch instead of adding it up": tau**2 * plain * n,
        "the sign is wrong": -(tau**2) * plain,
        "this is the cross entropy; subtract the teacher's entropy": -(tau**2)
        * (soft * (student / tau).log_softmax(1)).sum(1).mean(),
    }
    agree(f"distillation_loss at tau {tau:g}", loss(student, teacher, tau), tau**2 * plain, mistakes)
    agree(f"distillation_loss at tau {tau:g} of equal logits", loss(teacher, teacher, tau), 0.0, atol=1e-12)


def gradient_keeps_its_size(loss: Loss, tau: float, seed: int = 0, n: int = 4, k: int = 6) -> None:
    """d loss / d student = tau (softmax(s / tau) - softmax(t / tau)) / n; at great tau centred logits are matched."""
    teacher = drawn(n, k, seed=seed + 1)

    def gradient(temperature: float) -> Tensor:
        student = drawn(n, k, seed=seed).requires_grad_()
        return torch.autograd.grad(loss(student, teacher, temperature), student)[0]

    student = drawn(n, k, seed=seed)
    difference = ((student / tau).softmax(1) - (teacher / tau).softmax(1)) / n
    mistakes: dict[str, Number] = {
        "the factor tau^2 is missing": difference / tau,
        "the factor is tau^2, not tau": difference,
    }
    agree(f"the gradient at tau {tau:g}", gradient(tau), tau * difference, mistakes, atol=1e-8)
    centred = student - student.mean(1, keepdim=True) - teacher + teacher.mean(1, keepdim=True)
    agree("the gradient at tau 10000", gradient(1e4), centred / k / n, {"it vanished": 0 * centred}, atol=1e-4)


def benchmark_sees_nothing(student: Tensor, teacher: Tensor, consecutive: Loss, congruence: Loss) -> None:
    """Self-check of the stretch task: features whose consecutive product is 0 and whose congruence loss is not."""
    first, second = consecutive(student, teacher).item(), congruence(student, teacher).item()
    assert first == 0, f"the consecutive product of your features is {first:.3g}, not 0"
    assert second > 0.01, f"their congruence loss is {second:.3g}: they are congruent, too; make it 0.01 at least"
