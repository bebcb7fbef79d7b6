"""Denoising score matching, by Gauss-Hermite quadrature: expectations over x_0 and ε without Monte-Carlo
noise.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from score_diffusion.sde_lib import (
    VESDE,
    VPSDE,
    WEIGHTINGS,
    EDMWeighting,
    LearnedUncertainty,
    MinSNRWeighting,
    ScoreModel,
    denoising_score_matching,
    expand,
    sample_times,
    tweedie,
)
from score_diffusion.sde_lib.score import PREDICTIONS
from tests.problems import ALL_SDES, SDES, line
from tests.sde_lib.test_score import ExactNet

every_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
every_weighting = pytest.mark.parametrize("weighting", WEIGHTINGS)


def quadrature(law, nodes=120):
    """Points x_0 (n, 1), ε (n, 1) and weights (n,) that integrate over a 1-D mixture times a normal."""
    z, w = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(nodes))
    w = w / w.sum()
    x_0 = law._means + law._variances.sqrt() * z  # (K, nodes)
    weights = law._log_weights.exp()[:, None, None] * w[:, None] * w  # (K, nodes, nodes)
    x_0 = x_0[:, :, None].expand_as(weights)
    return x_0.reshape(-1, 1), z.expand_as(weights).reshape(-1, 1), weights.reshape(-1)


class Perturbed(nn.Module):
    """The exact network plus δ times fixed functions of its input: the loss must be stationary in δ at 0."""

    def __init__(self, exact):
        super().__init__()
        self.exact = exact
        self.delta = nn.Parameter(torch.zeros(4, dtype=torch.float64))

    def forward(self, x, noise, cond=None):
        directions = torch.stack([torch.ones_like(x), x, x.sin(), (2 * x).cos()])
        return self.exact(x, noise) + torch.einsum("k,kbd->bd", self.delta, directions)


@pytest.mark.slow
@every_sde
@every_weighting
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("k", [299, 599, 999])
def test_exact_score_is_stationary(sde, weighting, prediction, k):
    """The gradient at the exact score vanishes, a hundred thousand times below the gradient a little beside
    it; at times of the chain, the only ones that iddpm tells its network.
    """
    x_0, eps, weights = quadrature(line())
    net = Perturbed(ExactNet(line(), sde, prediction))
    times = sde.discrete_times()[k].expand(len(x_0))

    def gradient(delta):
        net.delta.data.fill_(delta)
        losses = denoising_score_matching(sde, ScoreModel(net, sde, prediction), x_0, times, eps, weighting)
        return torch.autograd.grad((weights * losses).sum(), net.delta)[0].norm()

    assert gradient(0.0) < 1e-5 * gradient(0.1)


@every_sde
@every_weighting
def test_excess_loss_is_the_weighted_score_error(sde, weighting):
    """L(score) - L(exact) = λ E‖score - exact‖² (Vincent, 2011): at any score, not only near the optimum."""
    law, t = line(), 0.4
    exact = law.score(sde)
    x_0, eps, weights = quadrature(law)
    times = torch.full((len(x_0),), t, dtype=torch.float64)

    def wrong(x, t):
        return exact(x, t) + torch.sin(3 * x) / expand(sde.sigma(t), x)

    def expected(score):
        return (weights * denoising_score_matching(sde, score, x_0, times, eps, weighting)).sum()

    mean, std = sde.marginal_prob(x_0, times)
    x_t = mean + std[:, None] * eps
    alpha, sigma = sde.alpha(times), sde.sigma(times)
    weight = {
        "plain": sigma**2,
        "likelihood": sde.g2(times),
        "x0": sigma**4 / alpha**2,
        "min_snr": torch.minimum(alpha**2 / sigma**2, torch.tensor(5.0)) * sigma**4 / alpha**2,
        "edm": sigma**2 + sigma**4 / (0.5 * alpha) ** 2,
    }[weighting]
    error = (weights * weight * (wrong(x_t, times) - exact(x_t, times)).square().mean(1)).sum()
    torch.testing.assert_close(expected(wrong) - expected(exact), error, rtol=1e-6, atol=0)


def min_snr(snr, gamma):
    """Hang et al. (2023), Section 3.4: the weight of the error of x_0."""
    return np.minimum(snr, gamma)


def edm(snr, sigma_data):
    """Karras et al. (2022), Table 1: λ(σ), the weight of the denoiser's error, σ the noise of x_t/α."""
    sigma = snr**-0.5
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


