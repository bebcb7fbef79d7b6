"""Noise levels and step sizes of NCSN and NCSNv2.

NCSN perturbs data with geometric noise levels σ_1 > σ_2 > ... > σ_L, σ_{i-1}/σ_i = γ (Song & Ermon, 2019,
Section 4.1): the VE SDE at the times k/(L - 1). NCSNv2 (Song & Ermon, 2020) says which, and how far to step
at each:

    Technique 1   σ_1 is the largest distance of two data points: at that level Langevin dynamics can go from
                  any one to any other.
    Technique 2   A D-dimensional N(0, σ² I) lies at radius √D σ with deviation σ/√2. Shells of successive
                  levels overlap by
                      C(γ) = Φ(√(2D) (γ - 1) + 3γ) - Φ(√(2D) (γ - 1) - 3γ),
                  and γ is chosen for C ≈ 0.5. The paper's own five numbers of levels (CIFAR-10 232, CelebA
                  500, church 788, bedroom and tower 1086, FFHQ 2311) have C between 0.5662 and 0.5670, and
                  all five are the largest L with C <= 0.567: that is the rule here. C = 0.5 would give 220
                  for CIFAR-10.
    Technique 4   T Langevin steps x ← x + α_i s + √(2 α_i) z with α_i = ε σ_i²/σ_L² turn the variance γ² σ_i²
                  of the noise that the level before left into v σ_i². With e = ε/σ_L² and
                  c = 2e/(1 - (1 - e)²) = 2/(2 - e),
                      v = (1 - e)^{2T} (γ² - c) + c,
                  and ε is chosen for v nearest to 1. Both γ² and c exceed 1, and so does v between them:
                  v nearest to 1 is the least v.

The two papers write a Langevin step in two ways. NCSN's is α_i/2 s + √α_i z, so that its ε is twice
NCSNv2's. The `step_size` r of the samplers here is NCSN's ε/σ_L², and 2ε/σ_L² with NCSNv2's ε.

References:
    Generative Modeling by Estimating Gradients of the Data Distribution (Song & Ermon, 2019),
        https://arxiv.org/abs/1907.05600.
    Improved Techniques for Training Score-Based Generative Models (Song & Ermon, 2020),
        https://arxiv.org/abs/2006.09011: Techniques 1, 2 and 4, and the propositions that lead to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral

import torch
from torch import Tensor

from score_diffusion.sde_lib.errors import InputError
from score_diffusion.sde_lib.sde import SDE

SMALLEST_DIMENSION = 5  # below it √(2D) < 3, and the equation of Technique 2 has no solution
OVERLAP = 0.567  # of successive shells, from the paper's five numbers of levels


def geometric_levels(sigma_max: float, sigma_min: float, n_levels: int) -> Tensor:
    """Levels σ_1 = sigma_max > ... > σ_L = sigma_min in a geometric sequence, shape (L,), float64.

    Raises:
        InputError: If 0 < sigma_min < sigma_max or L >= 2 does not hold.
    """
    _check_ends(sigma_max, sigma_min)
    if not isinstance(n_levels, Integral) or n_levels < 2:
        raise InputError(f"n_levels must be an integer of at least 2, got {n_levels!r}")
    levels = torch.linspace(math.log(sigma_max), math.log(sigma_min), n_levels, dtype=torch.float64).exp()
    levels[0], levels[-1] = sigma_max, sigma_min
    return levels


ROUNDING = 1.01  # more than products of the data lose in their own precision


def largest_distance(data: Tensor, chunk: int = 1024) -> float:
    """The largest Euclidean distance of two data points: σ_1 of Technique 1.

    Matrix products find the pair, in the data's own dtype, and its distance is then computed in float64.

    Args:
        data: Data as the network sees them, shape (N, *shape), floating point, N >= 2.
        chunk: Points on each side of a block of distances; memory grows with its square, time with N² D at
            most, and with N D where few points are far from the mean.

    Returns:
        The distance.

    Raises:
        InputError: If there are fewer than two points, or the data are not finite floating-point numbers.
    """
    if data.ndim < 2 or len(data) < 2 or not data.is_floating_point():
        raise InputError(
            "data must be a floating-point tensor (N, *shape) of two or more points, "
            f"got {tuple(data.shape)} of {data.dtype}"
        )
    points = data.flatten(1)
    if not points.isfinite().all():
        raise InputError("data must be finite, they hold NaN or infinite values")
    points = points - points.mean(0)  # squares of numbers that are far from 0 would lose digits
    # By falling norms: no pair of two blocks is further apart than the sum of the norms that they begin with.
    norms, order = torch.linalg.vector_norm(points.double(), dim=1).sort(descending=True)
    points, bounds = points[order], norms.tolist()
    half_norms = points.square().sum(1) / 2
    best, pair = -math.inf, (0, 0)
    for i in range(0, len(points), chunk):
        for j in range(i, len(points), chunk):
            if (bounds[i] + bounds[j]) ** 2 / 2 * ROUNDING < best:
                break  # nor is any later block
            a, b = slice(i, i + chunk), slice(j, j + chunk)
            half_squares = half_norms[a, None] + half_norms[b] - points[a] @ points[b].T
            top = half_squares.max().item()
            if top > best:
                row, column = divmod(int(half_squares.argmax()), half_squares.shape[1])
                best, pair = top, (i + row, j + column)
    first, second = (data[order[k]].double() for k in pair)
    return torch.linalg.vector_norm(first - second).item()


def level_ratio(dimension: int) -> float:
    """γ = σ_{i-1}/σ_i of Technique 2 for D-dimensional data, where successive shells overlap by 0.567.

    Raises:
        InputError: If D < 5: a Gaussian's radius is then not nearly normal, and the equation has no solution.
    """
    if dimension < SMALLEST_DIMENSION:
        raise InputError(
            f"Technique 2 needs data of at least {SMALLEST_DIMENSION} dimensions, below which its equation "
            f"has no solution, got {dimension}; choose the number of levels yourself"
        )
    root = math.sqrt(2 * dimension)

    def overlap(gamma: float) -> float:
        return _normal_cdf(root * (gamma - 1) + 3 * gamma) - _normal_cdf(root * (gamma - 1) - 3 * gamma)

    # From 0.997 at γ = 1 the overlap falls to Φ(-1) = 0.16 at the upper end, where √(2D) (γ - 1) = 3γ + 1.
    return _bisect(lambda gamma: overlap(gamma) - OVERLAP, 1.0, (root + 1) / (root - 3))


def number_of_levels(sigma_max: float, sigma_min: float, dimension: int) -> int:
    """The largest L >= 2 whose geometric levels have a ratio of at least Technique 2's γ.

    It is the paper's L for each of its five data sets: 232 for CIFAR-10, with σ_1 = 50 and σ_L = 0.01.

    Raises:
        InputError: If 0 < sigma_min < sigma_max does not hold, or D < 5.
    """
    _check_ends(sigma_max, sigma_min)
    return 1 + max(1, math.floor(math.log(sigma_max / sigma_min) / math.log(level_ratio(dimension))))


def ncsnv2_levels(data: Tensor, sigma_min: float = 0.01, chunk: int = 1024) -> Tensor:
    """NCSNv2's noise levels for a data set, by Techniques 1 and 2.

    Args:
        data: Data as the network sees them, shape (N, *shape), floating point, N >= 2.
        sigma_min: σ_L; 0.01 for images in [0, 1] in the paper, twice that in [-1, 1].
        chunk: Points on each side of a block of distances.

    Returns:
        Levels, decreasing, shape (L,), float64.

    Raises:
        InputError: As for `largest_distance` and `number_of_levels`.
    """
    sigma_max = largest_distance(data, chunk)
    return geometric_levels(sigma_max, sigma_min, number_of_levels(sigma_max, sigma_min, data[0].numel()))


def variance_ratio(step_size: float, gamma: float, n_steps_each: int) -> float:
    """v of Technique 4: the variance of the noise after T Langevin steps at a level, in units of σ_i².

    Args:
        step_size: r = 2e, the `step_size` of the samplers, in (0, 4).
        gamma: σ_{i-1}/σ_i.
        n_steps_each: T.
    """
    e = step_size / 2
    c = 2 / (2 - e)
    return (1 - e) ** (2 * n_steps_each) * (gamma**2 - c) + c


def relative_step_size(gamma: float, n_steps_each: int) -> float:
    """r = 2ε/σ_L² for the ε of Technique 4: the `step_size` of AnnealedLangevinSampler with v nearest to 1.

    Args:
        gamma: σ_{i-1}/σ_i, above 1.
        n_steps_each: T, Langevin steps at each level.

    Returns:
        r in (0, 2).

    Raises:
        InputError: If γ > 1 or T >= 1 does not hold.
    """
    if not gamma > 1 or not math.isfinite(gamma):
        raise InputError(f"gamma must be a finite ratio above 1 of a level to the next, got {gamma}")
    if n_steps_each < 1:
        raise InputError(f"n_steps_each must be at least 1, got {n_steps_each}")
    T = n_steps_each

    def slope(e: float) -> float:  # dv/de, times 2 - e to keep it finite
        c = 2 / (2 - e)
        return (1 - (1 - e) ** (2 * T)) * c - 2 * T * (1 - e) ** (2 * T - 1) * (gamma**2 - c) * (2 - e)

    # -4T (γ² - 1) < 0 at e = 0, 2 > 0 at e = 1; it rises where c < γ² and is positive beyond: one minimum.
    return 2 * _bisect(slope, 0.0, 1.0)


def langevin_epsilon(levels: Tensor, n_steps_each: int) -> float:
    """ε of Technique 4, in NCSNv2's convention: α_i = ε σ_i²/σ_L² in x ← x + α_i s + √(2 α_i) z.

    Args:
        levels: Decreasing geometric levels, shape (L,), L >= 2.
        n_steps_each: T, Langevin steps at each level.

    Raises:
        InputError: If the levels do not decrease, or T < 1.
    """
    levels = _checked(levels)
    gamma = (levels[0] / levels[-1]).item() ** (1 / (len(levels) - 1))
    return relative_step_size(gamma, n_steps_each) / 2 * levels[-1].item() ** 2


def level_times(sde: SDE, levels: Tensor) -> Tensor:
    """The times at which σ(t)/α(t) takes the given levels: the grid that makes a sampler run over them.

    Args:
        sde: The SDE.
        levels: Decreasing levels, shape (L,), L >= 2.

    Returns:
        Decreasing times, shape (L,), float64.

    Raises:
        InputError: If the levels do not decrease, or the SDE does not reach one of them.
    """
    levels = _checked(levels)
    times = sde.time_at_log_noise_level(levels.log())
    reached = sde.log_noise_level(times).exp()
    if not torch.allclose(reached, levels, rtol=1e-6, atol=0):
        low, high = sde.log_noise_level(torch.tensor([0.0, sde.T], dtype=torch.float64)).exp().tolist()
        raise InputError(
            f"levels must lie between σ/α = {low:.6g} and {high:.6g} of {type(sde).__name__}, "
            f"got {levels[-1].item():.6g} to {levels[0].item():.6g}"
        )
    return times


def _check_ends(sigma_max: float, sigma_min: float) -> None:
    if not 0 < sigma_min < sigma_max < math.inf:
        raise InputError(
            f"levels need 0 < sigma_min < sigma_max, got sigma_min={sigma_min} and sigma_max={sigma_max}"
        )


def _checked(levels: Tensor) -> Tensor:
    levels = torch.as_tensor(levels, dtype=torch.float64)
    if levels.ndim != 1 or len(levels) < 2 or not (levels.diff() < 0).all() or not levels[-1] > 0:
        raise InputError(f"levels must be two or more positive numbers, decreasing, got {levels.tolist()}")
    return levels


def _normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def _bisect(f: Callable[[float], float], low: float, high: float) -> float:
    """The root of f in [low, high], where it changes its sign once."""
    rising = f(high) > 0
    for _ in range(100):
        middle = (low + high) / 2
        if (f(middle) > 0) == rising:
            high = middle
        else:
            low = middle
    return (low + high) / 2
