"""Ancestral sampling and DDIM: exact laws on Gaussian data, the limit N → ∞, encoding, the grid."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from benchmarks.ddpm_is_vpsde import law_error, orders, path_errors, table_error
from score_diffusion.samplers import (
    AncestralSampler,
    DDIMSampler,
    ODESampler,
    PCSampler,
    chain_grid,
    uniform_grid,
)
from score_diffusion.sde_lib import DDPM, VESDE, VPSDE, ScoreModel, cosine_betas, linear_betas
from tests.problems import exact_moments, gaussian, moments, ring, sampling_floor, sliced_wasserstein

SAMPLERS = {
    "ancestral-small": lambda sde, times: AncestralSampler(sde, times, variance="small"),
    "ancestral-large": lambda sde, times: AncestralSampler(sde, times, variance="large"),
    "ddim-0": lambda sde, times: DDIMSampler(sde, times),
    "ddim-0.5": lambda sde, times: DDIMSampler(sde, times, eta=0.5),
    "ddim-1": lambda sde, times: DDIMSampler(sde, times, eta=1.0),
    "pc-ancestral": lambda sde, times: PCSampler(
        sde, times, predictor="ancestral", corrector="none", denoise=False
    ),
}
CHAINS = {
    "linear": lambda N: DDPM(linear_betas(N)),
    "cosine": lambda N: DDPM(cosine_betas(N)),
    "vp": lambda N: VPSDE(N=N + 1),
}


def law_errors(make_sampler, law, steps=(50, 100, 200)):
    mean, cov = moments(law)
    errors = []
    for N in steps:
        found = exact_moments(make_sampler(N), law)
        errors.append(math.hypot((found[0] - mean).norm().item(), (found[1] - cov).norm().item()))
    return errors


@pytest.mark.slow
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_laws_converge_to_the_datas(name, chain):
    """On Gaussian data mean and covariance of the samples approach the data's at first order.

    The small variance loses a share 1/k of the k-th step's noise: log N/N in all, hence the wider margin.
    """
    law = gaussian(2)
    errors = law_errors(lambda N: SAMPLERS[name](CHAINS[chain](N), chain_grid(CHAINS[chain](N))), law)
    assert errors[-1] < 0.1, errors
    assert all(0.7 < order < 1.35 for order in orders(errors)), (errors, orders(errors))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ancestral-small", "ddim-0", "ddim-1"])
def test_respaced_laws_converge(name):
    """So they do on subsequences of one chain of 1,000 steps, for which its network was trained."""
    sde = DDPM(linear_betas(1000))
    errors = law_errors(lambda N: SAMPLERS[name](sde, chain_grid(sde, N)), gaussian(2), (50, 100, 200))
    assert errors[-1] < 0.1 and all(0.6 < order < 1.35 for order in orders(errors)), (errors, orders(errors))


def test_ve_chain_converges_to_its_own_end():
    """NCSN's chain ends at σ_min: the law there is the data's blurred by it."""
    law = gaussian(2)
    errors = []
    for N in (100, 200, 400):
        sde = VESDE(N=N)
        target = moments(law.marginal(sde, 0.0))
        found = exact_moments(AncestralSampler(sde), law)
        errors.append(sum((a - b).norm().item() for a, b in zip(found, target, strict=True)))
    assert errors[-1] < 0.1 and all(0.8 < order < 1.2 for order in orders(errors)), errors


# DDPM is the discretized VP SDE.


def test_ddpm_converges_to_the_vp_sde():
    """Tables, paths and laws of DDPM with VPSDE's betas approach the SDE's at first order (benchmarks/)."""
    Ns = (32, 64, 128)
    assert all(0.9 < order < 1.15 for order in orders([table_error(N) for N in Ns]))
    assert all(0.8 < order < 1.2 for order in orders(path_errors(Ns, refinement=8)))
    assert all(0.9 < order < 1.2 for order in orders([law_error(N, "large") for N in Ns]))


def test_a_network_of_one_samples_under_the_other():
    """At N = 1000 a score for DDPM's chain serves the VP SDE's samplers, and the other way round."""
    ddpm, vp, law, n = DDPM(linear_betas(1000)), VPSDE(N=1000), ring(), 300
    floor = sampling_floor(law, n)
    for sampler, score in (
        (ODESampler(vp), law.score(ddpm)),
        (PCSampler(vp, uniform_grid(vp, 300), corrector="none"), law.score(ddpm)),
        (AncestralSampler(ddpm, chain_grid(ddpm, 300)), law.score(vp)),
        (DDIMSampler(ddpm, chain_grid(ddpm, 100)), law.score(vp)),
    ):
        samples = sampler(score, (n, 2), seed=1).samples
        assert sliced_wasserstein(samples, law.sample(n, seed=77)) < 2 * floor, sampler


# Sampling.


class Net(nn.Module):
    """Predicts no noise, and v in (0, 1) that depends on x."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, x, noise, cond=None):
        return torch.cat([0 * x, (self.weight * x).tanh()], dim=1)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 4, 4)])