PAPERS = {
    "x0": (np.ones_like, "x0"),
    "min_snr": (lambda snr: min_snr(snr, 5.0), "min_snr"),
    "min_snr of 1": (lambda snr: min_snr(snr, 1.0), MinSNRWeighting(gamma=1.0)),
    "edm": (lambda snr: edm(snr, 0.5), "edm"),
    "edm of 0.7": (lambda snr: edm(snr, 0.7), EDMWeighting(sigma_data=0.7)),
}
every_paper = pytest.mark.parametrize(("of_x_0", "weighting"), PAPERS.values(), ids=PAPERS.keys())


@every_paper
@pytest.mark.parametrize("sde", ALL_SDES.values(), ids=ALL_SDES.keys())
def test_weightings_are_the_papers_on_the_error_of_x_0(sde, of_x_0, weighting):
    """By the denoiser of Tweedie's formula, at noise levels from one end of the SDE to the other."""
    generator = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 40, 3, 4, generator=generator, dtype=torch.float64)
    t = sde.T * torch.logspace(-4, 0, 40, dtype=torch.float64)

    def score(x, t):
        return -x.sin() / expand(sde.sigma(t), x)

    x_t = expand(sde.alpha(t), x_0) * x_0 + expand(sde.sigma(t), x_0) * eps
    error = (tweedie(sde, score, x_t, t) - x_0).square().mean((1, 2))
    snr = ((sde.alpha(t) / sde.sigma(t)) ** 2).numpy()
    losses = denoising_score_matching(sde, score, x_0, t, eps, weighting)
    torch.testing.assert_close(losses, torch.from_numpy(of_x_0(snr)) * error, rtol=1e-8, atol=0)


@every_paper
@pytest.mark.parametrize("sde", ALL_SDES.values(), ids=ALL_SDES.keys())
def test_weights_keep_their_digits_in_float32(sde, of_x_0, weighting):
    """As multiples of the noise's error, w = λ/SNR, down to SNR = 1e10 where the SDE goes there."""
    ends = sde.time_at_log_noise_level(-torch.tensor([1e10, 1e-6], dtype=torch.float64).log() / 2)
    t = torch.logspace(*ends.clamp_min(1e-12).log10().tolist(), 200).clamp_max(sde.T)
    snr = (sde.alpha(t.double()) / sde.sigma(t.double())).numpy() ** 2
    weighting = WEIGHTINGS[weighting] if isinstance(weighting, str) else weighting
    weights = weighting(sde, t)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.double(), torch.from_numpy(of_x_0(snr) / snr), rtol=2e-5, atol=0)


@pytest.mark.parametrize(
    ("weighting", "of_v"),
    [
        ("plain", lambda snr: snr / (1 + snr)),
        ("x0", lambda snr: 1 / (1 + snr)),
        ("min_snr", lambda snr: snr.clamp_max(5) / (1 + snr)),
        ("edm", lambda snr: (snr + 4) / (1 + snr)),
        (EDMWeighting(1.0), torch.ones_like),
    ],
    ids=["plain", "x0", "min_snr", "edm", "edm of 1"],
)
@pytest.mark.parametrize("sde", ALL_SDES.values(), ids=ALL_SDES.keys())
def test_weightings_on_the_error_of_v(sde, of_v, weighting):
    """docs/notation.md's column of v, which a network of prediction v has as its output's error."""
    generator = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 40, 5, generator=generator, dtype=torch.float64)
    t = sde.T * torch.logspace(-3, 0, 40, dtype=torch.float64)
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    norm = (alpha**2 + sigma**2).sqrt()

    class Cubic(nn.Module):
        def forward(self, x, noise, cond=None):
            return x**3

    F = ((alpha * x_0 + sigma * eps) / norm) ** 3
    error = (F - (alpha * eps - sigma * x_0) / norm).square().mean(1)
    losses = denoising_score_matching(sde, ScoreModel(Cubic(), sde, "v"), x_0, t, eps, weighting)
    torch.testing.assert_close(losses, of_v(((alpha / sigma) ** 2).squeeze(1)) * error, rtol=1e-8, atol=0)


def test_a_weighting_can_be_a_function():
    x_0, noise = torch.randn(2, 5, 3)
    t = torch.rand(5)
    losses = [
        denoising_score_matching(VPSDE(), lambda x, t: -x, x_0, t, noise, weighting)
        for weighting in ("plain", lambda sde, t: 3 * t)
    ]
    torch.testing.assert_close(losses[1], 3 * t * losses[0])


