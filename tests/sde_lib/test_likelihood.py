"""The probability-flow likelihood against exact log densities."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from score_diffusion.sde_lib import VESDE, VPSDE, dequantize, log_likelihood, quantize
from tests.problems import SDES, gaussian, images, ring

every_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
EPS = 1e-5


def exact(law, sde, x):
    return law.log_prob_t(sde)(x, torch.full((len(x),), EPS, dtype=torch.float64))


@pytest.mark.slow
@every_sde
@pytest.mark.parametrize("law", [ring(), images(), gaussian(3)], ids=["ring", "images", "gaussian"])
def test_exact_trace_gives_the_exact_density(law, sde):
    """Within 1e-4 nats per dimension at the default tolerance, once p_T is the law's own instead of the prior
    that stands for it.
    """
    x = law.sample(4, seed=1)
    p_T = law.marginal(sde, sde.T)
    result = log_likelihood(sde, law.score(sde), x, divergence="exact", prior_logp=p_T.log_prob)
    error = result.log_prob - exact(law, sde, x)
    assert (error.abs() / x[0].numel()).max() < 1e-4
    assert (result.standard_error == 0).all()


@every_sde
def test_the_prior_costs_little(sde):
    """As used, with the prior N(0, prior_std² I): within 1e-3 nats per dimension for data of zero mean and
    moderate variance.
    """
    law = ring(radius=2.0)
    x = law.sample(16, seed=1)
    result = log_likelihood(sde, law.score(sde), x, divergence="exact")
    assert ((result.log_prob - exact(law, sde, x)).abs() / 2).max() < 1e-3


@pytest.mark.slow
@every_sde
@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_with_an_honest_error(sde, probe):
    """z-scores over samples and seeds: none beyond what 3 standard errors (Student's t) allow, mean square
    near that of t.
    """
    law, n_probes = images(), 16
    x = law.sample(16, seed=2)
    result = log_likelihood(sde, law.score(sde), x, probe=probe, n_probes=n_probes, rtol=1e-4, atol=1e-4)
    z = ((result.log_prob - exact(law, sde, x)) / result.standard_error).numpy()
    # Student's t with 15 degrees of freedom replaces 3 standard errors of a normal by 3.6
    assert abs(z).max() < stats.t(n_probes - 1).isf(stats.norm.sf(3.0))
    assert 0.3 < (z**2).mean() < 2.5


@every_sde
def test_latent_follows_the_gaussian_flow(sde):
    """For Gaussian data the flow is the map that carries the quantiles of p_eps to those of p_T."""
    law = gaussian(1)
    x = law.sample(5, seed=3)
    result = log_likelihood(sde, law.score(sde), x, divergence="exact", rtol=1e-8, atol=1e-8)
    m, v = law._means.item(), law._variances.item()
    ends = torch.tensor([EPS, 1.0], dtype=torch.float64)
    alpha, std = sde.alpha(ends), (sde.alpha(ends) ** 2 * v + sde.sigma(ends) ** 2).sqrt()
    torch.testing.assert_close(
        result.latent, alpha[1] * m + std[1] / std[0] * (x - alpha[0] * m), rtol=1e-5, atol=1e-6
    )


def test_bits_per_dim_and_bins():
    """bits/dim is the negative log-likelihood in bits over D; bins of width w take log2(w) off."""
    law, sde = gaussian(2), VPSDE()
    x = law.sample(3).float()
    density = log_likelihood(sde, law.score(sde), x, divergence="exact")
    binned = log_likelihood(sde, law.score(sde), x, divergence="exact", bin_width=2 / 255)
    torch.testing.assert_close(density.bits_per_dim, -density.log_prob / (2 * math.log(2)))
    torch.testing.assert_close(
        binned.bits_per_dim - density.bits_per_dim, torch.full((3,), -math.log2(2 / 255)).double()
    )
    assert density.latent.dtype == x.dtype and density.log_prob.dtype == torch.float64


def test_dequantized_bits_bound_the_discrete_code_length():
    """For grey levels drawn uniformly, no density spends fewer than log2(levels) bits on average (Theis et
    al., 2016).
    """
    law, sde, n_levels = gaussian(1), VPSDE(), 8
    levels = torch.arange(n_levels).repeat(16)[:, None]
    u = torch.rand(levels.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = dequantize(levels, n_levels, u)
    bits = log_likelihood(
        sde, law.score(sde), x, divergence="exact", bin_width=2 / (n_levels - 1)
    ).bits_per_dim
    assert bits.mean() > math.log2(n_levels)


def test_quantize_inverts_dequantize():
    levels = torch.arange(17).repeat(50)
    u = torch.rand(levels.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(quantize(dequantize(levels, 17, u), 17), levels)
    torch.testing.assert_close(
        dequantize(levels, 17, torch.full_like(u, 0.5)), levels / 8.0 - 1, check_dtype=False
    )
    assert quantize(torch.tensor([-3.0, 3.0]), 17).tolist() == [0, 16]


@pytest.mark.slow
def test_probes_belong_to_their_sample():
    """A sample's probes depend on (seed, index) alone, so that a run may be cut into batches."""
    law, sde = images(), VPSDE()
    x = law.sample(6, seed=4)
    whole = log_likelihood(sde, law.score(sde), x, n_probes=2)
    part = log_likelihood(sde, law.score(sde), x[4:], n_probes=2, first=4)
    torch.testing.assert_close(whole.log_prob[4:], part.log_prob, rtol=1e-9, atol=1e-9)
    other = log_likelihood(sde, law.score(sde), x[4:], n_probes=2, first=0)
    assert (other.log_prob - part.log_prob).abs().min() > 1e-3


def test_nfe_counts_the_score():
    calls = 0
    law, sde = gaussian(2), VESDE()
    score = law.score(sde)

    def counted(x, t):
        nonlocal calls
        calls += 1
        return score(x, t)

    assert log_likelihood(sde, counted, law.sample(2), n_probes=3).nfe == calls


def test_one_probe_has_no_standard_error():
    law = gaussian(2)
    assert log_likelihood(VPSDE(), law.score(VPSDE()), law.sample(2), n_probes=1).standard_error.isnan().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "trace"}, "divergence must be one of"),
        ({"probe": "uniform"}, "probe must be one of"),
        ({"n_probes": 0}, "n_probes"),
        ({"x": torch.full((2, 2), torch.nan)}, "finite"),
        ({"x": torch.zeros(2, 2, dtype=torch.long)}, "floating-point"),
        ({"score": lambda x, t: -x.detach()}, "differentiable"),
        ({"score": lambda x, t: x * torch.nan}, "found no step"),
        ({"method": "rk4"}, "method must be one of adaptive_heun, bosh3, dopri5"),
        ({"rtol": 0.0}, "above 0"),
    ],
)
def test_errors(options, message):
    arguments = {"x": torch.zeros(2, 2), "score": gaussian(2).score(VPSDE()), **options}
    with pytest.raises(ValueError, match=message):
        log_likelihood(VPSDE(), **arguments)


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_a_score_computes_in_the_dtype_of_the_data(divergence):
    """A user's float32 network as it is: x and t are float32, while the ODE is solved in float64."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))

    def score(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert x.dtype == t.dtype == next(net.parameters()).dtype
        return net(torch.cat([x, t[:, None]], 1))

    x, sde = gaussian(2).sample(3), VPSDE()
    single = log_likelihood(sde, score, x.float(), divergence=divergence)
    net.double()
    double = log_likelihood(sde, score, x, divergence=divergence)
    assert single.log_prob.dtype == torch.float64 and single.latent.dtype == torch.float32
    torch.testing.assert_close(single.log_prob, double.log_prob, rtol=1e-4, atol=1e-4)
