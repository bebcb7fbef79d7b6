"""What follows from a path, for every SDE, against automatic differentiation and simulation; code written for
score_sde_pytorch.
"""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from scipy import stats

from score_diffusion.samplers import DDIMSampler, log_snr_grid
from score_diffusion.sde_lib import SDE, VESDE, VPSDE, InputError, ReverseSDE, expand, subVPSDE
from tests.problems import ALL_SDES, gaussian

every_sde = pytest.mark.parametrize("sde", ALL_SDES.values(), ids=ALL_SDES.keys())


@every_sde
def test_derivatives(sde):
    """dlog_alpha and dsigma2 are the derivatives of log_alpha and sigma², by automatic differentiation."""
    t = (sde.T * torch.linspace(0.01, 1, 50, dtype=torch.float64)).requires_grad_()
    (dlog_alpha,) = torch.autograd.grad(sde.log_alpha(t).sum() + 0 * t.sum(), t)
    (dsigma2,) = torch.autograd.grad(sde.sigma(t).square().sum(), t)
    torch.testing.assert_close(sde.dlog_alpha(t), dlog_alpha)
    torch.testing.assert_close(sde.dsigma2(t), dsigma2)


@pytest.mark.slow
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
def test_time_at_log_noise_level_inverts(sde):
    t = sde.T * torch.linspace(1e-5, 1, 64, dtype=torch.float64)
    torch.testing.assert_close(sde.time_at_log_noise_level(sde.log_noise_level(t)), t, rtol=1e-9, atol=1e-12)


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


