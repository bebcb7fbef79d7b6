"""SDEs against closed forms, automatic differentiation, simulation, and score_sde_pytorch's documented
values.
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from score_diffusion.sde_lib import SDE, VESDE, VPSDE, SubVPSDE, expand, subVPSDE
from tests.problems import ALL_SDES, SDES, gaussian

every_sde = pytest.mark.parametrize("sde", ALL_SDES.values(), ids=ALL_SDES.keys())
T = torch.tensor([1e-3, 0.5, 1.0])


@pytest.mark.parametrize(
    ("sde", "mean", "std", "diffusion"),
    [
        (
            VPSDE(),
            [0.999945, 0.281183, 0.00657159],
            [0.0104867, 0.959654, 0.999978],
            [0.346266, 3.17017, 4.47214],
        ),
        (
            SubVPSDE(),
            [0.999945, 0.281183, 0.00657159],
            [1.09971e-4, 0.920936, 0.999957],
            [0.00513457, 3.16025, 4.47214],
        ),
        (VESDE(), [1.0, 1.0, 1.0], [0.0100855, 0.707107, 50.0], [0.0416258, 2.91842, 206.364]),
    ],
    ids=SDES.keys(),
)
def test_score_sde_pytorch_values(sde, mean, std, diffusion):
    """Values that the reference implementation prints at t = 1e-3, 0.5, 1 for its default arguments."""
    x = torch.ones(3, 1)
    m, s = sde.marginal_prob(x, T)
    torch.testing.assert_close(m[:, 0], torch.tensor(mean), rtol=2e-6, atol=2e-6)
    # its float32 std is 1e-4 off at t = 1e-3; test_small_times holds ours to the exact value
    torch.testing.assert_close(s, torch.tensor(std), rtol=3e-4, atol=0)
    torch.testing.assert_close(sde.sde(x, T)[1], torch.tensor(diffusion), rtol=3e-5, atol=0)


def test_score_sde_pytorch_discrete_values():
    x = torch.ones(4, 3)
    f, G = VESDE().discretize(x, torch.tensor([1e-5, 1e-3, 0.5, 1.0]))
    torch.testing.assert_close(G, torch.tensor([0.01, 0.01, 0.0915516, 6.5013]), rtol=1e-5, atol=0)
    assert torch.equal(f, torch.zeros_like(x))
    zero = torch.zeros(2, 12)
    torch.testing.assert_close(VPSDE().prior_logp(zero), torch.full((2,), -11.0272627))
    torch.testing.assert_close(VESDE().prior_logp(zero), torch.full((2,), -57.9715385))


@pytest.mark.parametrize(
    ("sde", "exact"),
    [
        (VPSDE(), lambda log_a2: math.sqrt(-math.expm1(log_a2))),
        (SubVPSDE(), lambda log_a2: -math.expm1(log_a2)),
    ],
    ids=["vp", "sub-vp"],
)
@pytest.mark.parametrize("t", [1e-5, 1e-4, 1e-2])
def test_small_times_in_float32(sde, exact, t):
    """std at small times is right to 1e-5 in float32, where 1 - exp(.) would have lost 0.6 % at t = 1e-5."""
    time = torch.tensor(t).item()  # as float32 holds it
    expected = exact(-(time**2) * 19.9 / 2 - time * 0.1)
    _, std = sde.marginal_prob(torch.zeros(1, 1), torch.tensor([t]))
    assert std.item() == pytest.approx(expected, rel=1e-5)


@every_sde
def test_derivatives(sde):
    """dlog_alpha and dsigma2 are the derivatives of log_alpha and sigma², by automatic differentiation."""
    t = (sde.T * torch.linspace(0.01, 1, 50, dtype=torch.float64)).requires_grad_()
    (dlog_alpha,) = torch.autograd.grad(sde.log_alpha(t).sum() + 0 * t.sum(), t)
    (dsigma2,) = torch.autograd.grad(sde.sigma(t).square().sum(), t)
    torch.testing.assert_close(sde.dlog_alpha(t), dlog_alpha)
    torch.testing.assert_close(sde.dsigma2(t), dsigma2)


def test_diffusion_closed_forms():
    """g² derived from the path equals the papers' formulas: β, β (1 - exp(-2∫β)), σ² 2 log(σ_max/σ_min)."""
    t = torch.linspace(1e-5, 1, 101, dtype=torch.float64)
    beta = 0.1 + 19.9 * t
    torch.testing.assert_close(VPSDE().g2(t), beta)
    discount = -torch.expm1(-2 * 0.1 * t - 19.9 * t**2)
    torch.testing.assert_close(SubVPSDE().g2(t), beta * discount)
    sigma = 0.01 * 5000**t
    torch.testing.assert_close(VESDE().g2(t), sigma**2 * 2 * math.log(5000))


