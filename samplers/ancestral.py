"""The samplers of the discrete chain: DDPM's ancestral sampling and DDIM, for every SDE and every time grid.

With x̂_0 = (x_t + σ_t² score)/α_t and ε̂ = (x_t - α_t x̂_0)/σ_t, from x_t to x_s:

    ancestral   x_s = mean of q(x_s | x_t, x̂_0) + √Σ z,  Σ from β̃ to β   (Ho et al., 2020, Algorithm 2)
    DDIM        x_s = α_s x̂_0 + √(σ_s² - η² β̃) ε̂ + η √β̃ z                (Song et al., 2021, eqs. 12, 16)

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

import torch
from torch import Tensor

from score_diffusion.samplers.base import CountedScore, StepSampler
from score_diffusion.samplers.grids import chain_grid
from score_diffusion.samplers.linear import LinearSampler, checked_clip
from score_diffusion.samplers.predictors import ddim_stages
from score_diffusion.sde_lib import (
    SDE,
    SampleNoise,
    ScoreFunction,
    check_variance,
    expand,
    reverse_transition,
)


class AncestralSampler(StepSampler):
    """DDPM's ancestral sampling (Ho et al., 2020, Algorithm 2). A step to a time without noise is its mean.

    Args:
        sde: The SDE.
        times: Time grid; None for `chain_grid(sde)`, all steps of the chain.
        variance: "small", "large" or "learned", see `sde_lib.ddpm`; learned takes a score with
            `score_and_fraction`.
        clip: Bounds of x̂_0, as (-1, 1) for images; None for none.
        denoise: Whether to end with Tweedie's formula where the grid ends above σ = 0, one more evaluation.

    Raises:
        ValueError: If the variance is unknown, or clip is not two increasing numbers.
    """

    def __init__(
        self,
        sde: SDE,
        times: Tensor | None = None,
        variance: str = "small",
        clip: tuple[float, float] | None = None,
        denoise: bool = False,
    ) -> None:
        super().__init__(sde, chain_grid(sde) if times is None else times, denoise)
        check_variance(variance)
        self.variance, self.clip = variance, checked_clip(clip)

    def step(
        self, score: CountedScore, x: Tensor, k: int, noise: SampleNoise, state: None
    ) -> tuple[Tensor, None]:
        """A draw from p(x_s | x_t), or its mean where σ_s = 0."""
        t, s = self.times[k].item(), self.times[k + 1].item()
        t, s = (torch.full((len(x),), v, dtype=torch.float64, device=x.device) for v in (t, s))
        mean, var = reverse_transition(self.sde, score, x, s, t, self.variance, self.clip)
        std = torch.where(expand(self.sde.sigma(s), x) > 0, var.sqrt(), 0.0)
        return mean + std * noise.normal(), None


class DDIMSampler(LinearSampler):
    """DDIM (Song et al., 2021, eqs. 12 and 16), with x̂_0 bounded before ε̂ is read off.

    Args:
        sde: The SDE.
        times: Time grid; None for `chain_grid(sde)`, all steps of the chain.
        eta: η in [0, 1]: 0 is deterministic, 1 is ancestral sampling with the small variance.
        clip: Bounds of x̂_0, as (-1, 1) for images; None for none.
        denoise: Whether to end with Tweedie's formula where the grid ends above σ = 0, one more evaluation.

    Raises:
        ValueError: If eta does not lie in [0, 1], or clip is not two increasing numbers.
    """

    def __init__(
        self,
        sde: SDE,
        times: Tensor | None = None,
        eta: float = 0.0,
        clip: tuple[float, float] | None = None,
        denoise: bool = False,
    ) -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie in [0, 1] (0: deterministic, 1: ancestral sampling), got {eta}")
        times = chain_grid(sde) if times is None else torch.as_tensor(times, dtype=torch.float64)
        super().__init__(sde, times, ddim_stages(sde, times, eta), denoise, clip)
        self.eta = float(eta)

    @torch.no_grad()
    def encode(self, score: ScoreFunction, x: Tensor) -> Tensor:
        """The codes x_T of data x: from the grid's last time up to its first, at η = 0, x̂_0 without bounds.

        `sampler(score, shape, x_T=sampler.encode(score, x))` gives the data back up to an error that falls as
        1/steps.

        Args:
            score: The score function.
            x: Data, shape (B, *shape), floating point.

        Returns:
            States at the first time of the grid, shape (B, *shape); pure noise has standard deviation
            `sde.prior_std`.

        Raises:
            ValueError: If the sampler is not deterministic: encoding inverts η = 0.
        """
        if self.eta:
            raise ValueError(
                f"encode inverts eta=0: use DDIMSampler(sde, times, eta=0.0), this one has eta={self.eta}"
            )
        sde = self.sde
        upwards = self.times.flip(0).to(x.device)[:, None].expand(-1, len(x))  # (steps + 1, B)
        starts_clean = sde.sigma(self.times[-1]).item() == 0
        for i, (s, t) in enumerate(zip(upwards[:-1], upwards[1:], strict=True)):
            alpha_ts = sde.alpha(t) / sde.alpha(s)
            x_mean = expand(alpha_ts, x) * x
            # Where there is no noise yet there is no ε̂ to read: that of the time to reach stands for it.
            at, x_at = (t, x_mean) if i == 0 and starts_clean else (s, x)
            epsilon = -expand(sde.sigma(at), x) * score(x_at, at)
            x = x_mean + expand(sde.sigma(t) - alpha_ts * sde.sigma(s), x) * epsilon
        return x
