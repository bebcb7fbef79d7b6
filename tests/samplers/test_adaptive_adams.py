"""Likelihoods by the adaptive Adams method against exact densities and dopri5."""

from __future__ import annotations

import pytest
import torch

from score_diffusion.samplers import AdaptiveAdams
from score_diffusion.samplers.adams_table import AdamsTable, step_weights
from score_diffusion.sde_lib import VPSDE, AdaptiveSolver, InputError, log_likelihood
from tests.problems import SDES, density_errors, gaussian, images, ring

every_sde = pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())


class Counted:
    """A solver that keeps the number of evaluations it took."""

    def __init__(self, solver):
        self.solver, self.nfe = solver, 0

    def __call__(self, sde, field, x, eps):
        solution = self.solver(sde, field, x, eps)
        self.nfe = field.nfe
        return solution


@pytest.mark.slow
@every_sde
@pytest.mark.parametrize("law", [ring(), ring(1.0, 0.05)], ids=["ring", "narrow"])
def test_less_error_in_fewer_evaluations_than_dopri5(law, sde):
    """On 32 samples, some of them between two modes, where a fixed grid is poor."""
    x = law.sample(32, seed=5)
    adams, dopri5 = Counted(AdaptiveAdams(1e-6, 1e-6)), Counted(AdaptiveSolver("dopri5", 1e-5, 1e-5))
    error, estimate = density_errors(law, sde, x, adams)
    assert error.max() < density_errors(law, sde, x, dopri5)[0].max()
    assert adams.nfe < dopri5.nfe
    assert error.max() < 10 * estimate.max()


@every_sde
def test_the_error_follows_the_tolerance(sde):
    law = gaussian(2)
    x = law.sample(8, seed=2)
    for tolerance, bound in ((1e-3, 2e-2), (1e-5, 1e-4), (1e-7, 1e-6)):
        assert density_errors(law, sde, x, AdaptiveAdams(tolerance, tolerance))[0].max() < bound


def test_the_weights_of_each_order_are_those_of_the_table():
    """Two samples with times of their own, through 1 to 4 values, the newest at the end of the step."""
    sde = VPSDE()
    times = torch.tensor([[0.02, 0.025, 0.035, 0.05], [0.5, 0.52, 0.6, 0.61]], dtype=torch.float64)
    lam = -sde.log_noise_level(times)
    found = step_weights(lam[:, 2], lam[:, 3], lam.flip(1), 0.7)
    for k, table in enumerate(AdamsTable(sde, own, "clock", 0.7) for own in times):
        for count in (1, 2, 3, 4):
            expected = table.weights(2, 3, range(3, 3 - count, -1))
            torch.testing.assert_close(found[k, count - 1, :count], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("solver", [AdaptiveAdams(1e-4, 1e-4), AdaptiveSolver("dopri5", 1e-4, 1e-4)])
def test_a_sample_takes_its_own_steps(solver):
    """Its likelihood is the same in a batch of others as in a batch of its own."""
    law, sde = ring(1.0, 0.05), VPSDE()
    x = torch.cat([law.sample(3, seed=5), 3 + law.sample(2, seed=6)])  # two of them in the tails
    score, options = law.score(sde), {"divergence": "exact", "solver": solver}
    together = log_likelihood(sde, score, x, **options)
    single = [log_likelihood(sde, score, one[None], **options) for one in x]
    assert len({each.nfe for each in single}) > 1
    for name in ("log_prob", "latent", "solver_error"):
        each = torch.cat([getattr(one, name) for one in single])
        torch.testing.assert_close(getattr(together, name), each, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert together.nfe == max(each.nfe for each in single)


def test_images_and_hutchinson():
    law, sde = images(), VPSDE()
    x, options = law.sample(4, seed=1), {"divergence": "hutchinson", "n_probes": 2}
    score = law.score(sde)
    tight = log_likelihood(sde, score, x, rtol=1e-8, atol=1e-8, **options)
    loose = log_likelihood(sde, score, x, solver=AdaptiveAdams(1e-5, 1e-5), **options)
    torch.testing.assert_close(loose.log_probs, tight.log_probs, rtol=0, atol=64 * 1e-4)
    torch.testing.assert_close(loose.latent, tight.latent, rtol=0, atol=1e-3)
    assert loose.nfe < 80


def solved(score, **options):
    return log_likelihood(VPSDE(), score, gaussian(2).sample(2), solver=AdaptiveAdams(**options))


@pytest.mark.parametrize(
    ("solve", "message"),
    [
        (lambda: AdaptiveAdams(rtol=0), "rtol and atol must be above 0, got 0 and 1e-05"),
        (lambda: AdaptiveAdams(order=0), "order must be at least 1, got 0"),
        (lambda: solved(lambda x, t: x * torch.nan), "not finite near t = 1.*e-05: check the score"),
        (lambda: solved(lambda x, t: -x * (1 + 1e15 * (t[0] > 0.5))), "no step that meets rtol=1e-05"),
    ],
)  # fmt: skip
def test_mistakes_are_explained(solve, message):
    with pytest.raises(InputError, match=message):
        solve()
