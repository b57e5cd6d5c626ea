"""The rank of a noisy matrix by empirical variational Bayes: no data, no threshold, noise variance estimated.

Nakajima, Sugiyama, Babacan and Tomioka, "Global analytic solution of fully-observed variational Bayesian matrix
factorization", JMLR 14 (2013); Kim et al. 2016 take the Tucker ranks of a kernel from it (section 3.2).

An L x M matrix V, L <= M, is modelled as B A' + noise of variance v, with Gaussian priors on the columns of A and B
whose variances are learnt too. Per singular value g the posterior then either vanishes or keeps the component; with
a = L / M and x = g^2 / (M v), it is kept from x_min on, and the free energy depends on v alone.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

GRID = 1024  # values of the noise variance tried before the best one is refined
ROUNDING = (
    1e-6  # singular values below this share of the largest are rounding of float32 or of the Gram matrix, not noise
)


@dataclass(frozen=True)
class RankEstimate:
    """What is signal in a matrix.

    Args:
        rank: singular values that stand out of the noise; 0 if none does.
        noise_variance: of one entry of the matrix.
        threshold: the size from which a singular value counts.
        singular_values: of the matrix, descending.
    """

    rank: int
    noise_variance: float
    threshold: float
    singular_values: Floats


def evbmf(matrix: Tensor, through: Literal["gram", "svd"] = "gram") -> RankEstimate:
    """Rank and noise variance of a matrix in any orientation, computed in double precision.

    Args:
        matrix: (rows, columns), any real type; scale and rotations do not change the rank.
        through: where the singular values come from: ``gram``, the eigenvalues of the small Gram matrix, many times
            faster for wide unfoldings, or ``svd``, the slow full decomposition. Values below 1e-6 of the largest count
            as 0 either way.

    Raises:
        ValueError: no matrix, an empty one, entries that are not finite, or an unknown way.
    """
    if matrix.ndim != 2 or not matrix.numel():
        raise ValueError(f"evbmf needs a matrix with entries, got shape {tuple(matrix.shape)}; unfold tensors first")
    if through not in ("gram", "svd"):
        raise ValueError(f"evbmf: unknown way {through!r}; there are gram and svd")
    if not torch.isfinite(matrix).all():
        raise ValueError("evbmf: the matrix holds NaN or infinity; check the weights before taking ranks")
    with torch.no_grad():
        wide = matrix.detach().double()
        wide = wide if wide.shape[0] <= wide.shape[1] else wide.T
        if through == "svd":
            values = torch.linalg.svdvals(wide)
        else:
            values = torch.linalg.eigvalsh(wide @ wide.T).flip(0).clamp_min(0).sqrt()
        values = torch.where(values > ROUNDING * values[0], values, 0.0)
    return estimate_rank(values.cpu().numpy(), wide.shape[1])


def estimate_rank(singular_values: Floats, columns: int) -> RankEstimate:
    """Rank and noise variance from all L singular values (descending) of a matrix with M >= L columns.

    The variance minimises :func:`free_energy` between :func:`variance_bounds`. The function has several valleys: the
    lowest point of a fine grid of the logarithm is refined between its neighbours.
    """
    from scipy.optimize import minimize_scalar  # here: scipy takes long to import, and few runs choose ranks

    lower, upper = variance_bounds(singular_values, columns)
    if lower == 0:  # exact low rank: whatever is there is signal
        return RankEstimate(int(np.count_nonzero(singular_values)), 0.0, 0.0, singular_values)

    def energy(logarithm: float) -> float:
        return float(free_energy(singular_values, columns, np.array([math.exp(logarithm)]))[0])

    grid = np.linspace(math.log(lower), math.log(upper), GRID)
    energies = free_energy(singular_values, columns, np.exp(grid))
    lowest = int(energies.argmin())
    around = (grid[max(lowest - 1, 0)], grid[min(lowest + 1, GRID - 1)])
    refined = minimize_scalar(energy, bounds=around, method="bounded", options={"xatol": 1e-10})
    variance = math.exp(min((energies[lowest], grid[lowest]), (refined.fun, refined.x))[1])
    threshold = math.sqrt(columns * variance * smallest_kept(len(singular_values) / columns))
    return RankEstimate(int((singular_values > threshold).sum()), variance, threshold, singular_values)


def variance_bounds(singular_values: Floats, columns: int) -> tuple[float, float]:
    """Between which values the noise variance lies, from all L singular values (descending) and M >= L columns.

    Above: all of the matrix is noise. Below: the components that could stand out, fewer than L / (1 + a), are none of
    it; 0 if nothing else is there.
    """
    rows = len(singular_values)
    ratio, squares = rows / columns, np.square(singular_values)
    most = min(math.ceil(rows / (1 + ratio)) - 1, rows - 1)
    lower = max(squares[most] / (columns * smallest_kept(ratio)), squares[most:].mean() / columns)
    return float(lower), float(squares.sum() / (rows * columns))


def smallest_kept(ratio: float) -> float:
    """The x from which a component is kept: (1 + t) (1 + a / t), with t = 2.5129 sqrt(a) for L / M = a.

    The exact t solves ln(t+1)/t + ln(t/a+1) a/t = 1; the formula, usual since Nakajima et al., is exact for square
    matrices and low by at most 2.1 % in x.
    """
    t = 2.5129 * math.sqrt(ratio)
    return (1 + t) * (1 + ratio / t)


def free_energy(singular_values: Floats, columns: int, noise_variances: Floats) -> Floats:
    """Free energy (nats) with everything but the noise variance at its optimum, for each variance v.

    2F = L M ln(2 pi v) + sum_h g_h^2 / v + M sum_{kept h} [ln(t+1) + a ln(t/a+1) - t],
    t(x) = (x - 1 - a + sqrt((x - 1 - a)^2 - 4 a)) / 2.
    """
    rows = len(singular_values)
    ratio = rows / columns
    x = np.square(singular_values) / (columns * noise_variances[:, None])
    kept = x > smallest_kept(ratio)
    shifted = np.where(kept, x, smallest_kept(ratio)) - (1 + ratio)
    t = (shifted + np.sqrt(np.square(shifted) - 4 * ratio)) / 2
    gain = np.where(kept, np.log1p(t) + ratio * np.log1p(t / ratio) - t, 0.0)
    noise = rows * np.log(2 * math.pi * noise_variances) + x.sum(axis=1)
    return columns / 2 * (noise + gain.sum(axis=1))


def iterated_gain(singular_value: float, rows: int, columns: int, noise_variance: float, steps: int = 5000) -> float:
    """The slow oracle: a component's share of the free energy by coordinate descent on the variational posterior.

    Means a, b and variances s, r of the posteriors of A's and B's column and their prior variances p, q are updated
    in turn, each to its own optimum, from a start where noise is ignored:

    2F_h = M ln(p/s) + L ln(q/r) + (a^2 + M s)/p + (b^2 + L r)/q - (L + M) - 2 a b g / v + (a^2 + M s)(b^2 + L r)/v.

    Returns:
        F_h in nats, or 0, the share of a component that vanishes, if that is lower.
    """
    g, v, m, n = singular_value, noise_variance, columns, rows
    a = b = math.sqrt(g)
    s = r = v / (g + v)
    for _ in range(steps):
        p, q = a * a / m + s, b * b / n + r
        s = v / (b * b + n * r + v / p)
        a = s * b * g / v
        r = v / (a * a + m * s + v / q)
        b = r * a * g / v
        if a * b < 1e-12 * g:
            return 0.0
    first, second = a * a + m * s, b * b + n * r
    prior = m * math.log(p / s) + n * math.log(q / r) + first / p + second / q - (n + m)
    return min(0.0, (prior - 2 * a * b * g / v + first * second / v) / 2)
