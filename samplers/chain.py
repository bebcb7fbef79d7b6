"""The samplers of the discrete chain: DDPM's ancestral sampling and DDIM, for every SDE and every time grid.

With x̂_0 = (x_t + σ_t² score)/α_t and ε̂ = (x_t - α_t x̂_0)/σ_t, from x_t to x_s:

    ancestral   x_s = mean of q(x_s | x_t, x̂_0) + √Σ z,  β̃ <= Σ <= β    (Ho et al., 2020, Algorithm 2)
    DDIM        x_s = α_s x̂_0 + √(σ_s² - η² β̃) ε̂ + η √β̃ z               (Song et al., 2021, eqs. 12, 16)

where β = σ²_{t|s} and β̃ = σ²_{t|s} σ_s²/σ_t² is the variance of q(x_s | x_t, x_0). DDIM at η = 1 is
ancestral sampling with Σ = β̃; at η = 0 it is the Euler step of the probability-flow ODE in the variable σ/α,
and can be run backwards, from data to noise.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239.
    Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021),
        https://arxiv.org/abs/2102.09672: Section 4.
    Denoising Diffusion Implicit Models (Song et al., 2021), https://arxiv.org/abs/2010.02502.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from score_diffusion.samplers.base import CountedScore, StepSampler
from score_diffusion.samplers.grids import Grid
from score_diffusion.samplers.linear import Clip, LinearSampler, clip_bounds
from score_diffusion.samplers.options import Names
from score_diffusion.samplers.predictors import ddim_stages
from score_diffusion.sde_lib import (
    SDE,
    VARIANCES,
    InputError,
    SampleNoise,
    ScoreFunction,
    check_variance,
    expand,
    reverse_transition,
)


class AncestralSampler(StepSampler):
    """DDPM's ancestral sampling (Ho et al., 2020, Algorithm 2). A step to a time without noise adds none.

    Args:
        sde, times, denoise: As for every `Sampler`.
        variance: Variance of a step, see `sde_lib.ddpm`; "learned" needs a score with `score_and_fraction`.
        clip: Bound on the absolute value of x̂_0, 1 for pixel values, or two bounds; 0 for none.

    Raises:
        InputError: If the variance is unknown, or clip does not stand for bounds.
    """

    def __init__(
        self,
        sde: SDE,
        times: Tensor | Grid = Grid("chain"),
        *,
        denoise: bool = False,
        variance: Annotated[str, Names(*VARIANCES)] = "small",
        clip: Clip = 0.0,
    ) -> None:
        super().__init__(sde, times, denoise)
        check_variance(variance)
        self.variance, self.clip = variance, clip_bounds(clip)

    def transition(self, score: CountedScore, x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of p(x_s | x_t), see `sde_lib.reverse_transition`."""
        return reverse_transition(self.sde, score, x, s, t, self.variance, self.clip)

    def step(
        self, score: CountedScore, x: Tensor, k: int, noise: SampleNoise, state: None
    ) -> tuple[Tensor, None]:
        """Draws from p(x_s | x_t), or returns its mean where σ_s = 0."""
        t, s = self.times[k : k + 2].to(x.device)[:, None].expand(-1, len(x))
        mean, var = self.transition(score, x, s, t)
        std = torch.where(expand(self.sde.sigma(s), x) > 0, var.sqrt(), 0.0)
        return mean + std * noise.normal(), None


class DDIMSampler(LinearSampler):
    """DDIM (Song et al., 2021, eqs. 12 and 16), where x̂_0 is clamped before ε̂ is computed from it.

    Args:
        sde, times, denoise: As for every `Sampler`.
        eta: Stochasticity η in [0, 1], 0 for DDIM, 1 for ancestral sampling with the small variance.
        clip: Bound on the absolute value of x̂_0, 1 for pixel values, or two bounds; 0 for none.

    Raises:
        InputError: If eta does not lie in [0, 1], or clip does not stand for bounds.
    """

    def __init__(
        self,
        sde: SDE,
        times: Tensor | Grid = Grid("clock", 49),
        *,
        denoise: bool = False,
        eta: float = 0.0,
        clip: Clip = 0.0,
    ) -> None:
        if not 0 <= eta <= 1:
            raise InputError(f"eta must lie in [0, 1] (0: deterministic, 1: ancestral sampling), got {eta}")
        super().__init__(sde, times, partial(ddim_stages, eta=eta), denoise=denoise, clip=clip)
        self.eta = float(eta)

    @torch.no_grad()
    def encode(self, score: ScoreFunction, x: Tensor) -> Tensor:
        """Computes the codes x_T of data x: from the grid's last time up to its first, with x̂_0 not clamped.

        `sampler(score, shape, x_T=sampler.encode(score, x))` reproduces the data up to an error that falls as
        1/steps.

        Args:
            score: The score function.
            x: Data, shape (B, *shape), floating point.

        Returns:
            States at the first time of the grid, shape (B, *shape); pure noise has standard deviation
            `sde.prior_std`.

        Raises:
            InputError: If the sampler is not deterministic: encoding inverts η = 0.
        """
        if self.eta:
            raise InputError(
                f"encode inverts eta=0: use DDIMSampler(sde, times, eta=0.0); this one has eta={self.eta}"
            )
        sde = self.sde
        upwards = self.times.flip(0).to(x.device)[:, None].expand(-1, len(x))  # (steps + 1, B)
        starts_clean = sde.sigma(self.times[-1]).item() == 0
        for i, (s, t) in enumerate(zip(upwards[:-1], upwards[1:], strict=True)):
            alpha_ts = sde.alpha(t) / sde.alpha(s)
            x_mean = expand(alpha_ts, x) * x
            # Without noise there is no ε̂ to compute: that of the next time is used instead.
            at, x_at = (t, x_mean) if i == 0 and starts_clean else (s, x)
            epsilon = -expand(sde.sigma(at), x) * score(x_at, at)
            x = x_mean + expand(sde.sigma(t) - alpha_ts * sde.sigma(s), x) * epsilon
        return x
