"""The chain of DDPM as an SDE: its tables, transitions, posterior and reverse step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import interpolate
from torch import nn

from score_diffusion.sde_lib import (
    BETA_TABLES,
    DDPM,
    VESDE,
    VPSDE,
    ScoreModel,
    chain_times,
    cosine_betas,
    linear_betas,
    log_likelihood,
    reverse_transition,
)
from tests.problems import SDES, gaussian

every_table = pytest.mark.parametrize("table", BETA_TABLES)


def uniform(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# Tables.


def test_the_vp_sde_has_ddpms_tables():
    """VPSDE(N=1000) yields the tables of DDPM's linear betas."""
    vp, ddpm = VPSDE(N=1000), DDPM(linear_betas(1000))
    for name in (
        "discrete_betas",
        "alphas",
        "alphas_cumprod",
        "sqrt_alphas_cumprod",
        "sqrt_1m_alphas_cumprod",
    ):
        torch.testing.assert_close(getattr(vp, name), getattr(ddpm, name), rtol=1e-6, atol=0)


# The SDE through the chain.


@every_table
def test_transition_and_marginals_are_the_chains(table):
    betas = BETA_TABLES[table](50)
    sde, t = DDPM(betas), chain_times(DDPM(betas)).flip(0)
    alpha_ts, var_ts = sde.transition(t[:-1], t[1:])
    torch.testing.assert_close(alpha_ts, (1 - betas).sqrt(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(var_ts, betas, rtol=1e-9, atol=1e-13)
    alpha_bar = (1 - betas).cumprod(0)
    torch.testing.assert_close(sde.alpha(t[1:]).square(), alpha_bar, rtol=1e-12, atol=0)
    torch.testing.assert_close(sde.sigma(t[1:]).square(), 1 - alpha_bar, rtol=1e-12, atol=1e-15)
    assert sde.alpha(t[:1]) == 1 and sde.sigma(t[:1]) == 0


@every_table
def test_respaced_betas_are_improved_ddpms(table):
    """β between two kept steps is 1 - ᾱ_t/ᾱ_s, and the DDPM of the respaced betas has the same ᾱ."""
    betas = BETA_TABLES[table](100)
    sde, kept = DDPM(betas), torch.tensor([3, 10, 11, 50, 99])
    t = torch.cat([torch.zeros(1).double(), sde.discrete_times()[kept]])
    alpha_bar = (1 - betas).cumprod(0)[kept]
    expected = 1 - alpha_bar / torch.cat([torch.ones(1).double(), alpha_bar[:-1]])
    respaced = sde.transition(t[:-1], t[1:])[1]
    torch.testing.assert_close(respaced, expected, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(DDPM(respaced).alphas_cumprod, alpha_bar.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_path_takes_times_of_any_shape_and_dtype(dtype):
    """Values in the times' dtype, computed in float64, and derivatives."""
    sde = DDPM(linear_betas(1000))
    t = sde.discrete_times().to(dtype)
    for f in (sde.log_alpha, sde.sigma, sde.dlog_alpha, sde.dsigma2, sde.g2, sde.beta):
        assert f(t.reshape(10, 100)).shape == (10, 100) and f(t).dtype == dtype and f(t[0]).shape == ()
    assert sde.step_index(t).tolist() == list(range(1000))
    exact = torch.log1p(-linear_betas(1000))
    torch.testing.assert_close(2 * sde.log_alpha(t).double(), exact.cumsum(0), rtol=2e-6, atol=0)
    inside = (uniform(200) * 1000).floor() / 1000 + 0.0004
    h = 1e-5
    for f, df in ((sde.log_alpha, sde.dlog_alpha), (lambda t: sde.sigma(t).square(), sde.dsigma2)):
        torch.testing.assert_close(
            (f(inside + h) - f(inside - h)) / (2 * h), df(inside), rtol=1e-4, atol=1e-8
        )


def test_discretize_is_the_chains_step():
    sde, x = DDPM(cosine_betas(20)), torch.ones(20, 3)
    f, G = sde.discretize(x, sde.discrete_times())
    torch.testing.assert_close(f + x, (1 - cosine_betas(20)).sqrt()[:, None].float().expand(-1, 3))
    torch.testing.assert_close(G, cosine_betas(20).sqrt().float())


def test_discrete_times_and_the_chain():
    assert DDPM([0.1, 0.2]).discrete_times().tolist() == [0.5, 1.0]
    assert chain_times(DDPM([0.1, 0.2])).tolist() == [1.0, 0.5, 0.0]
    for sde in (VPSDE(N=5), VESDE(N=5)):
        assert sde.discrete_times().tolist() == [0, 0.25, 0.5, 0.75, 1.0]
        assert chain_times(sde).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize(("betas", "atol"), [(linear_betas(1000), 2e-4), (linear_betas(100), 2e-3)])
def test_likelihood_of_an_exact_score(betas, atol):
    """DDPM serves as any other SDE: the probability-flow likelihood of a Gaussian, by an adaptive method."""
    sde, law = DDPM(betas), gaussian(2)
    x, p_T = law.sample(4), law.marginal(sde, sde.T)
    found = log_likelihood(sde, law.score(sde), x, divergence="exact", prior_logp=p_T.log_prob).log_prob
    torch.testing.assert_close(found, law.log_prob(x), atol=atol, rtol=0)


@pytest.mark.parametrize("betas", [linear_betas(100), cosine_betas(50), [0.1, 0.2]])
def test_between_the_times_of_the_chain_log_alpha_is_scipys_monotonic_interpolant(betas):
    sde, t = DDPM(betas), torch.linspace(0, 1, 977, dtype=torch.float64)
    steps = torch.log1p(-torch.as_tensor(betas, dtype=torch.float64))
    log_alpha_bar = np.concatenate([[0.0], steps.cumsum(0)])
    theirs = interpolate.PchipInterpolator(np.arange(len(steps) + 1) / len(steps), log_alpha_bar)
    np.testing.assert_allclose(2 * sde.log_alpha(t), theirs(t), rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(sde.beta(t), -theirs.derivative()(t), rtol=1e-8, atol=1e-9)


def test_whole_numbers_are_times():
    sde, x = DDPM(linear_betas(1000)), torch.ones(1, 1)
    for one, whole in zip(sde.sde(x, torch.tensor([1.0])), sde.sde(x, torch.tensor([1])), strict=True):
        torch.testing.assert_close(one, whole)
    torch.testing.assert_close(*(sde.marginal_prob(x, torch.tensor([t]))[0] for t in (1, 1.0)))


@pytest.mark.parametrize("betas", [[], [0.1, 1.0], [0.0, 0.1], [[0.1]]])
def test_bad_tables_are_refused(betas):
    with pytest.raises(ValueError, match=r"betas must be a table of shape \(N,\) with numbers in \(0, 1\)"):
        DDPM(betas)


def test_repr_is_short():
    assert repr(DDPM(linear_betas(1000))) == "DDPM(N=1000, betas=0.0001..0.02)"


# Posterior and reverse step.


@pytest.mark.parametrize("sde", [*SDES.values(), DDPM(cosine_betas(50))], ids=[*SDES, "ddpm"])
@pytest.mark.parametrize("shape", [(3,), (2, 2, 2)])
def test_posterior_is_bayes_rule(sde, shape):
    """The mean and covariance of x_s given x_t, from the joint Gaussian of (x_s, x_t) given x_0."""
    s, t = 0.1 + 0.4 * uniform(6), 0.6 + 0.4 * uniform(6)
    x_0, x_t = uniform(2, 6, *shape)
    mean, var = sde.posterior(x_t, x_0, s, t)
    assert var.shape == (6,) and var.dtype == torch.float64
    for i in range(6):
        a_s, a_t, v_s, v_t = sde.alpha(s[i]), sde.alpha(t[i]), sde.sigma(s[i]) ** 2, sde.sigma(t[i]) ** 2
        cross = a_t / a_s * v_s  # Cov(x_s, x_t): x_t = α_{t|s} x_s + noise
        expected = a_s * x_0[i] + cross / v_t * (x_t[i] - a_t * x_0[i])
        torch.testing.assert_close(mean[i], expected, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(var[i], v_s - cross**2 / v_t, rtol=1e-6, atol=1e-10)


def test_posterior_is_ddpms_and_ends_at_the_data():
    """Ho et al. (2020), eq. 7, on the chain; at s = 0 it is x_0."""
    betas = linear_betas(100)
    sde, k = DDPM(betas), torch.tensor([1, 30, 99])
    alpha_bar = (1 - betas).cumprod(0)
    previous = alpha_bar[k - 1]
    x_0, x_t = uniform(2, 3, 4)
    mean, var = sde.posterior(x_t, x_0, sde.discrete_times()[k - 1], sde.discrete_times()[k])
    c_0 = previous.sqrt() * betas[k] / (1 - alpha_bar[k])
    c_t = (1 - betas[k]).sqrt() * (1 - previous) / (1 - alpha_bar[k])
    torch.testing.assert_close(mean, c_0[:, None] * x_0 + c_t[:, None] * x_t, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(var, (1 - previous) / (1 - alpha_bar[k]) * betas[k], rtol=1e-8, atol=0)
    mean, var = sde.posterior(x_t, x_0, torch.zeros(3), sde.discrete_times()[k])
    torch.testing.assert_close(mean, x_0, rtol=1e-12, atol=1e-12)
    assert (var == 0).all()


class Doubling(nn.Module):
    """Twice the channels: x, and a constant that becomes v."""

    def __init__(self, v: float) -> None:
        super().__init__()
        self.v = v

    def forward(self, x, noise, cond=None):
        return torch.cat([x, torch.full_like(x, 2 * self.v - 1)], dim=1)


def test_learned_variance_interpolates():
    """v = 0 is the small variance, v = 1 the large one, v = ½ their geometric mean."""
    sde, x = DDPM(linear_betas(100)), uniform(2, 3, 4)
    s, t = (torch.full((2,), u).double() for u in (0.1, 0.3))
    score = ScoreModel(Doubling(0.5), sde, learned_variance=True)
    small, large = (reverse_transition(sde, score, x, s, t, v)[1] for v in ("small", "large"))
    assert (small < large).all()
    for v, expected in ((0.0, small), (1.0, large), (0.5, (small * large).sqrt())):
        score = ScoreModel(Doubling(v), sde, learned_variance=True)
        mean, var = reverse_transition(sde, score, x, s, t, "learned")
        torch.testing.assert_close(var, expected.expand(2, 3, 4), rtol=1e-9, atol=0)
        torch.testing.assert_close(mean, reverse_transition(sde, score, x, s, t)[0])


def test_clip_bounds_the_estimate_of_x_0():
    sde, x = DDPM(linear_betas(100)), 5 * uniform(2, 3)
    zero, t = torch.zeros(2), torch.full((2,), 0.3)
    mean, _ = reverse_transition(sde, lambda x, t: 0 * x, x, zero, t, clip=(-0.5, 0.5))
    torch.testing.assert_close(mean, torch.full_like(x, 0.5))  # the last step is x̂_0 itself


def test_a_score_without_learned_variance_is_refused():
    sde, x, t = DDPM(linear_betas(100)), torch.zeros(1, 2), torch.ones(1)
    with pytest.raises(ValueError, match="needs a score with the method score_and_fraction"):
        reverse_transition(sde, gaussian(2).score(sde), x, t / 2, t, "learned")
    with pytest.raises(ValueError, match="build it with learned_variance=True"):
        reverse_transition(sde, ScoreModel(lambda x, noise: x, sde), x, t / 2, t, "learned")
