"""One-step methods: tables with one evaluation of the score at each step, from t to s < t.

With α_{t|s}, σ²_{t|s} of the exact transition p(x_t | x_s), β̃ = σ²_{t|s} σ_s²/σ_t² the variance of
q(x_s | x_t, x_0) and x̂_0 = (x_t + σ_t² score)/α_t:

    euler_maruyama      x_s = x_t - [f x_t - (1 + η²)/2 g² score] (t - s) + η g √(t - s) z
    reverse_diffusion   x_s = (2 - α_{t|s}) x_t + (1 + η²)/2 σ²_{t|s} score + η σ_{t|s} z
    ancestral           x_s = (α_{t|s} σ_s²/σ_t²) x_t + (α_s σ²_{t|s}/σ_t²) x̂_0 + √β̃ z
    ddim                x_s = (√(σ_s² - η² β̃)/σ_t) (x_t - α_t x̂_0) + α_s x̂_0 + η √β̃ z

reverse_diffusion is eq. 46 of Song et al. (2021, SDEs), ancestral eqs. 6-7 of Ho et al. (2020), ddim eq. 12
of Song et al. (2021, DDIM). They hold for every SDE and every grid. With β_k = σ²_{t|s} reverse_diffusion is
the paper's step of the DDPM chain, and with σ²_{t|s} = σ_t² - σ_s² that of the NCSN chain. η may be a
function of time in the first two; η = 0 is the probability-flow ODE in all of them but ancestral, which is
ddim at η = 1.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
        https://arxiv.org/abs/2011.13456: Appendices D.1 and E.
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239.
    Denoising Diffusion Implicit Models (Song et al., 2021), https://arxiv.org/abs/2010.02502: eqs. 12, 16.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from score_diffusion.samplers.grids import Grid
from score_diffusion.samplers.linear import GridCoefficients, LinearSampler, Stage, one_stage_per_step
from score_diffusion.sde_lib import SDE, InputError

Stochasticity = float | Callable[[Tensor], Tensor]
"""η >= 0 (1: the reverse SDE, 0: the probability-flow ODE), or η(t) as a function of times of any shape."""

REVERSE_SDE = 1.0  # η


def stochasticity_at(eta: Stochasticity, t: Tensor) -> Tensor:
    """η at times t, a float64 tensor like t.

    Raises:
        InputError: If it is negative anywhere.
    """
    values = torch.as_tensor(eta(t) if callable(eta) else eta, dtype=torch.float64).expand(t.shape)
    if not (values >= 0).all():
        raise InputError(
            f"stochasticity must be >= 0 (0: probability flow, 1: reverse SDE), got {values.min().item()}"
        )
    return values


class Predictor(ABC):
    """A one-step method."""

    @abstractmethod
    def stages(self, sde: SDE, times: Tensor) -> list[Stage]:
        """The method's table, one stage for each step of the grid `times`, shape (steps + 1,)."""


class EulerMaruyama(Predictor):
    """The Euler-Maruyama step of the reverse SDE at stochasticity η."""

    def __init__(self, stochasticity: Stochasticity = REVERSE_SDE) -> None:
        self.stochasticity = stochasticity

    def stages(self, sde: SDE, times: Tensor) -> list[Stage]:
        at = GridCoefficients(sde, times[:-1])
        step, eta = -times.diff(), stochasticity_at(self.stochasticity, times[:-1])
        weight = (1 + eta.square()) / 2 * at.g2 * step
        std = eta * (at.g2.clamp_min(0.0) * step).sqrt()
        return one_stage_per_step(times, (0.0, 1.0), 1 - at.f * step, weight, std)


class ReverseDiffusion(Predictor):
    """The reverse diffusion step (Song et al., 2021, eq. 46), on the exact transition, at stochasticity η."""

    def __init__(self, stochasticity: Stochasticity = REVERSE_SDE) -> None:
        self.stochasticity = stochasticity

    def stages(self, sde: SDE, times: Tensor) -> list[Stage]:
        alpha_ts, var_ts = sde.transition(times[1:], times[:-1])
        eta = stochasticity_at(self.stochasticity, times[:-1])
        weight = (1 + eta.square()) / 2 * var_ts
        return one_stage_per_step(times, (0.0, 1.0), 2 - alpha_ts, weight, eta * var_ts.sqrt())


class Ancestral(Predictor):
    """DDPM's ancestral step: a draw from q(x_s | x_t, x_0) at the estimated x_0 (Ho et al., 2020, eqs. 6-7);
    it is DDIM at η = 1.

    score_sde_pytorch's VP version uses the larger variance σ²_{t|s}; the two agree as steps shrink.
    """

    def stages(self, sde: SDE, times: Tensor) -> list[Stage]:
        return ddim_stages(sde, times, 1.0)


class NoPredictor(Predictor):
    """Leaves x as it is: corrector-only sampling."""

    def stages(self, sde: SDE, times: Tensor) -> list[Stage]:
        return [Stage(None, (0.0, 0.0), 1.0, ()) for _ in times[1:]]


def ddim_stages(sde: SDE, times: Tensor, eta: float) -> list[Stage]:
    """DDIM's table at η in [0, 1]; its values are the denoised samples x̂_0."""
    at = GridCoefficients(sde, times)
    alpha_t, alpha_s, sigma_t, sigma_s = at.alpha[:-1], at.alpha[1:], at.sigma[:-1], at.sigma[1:]
    var = eta**2 * sde.transition(times[1:], times[:-1])[1] * (sigma_s / sigma_t).square()  # η² β̃
    keep = (sigma_s.square() - var).clamp_min(0.0).sqrt() / sigma_t
    denoised = (1 / alpha_t, sigma_t.square() / alpha_t)
    return one_stage_per_step(times, denoised, keep, alpha_s - keep * alpha_t, var.sqrt())


PREDICTORS: dict[str, type[Predictor]] = {
    "euler_maruyama": EulerMaruyama,
    "reverse_diffusion": ReverseDiffusion,
    "ancestral": Ancestral,
    "none": NoPredictor,
}


def euler_maruyama(
    sde: SDE,
    times: Tensor | Grid = Grid("clock", 49),
    *,
    denoise: bool = False,
    stochasticity: Stochasticity = REVERSE_SDE,
) -> LinearSampler:
    """The Euler-Maruyama method for the reverse SDE (Song et al., 2021).

    Args:
        sde, times, denoise: As for every `Sampler`.
        stochasticity: Stochasticity η >= 0, 1 for the reverse SDE, 0 for the probability-flow ODE.
    """
    return LinearSampler(sde, times, EulerMaruyama(stochasticity).stages, denoise=denoise)


def reverse_diffusion(
    sde: SDE,
    times: Tensor | Grid = Grid("clock", 49),
    *,
    denoise: bool = False,
    stochasticity: Stochasticity = REVERSE_SDE,
) -> LinearSampler:
    """The reverse diffusion sampler (Song et al., 2021, eq. 46).

    Args:
        sde, times, denoise: As for every `Sampler`.
        stochasticity: Stochasticity η >= 0, 1 for the reverse SDE, 0 for the probability-flow ODE.
    """
    return LinearSampler(sde, times, ReverseDiffusion(stochasticity).stages, denoise=denoise)


def ancestral(sde: SDE, times: Tensor | Grid = Grid("clock", 49), *, denoise: bool = False) -> LinearSampler:
    """Ancestral sampling (Ho et al., 2020, eqs. 6-7) on any time grid; arguments as for every `Sampler`."""
    return LinearSampler(sde, times, Ancestral().stages, denoise=denoise)