def test_one_value_per_sample():
    """Each sample's loss is its own: the batch's values are those of its samples alone, averaged over any
    data shape.
    """
    sde, score = VPSDE(), lambda x, t: -x * expand(1 + t, x)
    x_0, noise, t = torch.randn(5, 2, 3, 4), torch.randn(5, 2, 3, 4), torch.rand(5)
    batch = denoising_score_matching(sde, score, x_0, t, noise)
    assert batch.shape == (5,)
    for k in range(5):
        one = slice(k, k + 1)
        torch.testing.assert_close(
            batch[one], denoising_score_matching(sde, score, x_0[one], t[one], noise[one])
        )
    mean, std = sde.marginal_prob(x_0, t)
    std = expand(std, x_0)
    by_hand = ((std * score(mean + std * noise, t) + noise) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(batch, by_hand)


# Learned uncertainty: fitted to losses with a known mean, exp(u) is that mean.


def mean_loss(log_noise_level: Tensor) -> Tensor:
    """Over four orders of magnitude, with a step."""
    return (1.2 * log_noise_level - 2 * torch.tanh(2 * log_noise_level)).exp()


def fitted(sde, spread: float, steps: int) -> LearnedUncertainty:
    """Trained on losses that are the mean times a Γ variable of mean 1 and standard deviation `spread`."""
    torch.manual_seed(0)
    uncertainty = LearnedUncertainty(sde)
    optimizer = torch.optim.Adam(uncertainty.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        t = sample_times(sde, 256, eps=1e-3)
        losses = mean_loss(sde.log_noise_level(t))
        if spread:
            shape = 1 / spread**2
            losses = losses * torch.distributions.Gamma(shape, shape).sample((len(t),))
        optimizer.zero_grad()
        uncertainty(losses, t).mean().backward()
        optimizer.step()
        schedule.step()
    return uncertainty


@pytest.mark.slow
@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["vp", "ve"])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_it_learns_the_mean_loss_at_each_level(sde, spread: float) -> None:
    """Not the median or the logarithm's mean, which for spread 1 lie at 0.69 and 0.56 of it."""
    uncertainty = fitted(sde, spread, steps=1500)
    t = torch.linspace(0.02, 0.98, 50)
    with torch.no_grad():
        ratio = uncertainty.log_mean(t).exp() / mean_loss(sde.log_noise_level(t))
    assert (ratio.log().abs() < (0.15 if spread else 0.05)).all()
    assert abs(ratio.log().mean()) < 0.03


def test_it_is_the_plain_loss_at_first_and_the_formula_later() -> None:
    uncertainty, t, losses = LearnedUncertainty(VPSDE()), torch.rand(6) + 0.01, torch.rand(6)
    assert torch.equal(uncertainty(losses, t), losses)
    torch.nn.init.normal_(uncertainty.weight)
    u = uncertainty.log_mean(t)
    torch.testing.assert_close(uncertainty(losses, t), losses / u.exp() + u)


@pytest.mark.slow
def test_the_networks_gradient_at_the_optimum_is_that_of_the_log_loss() -> None:
    """d/dθ [L/exp(u) + u] = d log L/dθ where exp(u) = L: every level has the same weight."""
    uncertainty = fitted(VPSDE(), 0.0, steps=1500)
    t = torch.linspace(0.1, 0.9, 5)
    scale = torch.ones(5, requires_grad=True)
    uncertainty(scale * mean_loss(VPSDE().log_noise_level(t)), t).sum().backward()
    torch.testing.assert_close(scale.grad, torch.ones(5), rtol=0.05, atol=0)


def test_it_is_saved_whole() -> None:
    one, other, t = LearnedUncertainty(VPSDE()), LearnedUncertainty(VPSDE()), torch.rand(4) + 0.1
    torch.nn.init.normal_(one.weight)
    assert not torch.equal(one.log_mean(t), other.log_mean(t))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.log_mean(t), other.log_mean(t))


def test_autocast_leaves_its_digits() -> None:
    uncertainty, t = LearnedUncertainty(VPSDE()), torch.rand(4) + 0.1
    torch.nn.init.normal_(uncertainty.weight)
    with torch.autocast("cpu", torch.bfloat16):
        u = uncertainty.log_mean(t)
    assert torch.equal(u, uncertainty.log_mean(t))


def test_errors():
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="weighting must be one of plain, likelihood"):
        denoising_score_matching(VPSDE(), lambda x, t: x, x, torch.ones(3), x, "uniform")
    with pytest.raises(ValueError, match="noise must have the shape"):
        denoising_score_matching(VPSDE(), lambda x, t: x, x, torch.ones(3), torch.zeros(2))
    with pytest.raises(ValueError, match="t must have shape"):
        denoising_score_matching(VPSDE(), lambda x, t: x, x, torch.ones(3, 1), x)
