"""Steps against the schedulers of Hugging Face diffusers, on the same states, network outputs and noise.

Their tables are float32, in which 1 - ᾱ and 1 - ᾱ_t/ᾱ_s keep three digits where noise is low; steps come out
up to 1.7e-4 off. They are compared here with float64 tables made of the same betas: the formulas are theirs,
the rounding is not.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from score_diffusion.samplers import (
    AncestralSampler,
    DDIMSampler,
    dpmpp_2m_sde,
    dpmpp_3m,
    dpmpp_sde,
    edm,
    karras_grid,
    log_snr_grid,
    unipc,
)
from score_diffusion.sde_lib import DDPM, EDMSDE, VARIANCES, VPSDE, Gaussian, cosine_betas, linear_betas
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


@pytest.mark.slow
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
    sampler = AncestralSampler(DDPM(scheduler.betas), grid(scheduler.timesteps), variance=variance, clip=clip)
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
    sampler = DDIMSampler(DDPM(scheduler.betas), times, eta=eta)
    assert largest_difference(sampler, scheduler, eta=eta) < 1e-5


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_scheduler_clipped(eta):
    """Where x̂_0 is bounded, ε̂ is read off the bounded one."""
    scheduler = in_float64(diffusers.DDIMScheduler(num_train_timesteps=N, clip_sample=True))
    scheduler.set_timesteps(50)
    sampler = DDIMSampler(DDPM(scheduler.betas), grid(scheduler.timesteps), eta=eta, clip=(-1, 1))
    assert largest_difference(sampler, scheduler, eta=eta, use_clipped_model_output=True) < 1e-5


# Fast solvers, on noise levels given to both.


def multistep_difference(make, scheduler, steps=12, noisy=False):
    """As `largest_difference`, for a sampler on the log-SNR grid of VP, in α² + σ² = 1; theirs computes in
    float32, from our noise levels.
    """
    sde = VPSDE()
    times = log_snr_grid(sde, steps, 0.01)
    sampler, score = make(sde, times), ImageScore(sde)
    x_T = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seeds = [torch.Generator().manual_seed(i) for i in range(steps)]
    noise = [torch.randn(SHAPE, generator=seed).double() for seed in seeds]
    ours = carry(sampler, score, x_T, noise)
    scheduler.set_timesteps(steps)
    scheduler.timesteps = torch.linspace(999, 0, steps)
    scheduler.sigmas = sde.log_noise_level(times).exp()
    scheduler.set_begin_index(0)
    theirs, worst = x_T, 0.0
    for i, k in enumerate(scheduler.timesteps):
        t = times[i].expand(2)
        output = -sde.sigma(t)[:, None, None, None] * score(theirs, t)
        given = {"variance_noise": noise[i]} if noisy else {}
        theirs = scheduler.step(output, k, theirs, **given).prev_sample.double()
        worst = max(worst, (ours[i + 1] - theirs).abs().max().item())
    return worst


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("stochasticity", [0.0, 1.0])
def test_dpm_solver(order, stochasticity):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        solver_order=order,
        algorithm_type="sde-dpmsolver++" if stochasticity else "dpmsolver++",
        final_sigmas_type="sigma_min",
        lower_order_final=False,
    )

    make = partial({1: dpmpp_sde, 2: dpmpp_2m_sde}[order], stochasticity=stochasticity)
    assert multistep_difference(make, scheduler, noisy=bool(stochasticity)) < 1e-5


def test_dpm_solver_3m_but_for_half_of_its_square():
    """diffusers' 3M, and k-diffusion's, weigh the square term of the polynomial by half of its integral: with
    that half put back the steps are ours.
    """
    scheduler = diffusers.DPMSolverMultistepScheduler(
        solver_order=3, final_sigmas_type="sigma_min", lower_order_final=False
    )
    update, outputs = scheduler.multistep_dpm_solver_third_order_update, []

    def corrected(model_output_list, *args, sample, noise=None):
        m0, m1, m2 = model_output_list[-1], model_output_list[-2], model_output_list[-3]
        i = scheduler.step_index
        alpha = (1 + scheduler.sigmas**2).rsqrt()
        lam = -scheduler.sigmas.log()
        h = lam[i + 1] - lam[i]
        r0, r1 = (lam[i] - lam[i - 1]) / h, (lam[i - 1] - lam[i - 2]) / h
        D2 = ((m0 - m1) / r0 - (m1 - m2) / r1) / (r0 + r1)
        missing = -alpha[i + 1] * ((torch.expm1(-h) + h) / h**2 - 0.5) * D2
        outputs.append(missing.abs().max().item())
        return update(model_output_list, sample=sample, noise=noise) + missing

    scheduler.multistep_dpm_solver_third_order_update = corrected
    assert multistep_difference(dpmpp_3m, scheduler) < 1e-5
    assert max(outputs) > 1e-3


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc(order, variant):
    scheduler = diffusers.UniPCMultistepScheduler(
        solver_order=order, solver_type=variant, final_sigmas_type="sigma_min"
    )
    assert multistep_difference(partial(unipc, order=order, variant=variant), scheduler) < 1e-5


@pytest.mark.parametrize(("name", "method"), [("EulerDiscrete", "euler"), ("HeunDiscrete", "heun")])
def test_k_diffusion_on_karras_grids(name, method):
    """Euler's and Heun's methods in σ̃ on EDM's own path and grid, without churn."""
    sde, steps = EDMSDE(), 10
    times = karras_grid(sde, steps)
    sampler = edm(sde, times, method=method)
    score = ImageScore(sde)
    x_T = 80 * torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = carry(sampler, score, x_T)
    scheduler = getattr(diffusers, f"{name}Scheduler")()
    scheduler.set_timesteps(steps)
    visited = torch.arange(steps + 1)
    if method == "heun":
        visited = visited.repeat_interleave(2)[1:-1]
        scheduler.sigmas = torch.cat([times[visited], times[-1:]])
    else:
        scheduler.sigmas, visited = times, visited[:-1]
    scheduler.timesteps = torch.linspace(999, 0, len(visited))
    scheduler.set_begin_index(0)
    scheduler.is_scale_input_called = True
    theirs, arrived = x_T, 0
    for n, (i, k) in enumerate(zip(visited.tolist(), scheduler.timesteps, strict=True)):
        t = times[i].expand(2)
        output = -sde.sigma(t)[:, None, None, None] * score(theirs, t)
        theirs = scheduler.step(output, k, theirs).prev_sample.double()
        if method == "euler" or n % 2:
            arrived += 1
            torch.testing.assert_close(ours[arrived], theirs, rtol=1e-5, atol=1e-5)
    assert arrived == steps
