"""EVBMF: planted ranks, noise, invariances, and the analytic free energy against the one iterated step by step."""

import math

import numpy as np
import pytest
import torch

from shrinkbook.course.checks import kim2016 as checks
from shrinkbook.course.checks.kim2016 import planted_matrix
from shrinkbook.methods.vbmf import (
    GRID,
    ROUNDING,
    estimate_rank,
    evbmf,
    free_energy,
    iterated_gain,
    smallest_kept,
)


def rotation(size: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q


PLANTED = [
    (64, 576, 8, 0.1),
    (64, 576, 8, 1.0),
    (128, 1152, 40, 0.1),
    (256, 2304, 64, 0.05),
    (90, 60, 7, 0.3),
    (40, 40, 5, 0.02),
    (30, 200, 1, 0.5),
]


@pytest.mark.parametrize(("rows", "columns", "rank", "noise"), PLANTED)
def test_planted_rank_and_noise_are_found_both_ways_and_in_both_orientations(rows, columns, rank, noise):
    for way in (evbmf, lambda matrix: evbmf(matrix, "svd"), lambda matrix: evbmf(matrix.T)):
        checks.planted_rank_is_found(way, rows, columns, rank, noise, seed=0)
    matrix = planted_matrix(rows, columns, rank, noise, seed=0)
    gram, svd = evbmf(matrix), evbmf(matrix, "svd")
    assert gram.noise_variance == pytest.approx(svd.noise_variance, rel=1e-5)
    np.testing.assert_allclose(gram.singular_values, torch.linalg.svdvals(matrix).numpy(), rtol=1e-6, atol=1e-6)


def test_noise_has_rank_zero():
    checks.noise_has_rank_zero(evbmf, trials=100, seed=0)


@pytest.mark.parametrize("scale", [1e-8, 10.0, 1e6])
def test_scale_changes_the_variance_only(scale):
    checks.scale_changes_the_variance_only(evbmf, scale)


def test_rotations_and_permutations_change_nothing():
    matrix = planted_matrix(48, 100, 9, 0.8, seed=0)
    found = evbmf(matrix)
    for other in (rotation(48) @ matrix @ rotation(100), matrix.flip(0), matrix[:, torch.randperm(100)]):
        assert evbmf(other).rank == found.rank
        assert evbmf(other).noise_variance == pytest.approx(found.noise_variance, rel=1e-5)


@pytest.mark.parametrize("through", ["gram", "svd"])
def test_exact_low_rank_has_no_noise(through):
    exact = planted_matrix(40, 90, 5, 0.0, seed=0)
    for matrix in (exact, exact.float(), exact.float().T):  # float32 rounds: that is no noise either
        found = evbmf(matrix, through)
        assert (found.rank, found.noise_variance) == (5, 0.0)
    assert evbmf(torch.zeros(3, 4), through).rank == 0
    assert evbmf(planted_matrix(8, 8, 4, 0.0, seed=0), through).rank < 4  # too many of them to tell signal from noise


def test_degenerate_shapes():
    assert evbmf(torch.ones(1, 1)).rank == 0
    assert evbmf(torch.randn(1, 50)).rank == 0
    assert evbmf(torch.randn(50, 1)).rank == 0
    assert evbmf(torch.eye(6)).rank == 0  # no value stands out of the others


def test_the_matrix_is_left_alone():
    matrix = planted_matrix(10, 20, 2, 0.1, seed=0).float().requires_grad_()
    before = matrix.detach().clone()
    evbmf(matrix)
    assert torch.equal(matrix.detach(), before) and matrix.grad is None


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (torch.empty(0, 4), r"shape \(0, 4\)"),
        (torch.zeros(3), r"shape \(3,\)"),
        (torch.zeros(2, 2, 2), "unfold"),
        (torch.tensor([[1.0, float("nan")]]), "NaN or infinity"),
        (torch.tensor([[1.0, float("inf")]]), "NaN or infinity"),
    ],
)
def test_bad_input_is_refused(matrix, words):
    with pytest.raises(ValueError, match=words):
        evbmf(matrix)


def test_unknown_way_is_refused():
    with pytest.raises(ValueError, match="unknown way 'qr'; there are gram and svd"):
        evbmf(torch.ones(2, 2), "qr")  # type: ignore[arg-type]


