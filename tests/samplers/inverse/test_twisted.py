"""The twisted diffusion sampler: exact weights, resampling, sets of particles, convergence to the
posterior.
"""

from __future__ import annotations

import pytest
import torch

from score_diffusion.samplers import clock_grid, uniform_grid
from score_diffusion.samplers.inverse import (
    Mask,
    MatrixOperator,
    PhaseRetrieval,
    RandomProjection,
    TwistedSampler,
)
from score_diffusion.samplers.inverse.twisted import effective_sample_size, systematic
from score_diffusion.sde_lib import DDPM, VPSDE, Gaussian, linear_betas
from tests.problems import SDES, moments, ring, sampling_floor, sliced_wasserstein

DOUBLE = {"dtype": torch.float64}


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
@pytest.mark.parametrize("sigma_y", [0.0, 0.3])
def test_weights_are_equal_for_isotropic_gaussians(sde, sigma_y):
    """For data from N(m, s² I) the proposal is p(x_s | x_t, y): no step adds spread to the weights, and ten
    steps sample the posterior.
    """
    law = Gaussian(torch.linspace(-1, 1, 4), torch.tensor(0.49, **DOUBLE))
    operator = RandomProjection((4,), 2)
    y = operator.measure(law.sample(1, 3), sigma_y)[0]
    sampler = TwistedSampler(
        sde,
        clock_grid(sde, 10),
        operator=operator,
        y=y,
        sigma_y=sigma_y,
        particles=4000,
        draws=4000,
        resample_below=0.0,
        data_std=0.7,
    )
    result = sampler(law.score(sde), (4000, 4), seed=1, **DOUBLE)
    ess = result.ess[:, 0]
    torch.testing.assert_close(ess, ess[:1].expand_as(ess), rtol=1e-6, atol=1e-6)
    assert ess[0] > 0.9 * 4000
    mean, covariance = moments(law.posterior(operator.matrix(), y, max(sigma_y, 1e-3)))
    assert (result.samples.mean(0) - mean).norm() < 0.06
    assert (result.samples.T.cov() - covariance).norm() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("law", "operator", "sigma_y", "data_std", "particles"),
    [
        (ring(), MatrixOperator(torch.tensor([[1.0, 0.5]])), 0.3, 2.8, 1_000),
    ],
    ids=["ring"],
)
def test_more_particles_come_nearer_to_the_posterior(law, operator, sigma_y, data_std, particles):
    """Sliced W2 over the floor falls with the particles in a set, to below 1.5."""
    sde, n = VPSDE(), 200
    y = operator.measure(law.sample(1, 11), sigma_y, seed=3)[0]
    posterior = law.posterior(operator.matrix(), y, sigma_y)
    floor, truths = sampling_floor(posterior, n, 20), [posterior.sample(n, 77 + k) for k in range(10)]

    def ratio(count, seeds):
        sampler = TwistedSampler(
            sde,
            clock_grid(sde, 40),
            operator=operator,
            y=y,
            sigma_y=sigma_y,
            particles=count,
            draws=min(count, n),
            data_std=data_std,
        )
        distances = [
            sliced_wasserstein(sampler(law.score(sde), (n, *law.shape), seed=s).samples, truth)
            for s in seeds
            for truth in truths
        ]
        return sum(distances) / len(distances) / floor

    assert ratio(particles, [0]) < min(1.5, ratio(4, [0]))


def sampler_for(sde, particles, draws, **options):
    operator = Mask(torch.tensor([True, False, False]))
    return TwistedSampler(
        sde,
        clock_grid(sde, 12),
        operator=operator,
        y=torch.tensor([0.4]),
        sigma_y=0.2,
        particles=particles,
        draws=draws,
        **options,
    )


def score_of(sde):
    def score(x, t):
        return -x / (sde.alpha(t).square() * 0.5 + sde.sigma(t).square()).to(x)[:, None]

    return score


