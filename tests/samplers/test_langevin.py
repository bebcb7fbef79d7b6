"""Annealed Langevin dynamics and consistent annealed sampling: exact laws on Gaussians, then a mixture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from score_diffusion.samplers import (
    AnnealedLangevinSampler,
    ConsistentAnnealedSampler,
    Sampler,
    base,
    log_snr_grid,
    make_sampler,
)
from score_diffusion.sde_lib import (
    SDE,
    VESDE,
    VPSDE,
    Gaussian,
    GaussianMixture,
    InputError,
    geometric_levels,
    level_times,
    noisy_times,
    relative_step_size,
    variance_ratio,
)
from tests.problems import SDES, images, ring, sampling_floor, sliced_wasserstein

every_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
POINT = torch.tensor([0.7, -1.0], dtype=torch.float64)


class Impulses:
    """Stands in for the samplers' noise: a row of the batch for every number drawn, 1 where it is drawn."""

    def __init__(self, seed: int, first: int, shape: Sequence[int], device: object, dtype: torch.dtype):
        self.shape, self.dtype, self.draws = shape, dtype, 0

    def normal(self) -> Tensor:
        z = torch.zeros(self.shape, dtype=self.dtype)
        B, D = self.shape
        rows = 1 + D * (self.draws + 1) + torch.arange(D)  # after the zero row and the D rows of the start
        z[rows[rows < B], torch.arange(D)[rows < B]] = 1
        self.draws += 1
        return z


@pytest.fixture
def exact_law(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Tensor, Tensor]]:
    """Means (times, D) and covariances (times, D, D) of a sampler on Gaussian data, where it is an affine map
    of its start and its noise: read off the sampler itself, by impulses."""
    monkeypatch.setattr(base, "SampleNoise", Impulses)

    def law(sampler: Sampler, score, D: int, draws: int, denoise: bool = False) -> tuple[Tensor, Tensor]:
        x_T = torch.zeros(1 + D + draws * D, D, dtype=torch.float64)
        x_T[1 : 1 + D] = sampler.sde.prior_std * torch.eye(D, dtype=torch.float64)
        result = sampler(score, x_T.shape, x_T=x_T, trajectory=True)
        states = result.samples[None] if denoise else result.trajectory  # (times, B, D)
        responses = states[:, 1:] - states[:, :1]
        return states[:, 0], torch.einsum("nbi,nbj->nij", responses, responses)

    return law


def variances_of_langevin(sde: SDE, times: Tensor, S: float, T: int, r: float) -> list[float]:
    """The variance of annealed Langevin dynamics at each level on N(0, S) data, by Algorithm 1."""
    alphas, sigmas = sde.alpha(times).tolist(), sde.sigma(times).tolist()
    v, out = sde.prior_std**2, []
    for i, (alpha, sigma) in enumerate(zip(alphas, sigmas, strict=True)):
        if i > 0:
            v *= (alpha / alphas[i - 1]) ** 2
        for _ in range(T):
            a = r * sigma**2
            v = (1 - a / 2 / (alpha**2 * S + sigma**2)) ** 2 * v + a
        out.append(v)
    return out


@pytest.mark.parametrize("name", list(SDES))
def test_langevin_law_is_the_recursion(name: str, exact_law) -> None:
    sde, T, r, S = SDES[name], 3, 0.4, (0.5, 4.0)
    times = log_snr_grid(sde, 6)
    score = Gaussian(torch.zeros(2), torch.tensor(S, dtype=torch.float64)).score(sde)
    sampler = AnnealedLangevinSampler(sde, times, n_steps_each=T, step_size=r, denoise=False)
    mean, covariance = exact_law(sampler, score, 2, T * len(times))
    assert mean.abs().max() == 0
    for d in range(2):
        expected = torch.tensor(variances_of_langevin(sde, times, S[d], T, r), dtype=torch.float64)
        # the trajectory begins with the start, before the steps of the first level
        torch.testing.assert_close(covariance[1:, d, d], expected[1:], rtol=1e-9, atol=0)
    assert covariance[:, 0, 1].abs().max() == 0


