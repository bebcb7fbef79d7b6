"""Likelihoods by the exponential Adams method against exact densities."""

from __future__ import annotations

import pytest
import torch

from score_diffusion.samplers import ExponentialAdams
from score_diffusion.samplers.adams_table import AdamsTable
from score_diffusion.sde_lib import VPSDE, InputError, log_likelihood
from tests.problems import SDES, density_errors, gaussian, images, observed_orders, ring

EPS = 1e-5
every_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())


@pytest.mark.slow
@every_sde
@pytest.mark.parametrize("law", [ring(), images()], ids=["ring", "images"])
def test_the_exact_density(law, sde):
    """In 96 steps within 1e-3 nats per dimension, and the estimate is of the true error's size or above."""
    error, estimate = density_errors(law, sde, law.sample(3, seed=1), ExponentialAdams(96))
    assert error.max() < 3e-4
    assert error.max() < 5 * estimate.max() < 1e-2


@pytest.mark.slow
@every_sde
def test_the_order_of_convergence(sde):
    """The corrector raises the order by one."""
    law = gaussian(2)
    x = law.sample(4, seed=2)
    for order in (1, 2, 3):
        found = [
            density_errors(law, sde, x, ExponentialAdams(n, order=order))[0].max().item()
            for n in (32, 64, 128)
        ]
        assert observed_orders(found)[-1] > order + 0.6


@every_sde
def test_hutchinson_is_unbiased(sde):
    law, n_probes = images(), 32
    x = law.sample(4, seed=2)
    options = {"n_probes": n_probes, "prior_logp": law.marginal(sde, sde.T).log_prob}
    result = log_likelihood(sde, law.score(sde), x, solver=ExponentialAdams(32), **options)
    exact = law.log_prob_t(sde)(x, torch.full((len(x),), EPS, dtype=torch.float64))
    assert ((result.log_prob - exact) / result.standard_error).abs().max() < 4


def test_a_sample_does_not_depend_on_its_batch():
    law, sde, solver = images(), VPSDE(), ExponentialAdams(16)
    x = law.sample(5, seed=4)
    whole = log_likelihood(sde, law.score(sde), x, n_probes=2, solver=solver)
    part = log_likelihood(sde, law.score(sde), x[3:], n_probes=2, solver=solver, first=3)
    torch.testing.assert_close(whole.log_prob[3:], part.log_prob, rtol=1e-12, atol=1e-9)
    assert whole.nfe == 17


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
@pytest.mark.parametrize("data_std", [0.0, 0.7])
def test_the_weights_of_a_constant_integrate_the_kernel(sde, data_std):
    """For constant v the change is that of arctan(σ̃/s)/s, or of -1/σ̃ for s = 0, in both directions."""
    for times in (torch.tensor([1.0, 0.5, 0.1]).double(), torch.tensor([0.1, 0.5, 1.0]).double()):
        table = AdamsTable(sde, times, "clock", data_std)
        level = table.at.noise_level
        primitive = (level / data_std).atan() / data_std if data_std else -1 / level
        exact = -primitive.diff()
        for nodes in ((0,), (0, 1), (2, 1, 0)):
            found = torch.stack([table.weights(i, i + 1, nodes).sum() for i in range(2)])
            torch.testing.assert_close(found, exact, rtol=1e-6, atol=0)


def solved(score, **options):
    return log_likelihood(VPSDE(), score, gaussian(2).sample(2), solver=ExponentialAdams(), **options)


@pytest.mark.parametrize(
    ("solve", "message"),
    [
        (lambda: ExponentialAdams(9), "an even number of at least 8, got 9"),
        (lambda: ExponentialAdams(order=0), "order must be at least 1, got 0"),
        (lambda: solved(lambda x, t: -x, eps=0.0), "eps"),
        (lambda: solved(lambda x, t: x * torch.nan), "not finite"),
    ],
)
def test_mistakes_are_explained(solve, message):
    with pytest.raises(InputError, match=message):
        solve()