@pytest.mark.parametrize(("particles", "draws"), [(5, 1), (6, 3), (4, 4)])
def test_a_sample_belongs_to_its_set_wherever_it_is_drawn(particles, draws):
    """Parts of a run have the bits of the whole, also where they cut through a set; costs, effective sample
    sizes and trajectories are those of the sample's set.
    """
    sde, sampler = VPSDE(), sampler_for(VPSDE(), particles, draws)
    whole = sampler(score_of(sde), (10, 3), seed=5, trajectory=True)
    part = sampler(score_of(sde), (4, 3), seed=5, first=4, trajectory=True)
    assert torch.equal(part.samples, whole.samples[4:8])
    assert torch.equal(part.ess, whole.ess[:, 4:8]) and whole.ess.shape == (13, 10)
    assert torch.equal(part.trajectory, whole.trajectory[:, 4:8]) and whole.trajectory.shape == (13, 10, 3)
    assert whole.nfe == 13 * particles // draws
    if draws > 1:
        assert torch.equal(whole.ess[:, 0], whole.ess[:, draws - 1])
    assert (whole.ess >= 1 - 1e-9).all() and (whole.ess <= particles + 1e-9).all()


def test_the_trajectory_is_a_line_of_ancestors():
    """It starts in the prior and ends where the sample is, before the final denoising."""
    sde = VPSDE()
    result = sampler_for(sde, 8, 8, denoise=False)(score_of(sde), (8, 3), seed=1, trajectory=True)
    assert torch.equal(result.trajectory[-1], result.samples)
    steps = result.trajectory.diff(dim=0).flatten(1).norm(dim=1)
    assert steps[-1] < steps[:-1].max()


def test_systematic_resampling_is_unbiased_and_even():
    """Each particle is chosen ⌊n w⌋ or ⌈n w⌉ times; each draw is it with probability w."""
    w = torch.tensor([0.05, 0.5, 0.0, 0.2, 0.25], **DOUBLE)
    u = torch.linspace(0, 1, 2001, **DOUBLE)[:-1] + 0.5 / 2000
    index = systematic(w.log().expand(2000, 5), u, 4)
    counts = torch.stack([(index == p).sum(1) for p in range(5)], 1)
    assert ((counts - 4 * w).abs() < 1).all()
    for draw in range(4):
        shares = torch.bincount(index[:, draw], minlength=5) / 2000
        torch.testing.assert_close(shares.double(), w, rtol=0, atol=1e-3)


def test_effective_sample_size():
    log_w = torch.tensor([[0.0, 0.0, 0.0, 0.0], [5.0, -1e9, -1e9, -1e9], [0.0, 0.0, -1e9, -1e9]], **DOUBLE)
    assert effective_sample_size(log_w).tolist() == pytest.approx([4, 1, 2])


def test_nonlinear_measurements_are_taken_with_noise():
    """|F x| of the ring's angle-free radius: samples keep the measured magnitudes within the noise."""
    sde, law = VPSDE(), Gaussian(torch.zeros(1, 4), torch.tensor(1.0))
    operator = PhaseRetrieval((1, 4), 1)
    y = operator(law.sample(1, 3))[0]
    sampler = TwistedSampler(
        sde, clock_grid(sde, 60), operator=operator, y=y, sigma_y=0.1, particles=400, draws=50
    )
    samples = sampler(law.score(sde), (50, 1, 4), seed=0, **DOUBLE).samples
    error = (operator(samples) - y).square().mean().sqrt()
    prior_error = (operator(law.sample(50, 1)) - y).square().mean().sqrt()
    assert error < 0.2 < prior_error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"particles": 4, "draws": 3}, "particles must be a positive multiple of draws"),
        ({"resample_below": 2.0}, r"resample_below must lie in \[0, 1\]"),
        ({"y": torch.zeros(3, 1)}, "y must be one measurement"),
        ({"y": torch.zeros(2)}, "y must have the shape"),
        ({"sigma_y": -1.0}, "sigma_y must be >= 0"),
        ({"operator": PhaseRetrieval((1, 2)), "y": torch.zeros(1, 4)}, "non-linear operator needs"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    sde = VPSDE()
    arguments = {"operator": Mask(torch.tensor([True, False])), "y": torch.zeros(1)} | options
    with pytest.raises(ValueError, match=message) as caught:
        TwistedSampler(sde, clock_grid(sde, 5), **arguments)
    assert "\n" not in str(caught.value)


def test_grids_to_zero_noise_and_start_states_are_refused():
    chain = DDPM(linear_betas(10, 0.1, 0.2))
    with pytest.raises(ValueError, match="times must end where there is noise"):
        TwistedSampler(
            chain, uniform_grid(chain, 5, eps=0.0), operator=Mask(torch.tensor([True])), y=torch.zeros(1)
        )
    with pytest.raises(ValueError, match="leave out x_T"):
        sampler_for(VPSDE(), 2, 1)(score_of(VPSDE()), (2, 3), x_T=torch.zeros(2, 3))
