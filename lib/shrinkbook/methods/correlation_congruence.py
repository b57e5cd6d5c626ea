"""Correlation congruence (Peng et al. 2019): a student copies how its teacher relates the images of a batch.

Features F (n, d) become a matrix C_ij = phi(f_i, f_j) of the batch; the loss is the mean squared difference of the
student's and the teacher's. Three kernels phi are the paper's: naive MMD, bilinear, and Gaussian RBF by its Taylor
series. The loss that most other code calls CC, :func:`consecutive_product_loss`, holds no such matrix; it stands here
under a name of its own. :mod:`shrinkbook.methods.congruent_distillation` trains with them.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Kernel = Callable[[Tensor], Tensor]
"""Features (n, d) of unit length -> correlations (n, n)."""
Reading = Literal["weighted", "added"]

GAMMA = 0.4  # of every public re-implementation, as the order; the paper's own values are not known
ORDER = 2


def unit_length(features: Tensor) -> Tensor:
    """Each row divided by its Euclidean norm, in float32 or better.

    A row of zeros has no direction: it stays zero, correlates with nothing and gets no gradient; a warning says so.

    Raises:
        ValueError: not a matrix of features.
    """
    if features.ndim != 2:
        raise ValueError(f"features are {tuple(features.shape)}; flatten them to (images, features)")
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    norms = features.norm(dim=1, keepdim=True)
    empty = norms == 0
    if empty.any():
        warnings.warn(  # without their number: one warning, not one a step
            "some feature vectors have norm 0 and no direction: they count as unrelated to every other image",
            stacklevel=2,
        )
    return torch.where(empty, torch.zeros_like(features), features / norms.masked_fill(empty, 1))


def naive_mmd(features: Tensor) -> Tensor:
    """phi(x, y) = |mean(x) - mean(y)|, the means taken over the d features (section 3.4, "naive MMD").

    The only one of the three kernels that depends on the axes: turning all features changes it.
    """
    means = features.mean(1)
    return (means[:, None] - means[None]).abs()


def bilinear(features: Tensor) -> Tensor:
    """phi(x, y) = x . y (section 3.4, "bilinear pool"); between vectors of unit length the cosine."""
    return features @ features.T


def gaussian_rbf(features: Tensor, order: int = ORDER, gamma: float = GAMMA) -> Tensor:
    """The Gaussian RBF by its Taylor series (section 3.4): sum over p = 0..P of exp(-2 gamma) (2 gamma)^p / p! (x.y)^p.

    Between vectors of unit length |x - y|^2 = 2 - 2 x.y, which is where exp(-2 gamma) comes from: for others the series
    is not the RBF's. Order 1 is the bilinear kernel but for the factor 2 gamma exp(-2 gamma) and a constant.

    Args:
        features: (n, d), rows of unit length.
        order: P, the highest power, from 1 up.
        gamma: 1 / (2 delta^2) of the Gaussian.

    Raises:
        ValueError: an order below 1, or a gamma that is not positive.
    """
    if order < 1 or not gamma > 0:
        raise ValueError(f"gaussian_rbf: order {order}, gamma {gamma}; the order starts at 1, gamma is above 0")
    cosine = features @ features.T
    total = torch.full_like(cosine, (2 * gamma) ** order / math.factorial(order))
    for power in range(order - 1, -1, -1):  # Horner's scheme
        total = total * cosine + (2 * gamma) ** power / math.factorial(power)
    return math.exp(-2 * gamma) * total


def gaussian_rbf_exact(features: Tensor, gamma: float = GAMMA) -> Tensor:
    """phi(x, y) = exp(-gamma |x - y|^2), what the series tends to; for vectors of any length."""
    return torch.exp(-gamma * (features[:, None] - features[None]).square().sum(2))


KERNELS: Mapping[str, Kernel] = {
    "mmd": naive_mmd,
    "bilinear": bilinear,
    "rbf1": partial(gaussian_rbf, order=1),
    "rbf2": partial(gaussian_rbf, order=2),
    "rbf3": partial(gaussian_rbf, order=3),
    "rbf": gaussian_rbf_exact,
}


def correlation_congruence_loss(student: Tensor, teacher: Tensor, kernel: Kernel = gaussian_rbf) -> Tensor:
    """L_CC = 1/n^2 sum_ij (phi(f_i^s, f_j^s) - phi(f_i^t, f_j^t))^2 (section 3.3), on features of unit length.

    Both matrices are n x n, so that the loss itself asks for no common number of features; naive MMD, whose means over
    d features of a unit vector shrink as 1 / sqrt(d), compares like with like only where the numbers are equal. In
    float32 or better, under autocast too: differences of similarities near 1 have no digits left in bfloat16.

    Args:
        student: (n, d) features.
        teacher: (n, d') features of the same images, without gradient.
        kernel: phi, as a function from (n, d) to (n, n).

    Returns:
        A scalar; a mean over pairs, so that it does not grow with the batch.

    Raises:
        ValueError: another number of images, fewer than two, a teacher that asks for a gradient.
    """
    _pair("correlation_congruence_loss", student, teacher)
    if teacher.requires_grad:
        raise ValueError(
            "correlation_congruence_loss: the teacher's features ask for a gradient, and it would move towards the "
            "student; compute them under torch.no_grad()"
        )
    with torch.autocast(student.device.type, enabled=False):
        return (kernel(unit_length(student)) - kernel(unit_length(teacher))).square().mean()


def consecutive_product_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """mean_i sum_d |D_id| |D_(i+1)d| with D = student - teacher: what benchmarks of distillation call CC.

    The paper's first author gave it to the authors of RepDistiller. It compares neighbours in the batch, feature by
    feature: unlike the paper's loss it depends on the order of the batch and on the axes of the features. Both sides
    usually are trainable linear maps of the features to one size.

    Args:
        student, teacher: (n, d).

    Raises:
        ValueError: unequal shapes, or fewer than two images.
    """
    _pair("consecutive_product_loss", student, teacher)
    if student.shape != teacher.shape:
        raise ValueError(
            f"consecutive_product_loss: {student.shape[1]} and {teacher.shape[1]} features are subtracted from each "
            "other; map both to one size first"
        )
    difference = (student - teacher).to(torch.promote_types(student.dtype, torch.float32)).abs()
    return (difference[:-1] * difference[1:]).sum(1).mean()


def combined(
    cross_entropy: Tensor, distillation: Tensor, congruence: Tensor, alpha: float, beta: float, reading: Reading
) -> Tensor:
    """L_CCKD in two readings (section 3.3).

    Args:
        cross_entropy, distillation, congruence: L_CE, L_KD and L_CC.
        alpha: from 0 to 1 if weighted; 0 or more if added.
        beta: weight of L_CC, 0 or more.
        reading: ``weighted``, alpha L_CE + (1 - alpha) L_KD + beta L_CC; ``added``, L_CE + alpha L_KD + beta L_CC.

    Raises:
        ValueError: an unknown reading, or a weight outside its range.
    """
    if reading not in get_args(Reading):
        raise ValueError(f"unknown reading {reading!r}; there are {', '.join(get_args(Reading))}")
    if not 0 <= alpha <= (1 if reading == "weighted" else math.inf) or not beta >= 0:
        raise ValueError(f"alpha {alpha}, beta {beta} in reading {reading}: weights are not negative, alpha at most 1")
    if reading == "weighted":
        return alpha * cross_entropy + (1 - alpha) * distillation + beta * congruence
    return cross_entropy + alpha * distillation + beta * congruence


class FrozenProjection(nn.Module):
    """A fixed random linear map between numbers of features, the paper's fully connected layer where they differ.

    Not trained: with L_CC as its only loss a trained map of the teacher makes all features alike, and the loss zero.
    Entries are normal with variance 1/out, which keeps inner products in the mean (Johnson and Lindenstrauss).

    Args:
        features, out: numbers of features before and after.
        seed: of the entries.
    """

    weight: Tensor

    def __init__(self, features: int, out: int, seed: int = 0) -> None:
        super().__init__()
        drawn = torch.randn(out, features, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("weight", drawn / math.sqrt(out))

    def forward(self, x: Tensor) -> Tensor:
        """(n, features) -> (n, out)."""
        return x @ self.weight.T


def intra_class_similarity(features: Tensor, labels: Tensor) -> float:
    """Mean cosine between different images of one class, over all such pairs (figure 4 in one number).

    Computed from class sums, sum_(i != j) u_i . u_j = |sum_i u_i|^2 - sum_i |u_i|^2, without an n x n matrix.

    Args:
        features: (n, d).
        labels: (n,) int64.

    Raises:
        ValueError: another number of labels, or no two images of one class.
    """
    if labels.shape != features.shape[:1]:
        raise ValueError(f"{len(features)} features but labels {tuple(labels.shape)}; give one label an image")
    units = unit_length(features.detach()).double()
    _, member = labels.unique(return_inverse=True)
    counts = member.bincount()
    pairs = int((counts * (counts - 1)).sum())
    if not pairs:
        raise ValueError(f"no two of {len(labels)} images are of one class; there is no pair to compare")
    sums = torch.zeros(len(counts), units.shape[1], dtype=units.dtype, device=units.device)
    sums.index_add_(0, member, units)
    return float((sums.square().sum() - units.square().sum()) / pairs)


def congruence_error(student: Tensor, teacher: Tensor) -> float:
    """Root mean square difference of the two cosine matrices, over pairs of different images; 0 is congruent.

    |S S' - T T'|^2 = |S'S|^2 + |T'T|^2 - 2 |S'T|^2 needs matrices of d x d only, so n may be a whole test set.

    Args:
        student: (n, d) features.
        teacher: (n, d') features of the same images.

    Raises:
        ValueError: another number of images, or fewer than two.
    """
    _pair("congruence_error", student, teacher)
    s, t = unit_length(student.detach()).double(), unit_length(teacher.detach()).double()
    total = (s.T @ s).square().sum() + (t.T @ t).square().sum() - 2 * (s.T @ t).square().sum()
    on_diagonal = (s.square().sum(1) - t.square().sum(1)).square().sum()
    return float(((total - on_diagonal).clamp_min(0) / (len(s) * (len(s) - 1))).sqrt())


def _pair(name: str, student: Tensor, teacher: Tensor) -> None:
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        shapes = f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
        raise ValueError(f"{name}: {shapes}; both must be (images, features) of the same images")
    if len(student) < 2:
        raise ValueError(f"{name}: {len(student)} image; a correlation needs at least two")