def test_langevin_on_a_point_has_the_variance_ratio_of_technique_4(exact_law) -> None:
    sde, T = VESDE(0.05, 0.05 * 1.3**8), 4
    r = relative_step_size(1.3, T)
    times = level_times(sde, geometric_levels(sde.sigma_max, sde.sigma_min, 9))
    sampler = AnnealedLangevinSampler(sde, times, n_steps_each=T, step_size=r, denoise=False)
    score = Gaussian(torch.zeros(1), torch.zeros(())).score(sde)
    _, covariance = exact_law(sampler, score, 1, T * len(times))
    v = (covariance[:, 0, 0] / sde.sigma(times).square()).tolist()  # of the noise over σ_i²
    q, ratio = (1 - r / 2) ** (2 * T), variance_ratio(r, 1.3, T)
    for i in range(2, 9):  # one level's step from v_{i-1} instead of 1
        assert v[i] == pytest.approx(ratio + q * 1.3**2 * (v[i - 1] - 1), rel=1e-9)
    assert min(v[1:]) > 1.01  # Langevin dynamics leave more noise than the score is told


@pytest.mark.slow
def test_langevin_converges_to_the_data(exact_law) -> None:
    sde, S = VESDE(0.02, 8.0), 1.7
    score = Gaussian(torch.ones(1), torch.tensor(S, dtype=torch.float64)).score(sde)
    errors, r, T = [], 0.2, 50
    for levels in (12, 24, 48):  # what is left is the excess of the levels before, less with smaller ratios
        sampler = AnnealedLangevinSampler(sde, log_snr_grid(sde, levels), n_steps_each=T, step_size=r)
        expected = variances_of_langevin(sde, sampler.times, S, T, r)[-1]
        expected *= (S / (S + sde.sigma(sampler.times[-1]).item() ** 2)) ** 2
        mean, covariance = exact_law(sampler, score, 1, T * (levels + 1), denoise=True)
        assert covariance.item() == pytest.approx(expected, rel=1e-9)
        assert mean.item() == pytest.approx(1, abs=0.01)
        errors.append(abs(covariance.item() / S - 1))
    assert errors[-1] < 0.03
    assert 0.9 < math.log2(errors[0] / errors[2]) / 2 < 1.2  # first order in the number of levels


# Consistent annealed sampling.