@pytest.mark.parametrize("variance", [0.3, 0.8, 1.0, 1.7, 6.0])
def test_analytic_free_energy_equals_the_iterated_one(variance):
    rows, columns = 8, 25
    values = np.linalg.svd(planted_matrix(rows, columns, 3, 1.0, seed=0).numpy(), compute_uv=False)
    shares = [iterated_gain(float(value), rows, columns, variance) for value in values]
    noise = rows * columns * math.log(2 * math.pi * variance) / 2 + (values**2).sum() / (2 * variance)
    fast = free_energy(values, columns, np.array([variance]))[0]
    assert fast == pytest.approx(noise + sum(shares), rel=1e-9)
    threshold = math.sqrt(columns * variance * smallest_kept(rows / columns))
    assert [share < 0 for share in shares] == (values > threshold).tolist()


@pytest.mark.parametrize(
    ("rows", "columns", "rank", "noise", "found_rank"),
    [(6, 18, 2, 0.5, 2), (9, 12, 3, 0.6, 2), (5, 40, 1, 1.0, 0), (7, 7, 2, 0.3, 2), (4, 30, 1, 0.8, 1)],
)
def test_rank_is_the_one_that_the_iterated_free_energy_keeps(rows, columns, rank, noise, found_rank):
    """The slow way through, also where small signals drown: iterate every component at every variance of a grid."""
    matrix = planted_matrix(rows, columns, rank, noise, seed=3)
    values = np.linalg.svd(matrix.numpy(), compute_uv=False)
    found = estimate_rank(values, columns)
    best, kept = math.inf, -1
    for variance in np.geomspace(found.noise_variance / 4, found.noise_variance * 4, 41):
        shares = [iterated_gain(float(value), rows, columns, variance, steps=1500) for value in values]
        total = rows * columns * math.log(variance) / 2 + (values**2).sum() / (2 * variance) + sum(shares)
        if total < best:
            best, kept = total, sum(share < 0 for share in shares)
    assert found.rank == kept == found_rank


def test_the_minimum_is_global_and_the_rank_pays():
    """Spectra with several valleys: nothing on a grid twenty times as fine lies lower."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        rows = int(generator.integers(4, 60))
        columns = rows * int(generator.integers(1, 9))
        values = np.sort(generator.pareto(generator.uniform(0.5, 3), rows) + 0.1)[::-1].copy()
        found = estimate_rank(values, columns)
        upper = (values**2).sum() / (rows * columns)
        tried = np.geomspace(upper * 1e-6, upper, 20 * GRID)
        assert found.rank < rows * columns / (rows + columns)  # so a product of that rank always has fewer weights
        lowest = free_energy(values, columns, np.array([found.noise_variance]))[0]
        allowed = tried[tried >= bound(values, columns)]
        assert lowest <= free_energy(values, columns, allowed).min() + 1e-6 * abs(lowest)


def bound(values: np.ndarray, columns: int) -> float:
    """The lower bound of the noise variance, from its definition with 1-based indices."""
    rows = len(values)
    ratio = rows / columns
    most = min(math.ceil(rows / (1 + ratio)) - 1, rows)
    return max(
        values[most] ** 2 / (columns * smallest_kept(ratio)),
        sum(values[h] ** 2 for h in range(most, rows)) / ((rows - most) * columns),
    )


@pytest.mark.parametrize("ratio", [1e-4, 0.01, 0.1, 0.5, 1.0])
def test_threshold_formula_is_near_the_exact_root(ratio):
    checks.threshold_is_near_the_root(smallest_kept, ratio)


@pytest.mark.parametrize(("rows", "columns"), [(8, 25), (12, 12), (1, 40)])
def test_free_energy_of_all_variances_at_once(rows, columns):
    checks.energies_add_up(free_energy, rows, columns, seed=5)


def test_what_counts_as_rounding():
    values = torch.tensor([1.0, 1.0, 2 * ROUNDING, ROUNDING / 2])
    left, right = rotation(4), rotation(9)[:4]
    kept = evbmf(left @ torch.diag(values.double()) @ right, "svd").singular_values
    assert (kept > 0).tolist() == [True, True, True, False]