@pytest.mark.parametrize("t", [torch.zeros(3, 1), torch.zeros(2), torch.zeros(1, 1), torch.zeros(3, 1, 1, 1)])
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
        (lambda: VPSDE(N=1e3), "positive integer .*, got 1000.0"),
        (lambda: VPSDE(N=True), "positive integer"),
        (lambda: VPSDE().reverse(gaussian()).reverse(gaussian()), "runs backwards already"),
        (lambda: VPSDE().prior_logp(torch.zeros(2, 2, dtype=torch.complex64)), "view_as_real"),
        (lambda: VPSDE().reverse(lambda x, t: x, stochasticity=-1), "stochasticity"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()


# Code written for score_sde_pytorch.


class OldStyleVP(SDE):
    """An SDE as one writes it for score_sde_pytorch."""

    def __init__(self, beta_min=0.1, beta_max=20, N=1000):
        super().__init__(N)
        self.beta_0, self.beta_1 = beta_min, beta_max

    @property
    def T(self):
        return 1

    def sde(self, x, t):
        beta_t = self.beta_0 + t * (self.beta_1 - self.beta_0)
        return -0.5 * beta_t[:, None, None, None] * x, torch.sqrt(beta_t)

    def marginal_prob(self, x, t):
        log_mean_coeff = -0.25 * t**2 * (self.beta_1 - self.beta_0) - 0.5 * t * self.beta_0
        mean = torch.exp(log_mean_coeff[:, None, None, None]) * x
        return mean, torch.sqrt(1.0 - torch.exp(2.0 * log_mean_coeff))

    def prior_sampling(self, shape):
        return torch.randn(*shape)

    def prior_logp(self, z):
        N = math.prod(z.shape[1:])
        return -N / 2.0 * math.log(2 * math.pi) - torch.sum(z**2, dim=(1, 2, 3)) / 2.0


class OldStyleVE(OldStyleVP):
    """One for points, with another prior; its path is not that of the class it extends."""

    def sde(self, x, t):
        return torch.zeros_like(x), 50 * (2 * t).sqrt()

    def marginal_prob(self, x, t):
        return x + 0 * t[:, None], 50 * t

    def prior_logp(self, z):
        N = math.prod(z.shape[1:])
        return -N / 2.0 * math.log(2 * math.pi * 50**2) - (z**2).flatten(1).sum(1) / (2 * 50**2)


class OldStyleVPByInheritance(VPSDE):
    sde, marginal_prob = OldStyleVE.sde, OldStyleVE.marginal_prob


def test_a_subclass_in_the_ancestors_vocabulary_reverses_and_discretizes():
    """The formulas of its ReverseSDE, by hand."""
    sde, x, t = OldStyleVP(N=50), torch.randn(4, 3, 2, 2), torch.tensor([0.1, 0.4, 0.7, 1.0])
    drift, g = sde.sde(x, t)
    f, G = sde.discretize(x, t)
    torch.testing.assert_close(f, drift / 50)
    torch.testing.assert_close(G, g * math.sqrt(1 / 50))
    for probability_flow in (False, True):
        rsde = sde.reverse(lambda x, t: -x, probability_flow)
        factor = 0.5 if probability_flow else 1.0
        backward, diffusion = rsde.sde(x, t)
        torch.testing.assert_close(backward, drift + factor * g[:, None, None, None] ** 2 * x)
        torch.testing.assert_close(diffusion, 0 * g if probability_flow else g)
        f_rev, G_rev = rsde.discretize(x, t)
        torch.testing.assert_close(f_rev, f + factor * G[:, None, None, None] ** 2 * x)
        torch.testing.assert_close(G_rev, 0 * G if probability_flow else G)
        for name in ("log_alpha", "sigma", "dlog_alpha", "dsigma2", "g2"):  # the path stays the forward one
            torch.testing.assert_close(getattr(rsde, name)(t), getattr(VPSDE(), name)(t))


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_the_path_of_such_a_subclass_is_read_off_its_methods(shape):
    t = torch.rand(shape, dtype=torch.float64) + 0.01
    for name in ("log_alpha", "sigma", "dlog_alpha", "dsigma2", "g2", "log_snr"):
        ours, theirs = (getattr(sde, name)(t) for sde in (VPSDE(), OldStyleVP()))
        assert theirs.shape == shape
        torch.testing.assert_close(theirs, ours, rtol=1e-9, atol=1e-12)
    for sde in (OldStyleVE(), OldStyleVPByInheritance()):
        torch.testing.assert_close(sde.sigma(t), 50 * t)
        torch.testing.assert_close(sde.dsigma2(t), 5000 * t)
        assert (sde.log_alpha(t) == 0).all() and sde.alpha(t).shape == shape
    assert OldStyleVP().prior_std == pytest.approx(1) and OldStyleVE().prior_std == pytest.approx(50)


def test_samplers_take_such_a_subclass():
    law, times = gaussian(), log_snr_grid(VPSDE(), 8)
    samples = [DDIMSampler(sde, times)(law.score(sde), (4, 2)).samples for sde in (VPSDE(), OldStyleVP())]
    torch.testing.assert_close(*samples, rtol=1e-4, atol=1e-4)


def test_a_subclass_must_define_its_sde():
    class Nothing(SDE):
        def marginal_prob(self, x, t):
            return x, t

    for make in (lambda: SDE(10), Nothing):
        with pytest.raises(TypeError, match="must define log_alpha, .*, or sde and marginal_prob"):
            make()


@pytest.mark.parametrize("sde", [*ALL_SDES.values(), OldStyleVP()], ids=[*ALL_SDES, "old-style"])
def test_the_reverse_is_an_sde_of_the_same_class_with_its_prior(sde):
    reverse = sde.reverse(lambda x, t: -x)
    assert isinstance(reverse, (SDE, ReverseSDE)) and isinstance(reverse, type(sde))
    assert type(reverse) is type(sde.reverse(gaussian().score(sde)))  # no class for each call
    z, t = torch.randn(3, 1, 2, 2), torch.full((3,), 0.5)
    torch.testing.assert_close(reverse.prior_logp(z), sde.prior_logp(z))
    torch.manual_seed(0)
    drawn = reverse.prior_sampling((3, 1, 2, 2))
    torch.manual_seed(0)
    assert torch.equal(drawn, sde.prior_sampling((3, 1, 2, 2)))
    for ours, theirs in zip(reverse.marginal_prob(z, t), sde.marginal_prob(z, t), strict=True):
        assert torch.equal(ours, theirs)
    assert (reverse.N, reverse.T) == (sde.N, sde.T)


def test_a_reverse_sde_can_be_copied():
    reverse = VPSDE(N=7).reverse(torch.neg, stochasticity=0.5)
    copy = pickle.loads(pickle.dumps(reverse))
    assert (copy.N, copy.stochasticity, copy.beta_1) == (7, 0.5, 20) and isinstance(copy, VPSDE)
    assert repr(copy) == "ReverseSDE(VPSDE(N=7, beta_0=0.1, beta_1=20.0), stochasticity=0.5)"


@every_sde
def test_one_time_for_all_samples(sde):
    """As a number, of shape () or (1,): the values of (B,), in the shape of t."""
    x, one = torch.randn(3, 2), 0.4 * sde.T
    every = torch.full((3,), one, dtype=torch.float64)
    reverse = sde.reverse(gaussian().score(sde))
    for t, shape in ((one, ()), (every[0], ()), (every[:1], (1,)), (np.float64(one), ())):
        for method in (sde.sde, sde.marginal_prob, sde.discretize, reverse.sde, reverse.discretize):
            value, scale = method(x, t)
            expected, scales = method(x, every)
            assert scale.shape == shape and scale.dtype == torch.float32
            torch.testing.assert_close(value, expected)
            torch.testing.assert_close(scale.expand(3), scales)


@every_sde
def test_the_standard_deviation_without_data(sde):
    mean, std = sde.marginal_prob(None, torch.tensor([0.1, 0.5]))
    assert mean is None
    torch.testing.assert_close(std, sde.marginal_prob(torch.zeros(2, 3), torch.tensor([0.1, 0.5]))[1])


@every_sde
def test_complex_data_is_its_real_and_its_imaginary_part(sde):
    x, t = torch.randn(3, 1, 4, 4, dtype=torch.complex64), sde.T * torch.tensor([0.2, 0.5, 0.9])
    reverse = sde.reverse(lambda x, t: -x)
    for method in (sde.sde, sde.marginal_prob, sde.discretize, reverse.sde, reverse.discretize):
        value, scale = method(x, t)
        assert value.dtype == torch.complex64 and scale.dtype == torch.float32
        torch.testing.assert_close(value.real, method(x.real, t)[0])
        torch.testing.assert_close(value.imag, method(x.imag, t)[0])


@pytest.mark.parametrize("number", [np.int64(50), np.uint8(50), torch.tensor(50)])
def test_number_of_steps_of_any_integer_type(number):
    sde = VPSDE(N=number)
    assert sde.N == 50 and type(sde.N) is int and len(sde.alphas) == 50


def test_guards_by_class():
    """What code for score_sde_pytorch asks before ancestral sampling and discrete training."""
    assert not isinstance(subVPSDE(), VPSDE) and not isinstance(VPSDE(), subVPSDE)
    assert isinstance(subVPSDE(), SDE) and subVPSDE().__class__.__name__ == "subVPSDE"
    assert not isinstance(VESDE(), VPSDE)