@pytest.mark.parametrize("eta", [0.5, 1.0, 1.4])
@pytest.mark.parametrize("name", list(SDES))
def test_consistent_sampling_keeps_the_noise_level(name: str, eta: float, exact_law) -> None:
    """On a point the noise is σ(t)² at every time: (1 - η)² σ_i² + β_i² σ_{i+1}² = σ_{i+1}²."""
    sde = SDES[name]
    times = log_snr_grid(sde, 24)
    score = Gaussian(POINT, torch.zeros(())).score(sde)
    sampler = ConsistentAnnealedSampler(sde, times, step_size=2 * eta, denoise=False)
    mean, covariance = exact_law(sampler, score, 2, len(times))
    alpha, shrunk = sde.alpha(times)[:, None], (1 - eta) ** torch.arange(25, dtype=torch.float64)[:, None]
    # What the prior has too much over p_T = N(α x_0, σ² I), or too little, is forgotten step by step.
    excess = (alpha * shrunk / alpha[0]).square() * (sde.prior_std**2 - sde.sigma(times[0]).square())
    wanted = sde.sigma(times).square()[:, None] + excess
    torch.testing.assert_close(covariance.diagonal(dim1=1, dim2=2), wanted.expand(-1, 2), rtol=1e-9, atol=0)
    assert covariance[:, 0, 1].abs().max() == 0
    torch.testing.assert_close(mean, alpha * (1 - shrunk) * POINT, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", list(SDES))
def test_consistent_sampling_law_is_the_recursion_and_converges(name: str, exact_law) -> None:
    sde, S = SDES[name], 1.7
    score = Gaussian(torch.zeros(1), torch.tensor(S, dtype=torch.float64)).score(sde)
    errors = []
    for steps in (100, 200, 400):
        times = log_snr_grid(sde, steps)
        noise = sde.log_noise_level(times).exp()
        gamma = (noise[-1] / noise[0]).item() ** (1 / steps)
        eta = 2 * (1 - gamma)
        v = sde.prior_std**2 / sde.alpha(times[0]).item() ** 2
        for i in range(steps):  # in the coordinates of x̃
            beta2 = 1 - ((1 - eta) * noise[i] / noise[i + 1]) ** 2
            v = (1 - eta * noise[i] ** 2 / (S + noise[i] ** 2)) ** 2 * v + beta2 * noise[i + 1] ** 2
        sampler = ConsistentAnnealedSampler(sde, times, step_size=2 * eta)
        _, covariance = exact_law(sampler, score, 1, steps, denoise=True)
        assert covariance.item() == pytest.approx((v * (S / (S + noise[-1] ** 2)) ** 2).item(), rel=1e-6)
        errors.append(abs(covariance.item() / S - 1))
    assert errors[-1] < 0.04
    rate = math.log2(errors[0] / errors[2]) / 2
    assert 0.9 < rate < 1.1  # first order in the number of levels


def test_least_step_size_adds_no_noise() -> None:
    """η = 1 - γ is the Euler method for the probability flow: a map of x_T alone."""
    sde, gamma = VESDE(0.05, 5.0), (0.05 / 5) ** (1 / 20)
    times = level_times(sde, geometric_levels(5.0, 0.05, 21))
    sampler = ConsistentAnnealedSampler(sde, times, step_size=2 * (1 - gamma))
    score = ring().score(sde)
    x_T = 5 * torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a, b = (sampler(score, (4, 2), seed, x_T=x_T).samples for seed in (0, 1))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    x = x_T
    for i in range(20):
        t = times[i].expand(4)
        x = x + (1 - gamma) * sde.sigma(times[i]) ** 2 * score(x, t)
    t = times[-1].expand(4)
    torch.testing.assert_close(a, x + 0.05**2 * score(x, t), rtol=0, atol=1e-5)


# Both.


def sampler_for(kind: str, sde: SDE) -> Sampler:
    if kind == "ald":
        return AnnealedLangevinSampler(sde, log_snr_grid(sde, 100), n_steps_each=5, step_size=0.1)
    return ConsistentAnnealedSampler(sde, log_snr_grid(sde, 400), step_size=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ald", "cas"])
@pytest.mark.parametrize("name", list(SDES))
def test_samples_of_a_mixture(name: str, kind: str) -> None:
    sde, law, n = SDES[name], ring(), 1000
    samples = sampler_for(kind, sde)(law.score(sde), (n, 2), seed=1).samples
    assert sliced_wasserstein(samples, law.sample(n, seed=99)) < 2 * sampling_floor(law, n)


@pytest.mark.parametrize("kind", ["ald", "cas"])
def test_evaluations_and_independence_of_the_batch(kind: str) -> None:
    sde, law = SDES["vp"], ring()
    times = log_snr_grid(sde, 30)
    if kind == "ald":
        sampler: Sampler = AnnealedLangevinSampler(sde, times, n_steps_each=2)
    else:
        sampler = ConsistentAnnealedSampler(sde, times, step_size=1.0)
    together = sampler(law.score(sde), (5, 2), seed=3, trajectory=True)
    assert together.nfe == (31 * 2 + 1 if kind == "ald" else 30 + 1)
    assert together.trajectory.shape == (31, 5, 2)
    alone = sampler(law.score(sde), (1, 2), seed=3, first=4).samples
    torch.testing.assert_close(together.samples[4:], alone)


def test_errors() -> None:
    sde = VESDE(0.01, 10.0)
    times = level_times(sde, geometric_levels(10.0, 0.01, 10))  # γ = 0.464
    for step_size in (0.0, 4.0, -1.0, math.nan):
        for make in (AnnealedLangevinSampler, ConsistentAnnealedSampler):
            with pytest.raises(ValueError, match=r"step_size must lie in \(0, 4\)"):
                make(sde, times, step_size=step_size)
    with pytest.raises(ValueError, match="n_steps_each must be at least 1, got 0"):
        AnnealedLangevinSampler(sde, times, n_steps_each=0)
    for step_size in (1.0, 3.0):
        with pytest.raises(ValueError, match=r"step_size must lie in \[1.07168, 2.92832\] .* 0.464159"):
            ConsistentAnnealedSampler(sde, times, step_size=step_size)
    with pytest.raises(InputError, match="step_size must be a number or 'auto', got 'rule'"):
        AnnealedLangevinSampler(sde, times, step_size="rule")


# The step sizes by rule, the levels of a chain.


@pytest.mark.parametrize("n_steps_each", [2, 5, 20])
def test_auto_is_technique_4_of_the_levels(n_steps_each: int) -> None:
    """The step size at which the noise keeps the variance of the levels as nearly as it can."""
    ratio = 1.2
    sde = VESDE(0.05, 0.05 * ratio**30)
    times = level_times(sde, geometric_levels(sde.sigma_max, sde.sigma_min, 31))
    sampler = AnnealedLangevinSampler(sde, times, n_steps_each=n_steps_each, step_size="auto")
    assert sampler.step_size == pytest.approx(relative_step_size(ratio, n_steps_each), rel=1e-6)
    off = [abs(variance_ratio(f * sampler.step_size, ratio, n_steps_each) - 1) for f in (0.9, 1.0, 1.1)]
    assert off[1] <= min(off[0], off[2])


@pytest.mark.parametrize(("levels", "expected"), [(200, 0.2), (20, None), (2, 2.0)])
def test_auto_of_consistent_sampling(levels: int, expected: float | None) -> None:
    """1.1 times the least step size, within [0.2, 2], which the constructor accepts for any levels."""
    sde = VESDE(0.01, 10.0)
    times = log_snr_grid(sde, levels)
    least = 2 * (1 - math.exp(-math.log(1000) / levels))
    sampler = ConsistentAnnealedSampler(sde, times)
    assert sampler.step_size == pytest.approx(1.1 * least if expected is None else expected, rel=1e-3)
    ConsistentAnnealedSampler(sde, times, step_size=sampler.step_size)


@pytest.mark.parametrize("name", ["ald", "cas"])
def test_the_chain_gives_the_noisy_times_of_the_sde(name: str) -> None:
    """All levels of NCSN's chain; of VP's, whose chain ends without noise, all but the last time."""
    ncsn = VESDE(0.02, 2.0, N=10)
    sampler = make_sampler(name, ncsn, grid="chain")
    torch.testing.assert_close(ncsn.sigma(sampler.times), geometric_levels(2.0, 0.02, 10), rtol=1e-6, atol=0)
    vp, law = VPSDE(N=21), ring()
    sampler = make_sampler(name, vp, grid="chain", denoise=True)
    assert torch.equal(sampler.times, noisy_times(vp).flip(0)) and len(sampler.times) == 20
    result = sampler(law.score(vp), (3, 2))
    assert result.samples.isfinite().all() and result.nfe == (20 * 5 + 1 if name == "ald" else 20)
    shorter, longer = (
        ConsistentAnnealedSampler(vp, torch.tensor(times), step_size=2.0)
        for times in ([1.0, 0.5], [1.0, 0.5, 0.0])
    )
    assert torch.equal(shorter.times, longer.times)


@pytest.mark.slow
@every_sde
@pytest.mark.parametrize("law", [ring(), images()], ids=["ring", "images"])
def test_mixtures_are_sampled_at_the_floor(sde: SDE, law: GaussianMixture) -> None:
    """200 levels of 5 steps: within twice the distance between two true sample sets."""
    n = 400 if law.shape == (2,) else 100
    samples = AnnealedLangevinSampler(sde)(law.score(sde), (n, *law.shape), seed=1).samples
    assert sliced_wasserstein(samples, law.sample(n, seed=77)) < 2 * sampling_floor(law, n)
