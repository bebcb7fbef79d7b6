"""NCSN's levels and NCSNv2's techniques against brute force, SciPy, simulation and the paper's values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize_scalar
from scipy.spatial.distance import pdist
from scipy.stats import norm

from score_diffusion.sde_lib import (
    VESDE,
    VPSDE,
    geometric_levels,
    langevin_epsilon,
    largest_distance,
    level_ratio,
    level_times,
    ncsnv2_levels,
    number_of_levels,
    relative_step_size,
    variance_ratio,
)


def test_geometric_levels() -> None:
    levels = geometric_levels(50, 0.01, 232)
    assert levels.dtype == torch.float64
    assert levels[0] == 50 and levels[-1] == 0.01
    np.testing.assert_allclose(levels, np.geomspace(50, 0.01, 232), rtol=1e-12)
    assert torch.equal(levels, geometric_levels(50, 0.01, np.int64(232)))


def test_levels_are_the_discretized_ve_sde() -> None:
    sde = VESDE(0.02, 9.0, N=17)
    levels = geometric_levels(9.0, 0.02, 17)
    torch.testing.assert_close(levels.flip(0).float(), sde.discrete_sigmas)
    expected = torch.linspace(1, 0, 17, dtype=torch.float64)
    torch.testing.assert_close(level_times(sde, levels), expected, rtol=0, atol=1e-12)


def test_level_times_for_any_sde() -> None:
    sde, levels = VPSDE(), geometric_levels(100, 0.02, 12)
    times = level_times(sde, levels)
    assert (times.diff() < 0).all()
    torch.testing.assert_close(sde.log_noise_level(times).exp(), levels, rtol=1e-9, atol=0)
    with pytest.raises(ValueError, match=r"levels must lie between σ/α = 0.01 and 50 of VESDE, got 1 to 100"):
        level_times(VESDE(), geometric_levels(100, 1, 3))


# Technique 1.


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("chunk", [7, 32, 1000])
def test_largest_distance_is_brute_force(chunk: int, offset: float) -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(100, 3, 2, generator=generator) + offset
    brute_force = pdist(data.flatten(1).double().numpy()).max()
    assert largest_distance(data, chunk) == pytest.approx(brute_force, rel=1e-12)


def test_largest_distance_of_known_points() -> None:
    corners = torch.tensor([[0.0, 0], [3, 0], [0, 4], [3, 4.1]])
    assert largest_distance(corners, 3) == pytest.approx(math.hypot(3, 4.1), rel=1e-7)
    assert largest_distance(torch.ones(5, 2)) == 0


# Technique 2.


@pytest.mark.parametrize("dimension", [5, 6, 64, 784, 3072, 196608])
def test_ratio_solves_the_equation(dimension: int) -> None:
    root = math.sqrt(2 * dimension)

    def excess(gamma: float) -> float:
        return norm.cdf(root * (gamma - 1) + 3 * gamma) - norm.cdf(root * (gamma - 1) - 3 * gamma) - 0.567

    gamma = level_ratio(dimension)
    assert abs(excess(gamma)) < 1e-9
    assert gamma == pytest.approx(brentq(excess, 1, 100, xtol=1e-14), rel=1e-9)
    # the upper end of the shell contributes nothing in high dimensions: √(2D) (γ - 1) = 3γ - Φ⁻¹(0.567)
    if dimension > 50:
        assert gamma == pytest.approx((root - norm.ppf(0.567)) / (root - 3), rel=1e-6)


def test_ratio_is_the_overlap_of_real_gaussians() -> None:
    D, generator = 784, torch.Generator().manual_seed(0)
    gamma = level_ratio(D)
    radius = torch.randn(20000, D, generator=generator).norm(dim=1) * gamma  # σ_{i-1} = γ, σ_i = 1
    within = ((radius - math.sqrt(D)).abs() < 3 * gamma / math.sqrt(2)).double()
    assert abs(within.mean() - 0.567) < 4 * 0.5 / math.sqrt(20000) + 0.01  # 0.01: radii are normal but nearly


def test_numbers_of_levels_are_the_papers() -> None:
    """σ_1 and L of Song & Ermon (2020) for CIFAR-10, CelebA, LSUN church, LSUN tower and FFHQ; σ_L = 0.01."""
    table = ((32, 50, 232), (64, 90, 500), (96, 140, 788), (128, 190, 1086), (256, 348, 2311))
    for side, sigma_max, L in table:
        assert number_of_levels(sigma_max, 0.01, 3 * side**2) == L


def test_number_of_levels_is_the_largest_with_that_ratio() -> None:
    L, gamma = number_of_levels(10, 0.02, 64), level_ratio(64)
    assert (10 / 0.02) ** (1 / L) < gamma <= (10 / 0.02) ** (1 / (L - 1))
    assert number_of_levels(1.01, 1, 64) == 2  # a ratio below γ still needs both ends


def test_ncsnv2_levels() -> None:
    data = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    levels = ncsnv2_levels(data, sigma_min=0.05, chunk=16)
    assert levels[0].item() == largest_distance(data)
    assert levels[-1] == 0.05
    assert len(levels) == number_of_levels(levels[0].item(), 0.05, 64)
    torch.testing.assert_close(levels.log().diff(), levels.log().diff()[:1].expand(len(levels) - 1))


# Technique 4.


def test_epsilon_is_that_of_the_paper() -> None:
    cifar, celeba = (50, 232, 5, 6.2e-6), (90, 500, 5, 3.3e-6)  # σ_1, L, T, ε; σ_L = 0.01
    tower, ffhq = (190, 1086, 3, 1.8e-6), (348, 2311, 3, 0.9e-6)
    for sigma_max, L, T, epsilon in (cifar, celeba, tower, ffhq):
        assert langevin_epsilon(geometric_levels(sigma_max, 0.01, L), T) == pytest.approx(epsilon, rel=0.02)


@pytest.mark.parametrize("T", [1, 2, 5, 100])
@pytest.mark.parametrize("gamma", [1.001, 1.04, 1.36, 5.0])
def test_step_size_is_the_best_one(gamma: float, T: int) -> None:
    r = relative_step_size(gamma, T)
    options = dict(bounds=(1e-9, 3.9), method="bounded", options={"xatol": 1e-10})
    best = minimize_scalar(lambda r: abs(variance_ratio(r, gamma, T) - 1), **options)
    assert 0 < r < 2
    assert abs(variance_ratio(r, gamma, T) - 1) <= best.fun + 1e-9
    levels = geometric_levels(0.01 * gamma**6, 0.01, 7)
    assert langevin_epsilon(levels, T) == pytest.approx(r / 2 * 0.01**2, rel=1e-6)


def test_variance_ratio_is_the_recursion_of_langevin_dynamics() -> None:
    r, gamma, T, sigma = 0.3, 1.4, 4, 0.7
    variance = (gamma * sigma) ** 2
    for _ in range(T):  # data at one point: score = -x/σ²
        variance = (1 - r / 2) ** 2 * variance + r * sigma**2
    assert variance_ratio(r, gamma, T) == pytest.approx(variance / sigma**2, rel=1e-12)


def test_errors() -> None:
    for call, message in (
        (lambda: geometric_levels(1, 2, 5), "0 < sigma_min < sigma_max, got sigma_min=2 and sigma_max=1"),
        (lambda: geometric_levels(2, 1, 1), "n_levels must be an integer of at least 2, got 1"),
        (lambda: number_of_levels(1, 1, 64), "0 < sigma_min < sigma_max"),
        (lambda: level_ratio(4), "at least 5 dimensions"),
        (lambda: largest_distance(torch.zeros(1, 2)), r"two or more points, got \(1, 2\)"),
        (lambda: largest_distance(torch.zeros(3, 2, dtype=torch.uint8)), "floating-point"),
        (lambda: largest_distance(torch.full((3, 2), math.nan)), "finite"),
        (lambda: relative_step_size(1.0, 5), "above 1"),
        (lambda: relative_step_size(1.1, 0), "n_steps_each must be at least 1, got 0"),
        (lambda: langevin_epsilon(torch.tensor([1.0, 2.0]), 5), "decreasing"),
        (lambda: level_times(VPSDE(), torch.tensor([1.0])), "decreasing"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("power", [-1.0, 1.0])
def test_blocks_are_left_out_only_where_no_pair_can_be_the_largest(power: float):
    """Points of equal norm, where every block counts, and of norms that differ much, where few do."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        points = torch.randn(97, 5, generator=generator)
        points *= points.norm(dim=1, keepdim=True) ** power
        expected = torch.cdist(points.double(), points.double()).max().item()
        assert largest_distance(points, chunk=8) == pytest.approx(expected, rel=1e-6)
