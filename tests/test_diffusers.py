"""Steps against the schedulers of Hugging Face diffusers, on the same states, network outputs and noise.

Their tables are float32, in which 1 - ᾱ and 1 - ᾱ_t/ᾱ_s keep three digits where noise is low; steps come out
up to 1.7e-4 off. They are compared here with float64 tables made of the same betas: the formulas are theirs,
the rounding is not.
"""

from __future__ import annotations

import pytest
import torch

from samplers import AncestralSampler, DDIMSampler
from sde_lib import DDPM, VARIANCES, Gaussian, cosine_betas, linear_betas
from tests.problems import carry

diffusers = pytest.importorskip("diffusers")

N, SHAPE = 1000, (2, 1, 4, 4)
TABLES = {"linear": linear_betas, "squaredcos_cap_v2": cosine_betas}
every_table = pytest.mark.parametrize("table", TABLES)


class ImageScore:
    """The exact score of a law of images, and variance fractions."""

    def __init__(self, sde):
        mean = torch.linspace(-0.8, 0.8, 16).reshape(SHAPE[1:])
        self._score = Gaussian(mean, 0.2 + mean.abs()).score(sde)

    def __call__(self, x, t):
        return self._score(x, t)

    def score_and_fraction(self, x, t):
        return self._score(x, t), x.sigmoid()


def in_float64(scheduler):
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    return scheduler


def grid(timesteps, end=0.0):
    """Our times of their timesteps k: (k + 1)/N, and the end."""
    return torch.cat([(timesteps.double() + 1) / N, torch.tensor([end]).double()])


def largest_difference(sampler, scheduler, **options):
    """The largest difference between the states of the two over a whole run from one x_T, with the same
    noise.
    """
    score, steps = ImageScore(sampler.sde), range(len(scheduler.timesteps))
    x_T = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seeds = [torch.Generator().manual_seed(i) for i in steps]
    noise = [torch.randn(SHAPE, dtype=torch.float64, generator=seed) for seed in seeds]
    ours, theirs = carry(sampler, score, x_T, noise), x_T
    worst = 0.0
    for i, k in enumerate(scheduler.timesteps):
        t = sampler.times[i].expand(2)
        value, v = score.score_and_fraction(theirs, t)
        output = -sampler.sde.sigma(t)[:, None, None, None] * value
        if getattr(sampler, "variance", None) == "learned":
            output = torch.cat([output, 2 * v - 1], dim=1)
        generator = torch.Generator().manual_seed(i)
        theirs = scheduler.step(output, k, theirs, generator=generator, **options).prev_sample
        worst = max(worst, (ours[i + 1] - theirs).abs().max().item())
    assert theirs.isfinite().all() and theirs.abs().max() < 5
    return worst


@every_table
def test_tables(table):
    theirs = diffusers.DDPMScheduler(num_train_timesteps=N, beta_schedule=table)
    torch.testing.assert_close(TABLES[table](N).float(), theirs.betas, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        DDPM(TABLES[table](N)).alphas_cumprod, theirs.alphas_cumprod, rtol=1e-3, atol=1e-6
    )


@every_table
@pytest.mark.parametrize(("steps", "clip"), [(N, None), (50, None), (50, (-1.0, 1.0))])
@pytest.mark.parametrize("variance", VARIANCES)
def test_ddpm_scheduler(table, variance, steps, clip):
    """Every step of the chain and of a respaced one, for each variance."""
    names = {"small": "fixed_small", "large": "fixed_large", "learned": "learned_range"}
    scheduler = in_float64(
        diffusers.DDPMScheduler(
            num_train_timesteps=N,
            beta_schedule=table,
            variance_type=names[variance],
            clip_sample=clip is not None,
        )
    )
    scheduler.set_timesteps(steps)
    sampler = AncestralSampler(DDPM(scheduler.betas), grid(scheduler.timesteps), variance, clip)
    assert largest_difference(sampler, scheduler) < 1e-5


@every_table
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("ends_at_data", [True, False])
def test_ddim_scheduler(table, eta, spacing, ends_at_data):
    """Both spacings; the end is t = 0 with set_alpha_to_one, and the chain's first time without it."""
    scheduler = in_float64(
        diffusers.DDIMScheduler(
            num_train_timesteps=N,
            beta_schedule=table,
            clip_sample=False,
            timestep_spacing=spacing,
            set_alpha_to_one=ends_at_data,
        )
    )
    if not ends_at_data:
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(50)
    if not ends_at_data and spacing == "leading":
        scheduler.timesteps = scheduler.timesteps[:-1]  # the last step would go from the first time to itself
        times = grid(scheduler.timesteps, end=1 / N)
    else:
        times = grid(scheduler.timesteps, end=0.0 if ends_at_data else 1 / N)
    sampler = DDIMSampler(DDPM(scheduler.betas), times, eta)
    assert largest_difference(sampler, scheduler, eta=eta) < 1e-5


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_scheduler_clipped(eta):
    """Where x̂_0 is bounded, ε̂ is read off the bounded one."""
    scheduler = in_float64(diffusers.DDIMScheduler(num_train_timesteps=N, clip_sample=True))
    scheduler.set_timesteps(50)
    sampler = DDIMSampler(DDPM(scheduler.betas), grid(scheduler.timesteps), eta, clip=(-1, 1))
    assert largest_difference(sampler, scheduler, eta=eta, use_clipped_model_output=True) < 1e-5