@every_sde
def test_simulated_marginals(sde: SDE):
    """Euler-Maruyama paths of the forward SDE have the law of marginal_prob (Kolmogorov-Smirnov)."""
    n, steps, end = 4000, 2000, 0.7
    generator = torch.Generator().manual_seed(0)
    # VE starts at σ(0) = σ_min
    x = 1.5 + sde.sigma(torch.zeros(())).item() * torch.randn(n, 1, generator=generator)
    dt = end / steps
    for i in range(steps):
        drift, diffusion = sde.sde(x, torch.full((n,), (i + 0.5) * dt))
        x = x + drift * dt + diffusion[:, None] * math.sqrt(dt) * torch.randn(n, 1, generator=generator)
    mean, std = sde.marginal_prob(torch.full((1, 1), 1.5), torch.tensor([end]))
    assert stats.kstest(x[:, 0].numpy(), "norm", args=(mean.item(), std.item())).pvalue > 1e-3


@every_sde
def test_transition_composes(sde):
    """p(x_t | x_s) after p(x_s | x_r) is p(x_t | x_r), and from r = 0 it gives the marginal."""
    r, s, t = (torch.tensor(v) for v in (0.0, 0.3, 0.8))
    a_sr, v_sr = sde.transition(r, s)
    a_ts, v_ts = sde.transition(s, t)
    a_tr, v_tr = sde.transition(r, t)
    torch.testing.assert_close(a_ts * a_sr, a_tr)
    torch.testing.assert_close(a_ts**2 * v_sr + v_ts, v_tr)
    sigma_0 = sde.sigma(torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(a_tr**2 * sigma_0**2 + v_tr, sde.sigma(t.double()) ** 2)


@every_sde
def test_time_at_log_snr_inverts(sde):
    t = sde.T * torch.linspace(1e-5, 1, 64, dtype=torch.float64)
    torch.testing.assert_close(sde.time_at_log_snr(sde.log_snr(t)), t, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("stochasticity", [0.0, 0.5, 1.0, 1.7])
@every_sde
def test_reverse_keeps_the_marginals(sde, stochasticity):
    """The reverse SDE at any stochasticity carries the Gaussian marginal's moments backwards.

    For dx = b(x) dt + G dw̄ with b affine, run backwards, dm/dt = b(m) and dv/dt = 2 b'(x) v - G²; both must
    be the derivatives of the forward marginal's mean and variance.
    """
    law = gaussian(1)
    reverse = sde.reverse(law.score(sde), stochasticity=stochasticity)
    t = torch.tensor([0.6], dtype=torch.float64)
    mean_0, var_0 = law._means.item(), law._variances.item()
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    drift, diffusion = reverse.sde(x, t.expand(2))
    offset, slope = drift[0].item(), (drift[1] - drift[0]).item()
    alpha, var = sde.alpha(t).item(), (sde.alpha(t) ** 2 * var_0 + sde.sigma(t) ** 2).item()
    dmean = sde.dlog_alpha(t).item() * alpha * mean_0
    dvar = (2 * sde.dlog_alpha(t) * sde.alpha(t) ** 2 * var_0 + sde.dsigma2(t)).item()
    assert slope * alpha * mean_0 + offset == pytest.approx(dmean, rel=1e-9, abs=1e-9)
    assert 2 * slope * var - diffusion[0].item() ** 2 == pytest.approx(dvar, rel=1e-9)


@every_sde
def test_probability_flow_is_stochasticity_zero(sde):
    reverse = sde.reverse(gaussian().score(sde), probability_flow=True)
    x, t = torch.randn(3, 2), sde.T * torch.tensor([0.2, 0.5, 1.0])
    assert (reverse.N, reverse.T, reverse.probability_flow) == (sde.N, sde.T, True)
    score = gaussian().score(sde)(x, t)
    for forward, backward in ((sde.sde, reverse.sde), (sde.discretize, reverse.discretize)):
        f, g = forward(x, t)
        f_rev, g_rev = backward(x, t)
        torch.testing.assert_close(f_rev, f - 0.5 * g[:, None] ** 2 * score)
        assert torch.equal(g_rev, torch.zeros(3))


@every_sde
@pytest.mark.parametrize("shape", [(1,), (2,), (3, 5), (1, 8, 8), (2, 3, 4, 5)])
def test_any_data_rank(sde, shape):
    """Each sample of a batch of any rank gets its own time's coefficients."""
    x, t = torch.randn(4, *shape), sde.T * torch.tensor([0.1, 0.4, 0.7, 1.0])
    drift, diffusion = sde.sde(x, t)
    mean, std = sde.marginal_prob(x, t)
    f, G = sde.discretize(x, t)
    assert diffusion.shape == std.shape == G.shape == sde.prior_logp(x).shape == (4,)
    for k in range(4):
        one_x, one_t = x[k : k + 1], t[k : k + 1]
        torch.testing.assert_close(drift[k : k + 1], sde.sde(one_x, one_t)[0])
        torch.testing.assert_close(mean[k : k + 1], sde.marginal_prob(one_x, one_t)[0])
        torch.testing.assert_close(f[k : k + 1], sde.discretize(one_x, one_t)[0])
    assert sde.prior_sampling((4, *shape)).shape == x.shape


@every_sde
def test_prior_logp_is_the_density_of_prior_sampling(sde):
    z = torch.randn(5, 3, 2, dtype=torch.float64)
    expected = stats.norm(scale=sde.prior_std).logpdf(z.numpy()).sum((1, 2))
    torch.testing.assert_close(sde.prior_logp(z), torch.from_numpy(expected))
    torch.manual_seed(0)
    samples = sde.prior_sampling((2000, 3)).flatten()
    assert stats.kstest(samples.numpy(), "norm", args=(0, sde.prior_std)).pvalue > 1e-3


def test_vp_tables_are_ddpms():
    """β_k from 1e-4 to 0.02 at N = 1000, and the tables that follow from it."""
    sde = VPSDE()
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(sde.discrete_betas, betas.float())
    torch.testing.assert_close(sde.alphas, (1 - betas).float())
    torch.testing.assert_close(sde.alphas_cumprod, (1 - betas).cumprod(0).float())
    torch.testing.assert_close(sde.sqrt_alphas_cumprod**2 + sde.sqrt_1m_alphas_cumprod**2, torch.ones(1000))
    f, G = sde.discretize(torch.ones(1000, 1), torch.arange(1000) / 999)
    torch.testing.assert_close(1 + f[:, 0], (1 - betas).sqrt().float())
    torch.testing.assert_close(G, betas.sqrt().float())


def test_grid_times_find_their_index():
    """Every float32 time k/(N - 1) belongs to index k, which flooring alone misses for some."""
    for N in (10, 1000, 2000, 4000):
        k = torch.arange(N)
        assert torch.equal(VESDE(N=N).step_index(k / (N - 1)), k)


def test_few_steps():
    """A chain with β_k >= 1 is refused where it would give NaN; the SDE itself stays usable at any N."""
    sde = VPSDE(N=10)
    assert sde.sde(torch.ones(1, 2), torch.ones(1))[0].isfinite().all()
    with pytest.raises(ValueError, match="must stay below 1"):
        sde.discretize(torch.ones(1, 2), torch.ones(1))


def test_base_discretization_has_the_grids_step():
    sde = SubVPSDE(N=50)
    x, t = torch.randn(2, 3), torch.tensor([0.3, 0.9])
    drift, diffusion = sde.sde(x, t)
    f, G = sde.discretize(x, t)
    torch.testing.assert_close(f, drift * sde.T / 50)
    torch.testing.assert_close(G, diffusion * math.sqrt(sde.T / 50))
    assert subVPSDE is SubVPSDE


@pytest.mark.parametrize("t", [torch.zeros(3, 1), torch.zeros(()), torch.zeros(2), torch.zeros(3, 1, 1, 1)])
def test_wrong_shape_of_t(t):
    with pytest.raises(ValueError, match=r"t must have shape \(B,\) = \(3,\)"):
        VPSDE().marginal_prob(torch.zeros(3, 1, 8, 8), t)


def test_expand_refuses_integers():
    with pytest.raises(ValueError, match="floating-point"):
        expand(torch.zeros(3), torch.zeros(3, 2, dtype=torch.long))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VPSDE(beta_min=-1), "beta_min"),
        (lambda: VPSDE(beta_min=2, beta_max=1), "beta_min <= beta_max"),
        (lambda: VESDE(sigma_min=0), "sigma_min"),
        (lambda: VESDE(sigma_min=2, sigma_max=1), "sigma_min < sigma_max"),
        (lambda: VPSDE(N=0), "positive integer"),
        (lambda: VPSDE().reverse(lambda x, t: x, stochasticity=-1), "stochasticity"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