def test_every_variance_samples(variance, shape):
    sde = DDPM(cosine_betas(20))
    model = ScoreModel(Net(), sde, learned_variance=True)
    sampler = AncestralSampler(sde, variance=variance, clip=(-1, 1))
    result = sampler(model, shape, seed=0)
    assert result.samples.shape == shape and result.nfe == 20 and result.samples.abs().max() <= 1
    alone = sampler(model, (1, *shape[1:]), seed=0, first=2).samples
    torch.testing.assert_close(alone[0], result.samples[2])
    with torch.no_grad():  # the last step is x̂_0, without noise
        trajectory = sampler(model, shape, seed=0, trajectory=True).trajectory
        torch.testing.assert_close(
            trajectory[-1], model.denoise(trajectory[-2], torch.full((3,), 1 / 20)).clamp(-1, 1)
        )


@pytest.mark.slow
def test_mixtures_are_sampled_at_the_floor():
    law, n, sde = ring(), 400, DDPM(linear_betas(1000))
    for sampler in (
        AncestralSampler(sde, chain_grid(sde, 500)),
        AncestralSampler(sde, chain_grid(sde, 500), variance="large"),
        DDIMSampler(sde, chain_grid(sde, 200)),
        AncestralSampler(VESDE(), chain_grid(VESDE(), 500), denoise=True),
    ):
        samples = sampler(law.score(sampler.sde), (n, 2), seed=1).samples
        assert sliced_wasserstein(samples, law.sample(n, seed=77)) < 2 * sampling_floor(law, n), sampler


def test_ddim_at_one_is_ancestral_sampling():
    sde, law = DDPM(linear_betas(100)), ring(0.5, 0.05)
    grid = chain_grid(sde, 20)
    for clip in (None, (-0.3, 0.3)):
        pair = [
            s(law.score(sde), (8, 2), seed=2, dtype=torch.float64).samples
            for s in (
                AncestralSampler(sde, grid, clip=clip),
                DDIMSampler(sde, grid, eta=1.0, clip=clip),
            )
        ]
        torch.testing.assert_close(*pair, rtol=1e-7, atol=1e-8)


def test_ddim_encodes_data_to_noise():
    """encode, then sample: the data again at first order; the codes are those of the probability-flow ODE."""
    law, errors = gaussian(2), {"round trip": [], "code": []}
    x = law.sample(50)
    (m, cov) = moments(law)
    for N in (50, 100, 200):
        sde = DDPM(linear_betas(N))
        sampler, score = DDIMSampler(sde, chain_grid(sde)), law.score(sde)
        code = sampler.encode(score, x)
        assert code.dtype == torch.float64
        errors["round trip"].append((sampler(score, x.shape, x_T=code).samples - x).abs().max().item())
        end = torch.ones(1).double()
        a, v = sde.alpha(end), sde.sigma(end) ** 2
        values, vectors = torch.linalg.eigh(
            cov
        )  # the flow scales each principal axis by the ratio of its deviations
        scale = ((a**2 * values + v) / values).sqrt()
        exact = a * m + (x - m) @ vectors * scale @ vectors.mT
        errors["code"].append((code - exact).abs().max().item())
    assert errors["round trip"][-1] < 0.1
    for found in errors.values():
        assert all(0.8 < order < 1.3 for order in orders(found)), errors


def test_encode_starts_at_the_grids_end():
    """On a grid that ends above t = 0 the data are states at that time."""
    sde, law = VESDE(), gaussian(2)
    sampler = DDIMSampler(sde, uniform_grid(sde, 1000))
    x = law.marginal(sde, sampler.times[-1].item()).sample(10)
    back = sampler(law.score(sde), x.shape, x_T=sampler.encode(law.score(sde), x)).samples
    torch.testing.assert_close(back, x, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda sde: AncestralSampler(sde, variance="tiny"), "variance must be one of small, large, learned"),
        (lambda sde: AncestralSampler(sde, clip=(1, -1)), "two increasing bounds"),
        (lambda sde: DDIMSampler(sde, eta=1.5), r"eta must lie in \[0, 1\]"),
        (lambda sde: DDIMSampler(sde, eta=0.5).encode(None, torch.zeros(1, 1)), "encode inverts eta=0"),
        (
            lambda sde: AncestralSampler(sde, variance="learned")(lambda x, t: x, (1, 1)),
            "needs a score with the method score_and_fraction",
        ),
    ],
)
def test_mistakes_are_told(make, message):
    with pytest.raises(ValueError, match=message):
        make(DDPM(cosine_betas(5)))


# The grid.


def test_denoising_without_noise_left_is_nothing():
    """A grid that ends at σ = 0 leaves no noise: no evaluation at t = 0, where the score is infinite."""
    sde, law = DDPM(linear_betas(50)), gaussian(2)
    results = [AncestralSampler(sde, denoise=d)(law.score(sde), (4, 2)) for d in (True, False)]
    torch.testing.assert_close(results[0].samples, results[1].samples)
    assert results[0].nfe == 50
