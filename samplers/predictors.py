"""One-step methods: tables with one evaluation of the score at each step, from t to s < t.

With α_{t|s}, σ²_{t|s} of the exact transition p(x_t | x_s), β̃ = σ²_{t|s} σ_s²/σ_t² the variance of
q(x_s | x_t, x_0) and x̂_0 = (x_t + σ_t² score)/α_t:

    euler_maruyama      x_s = x_t - [f x_t - (1 + η²)/2 g² score] (t - s) + η g √(t - s) z
    reverse_diffusion   x_s = (2 - α_{t|s}) x_t + (1 + η²)/2 σ²_{t|s} score + η σ_{t|s} z          (eq. 46)
    ancestral           x_s = (α_{t|s} σ_s²/σ_t²) x_t + (α_s σ²_{t|s}/σ_t²) x̂_0 + √β̃ z  (Ho et al., eqs.
    6-7) ddim                x_s = (√(σ_s² - η² β̃)/σ_t) (x_t - α_t x̂_0) + α_s x̂_0 + η √β̃ z   (Song et
    al., eq. 12)

They hold for every SDE and every grid. With β_k = σ²_{t|s} the second is the paper's step of the DDPM chain,
and with σ²_{t|s} = σ_t² - σ_s² that of the NCSN chain. η may be a function of time in the first two; η = 0 is
the probability-flow ODE in all of them.

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

from score_diffusion.samplers.linear import Path, Stage, one_stage_a_step
from score_diffusion.sde_lib import SDE

Stochasticity = float | Callable[[Tensor], Tensor]
"""η >= 0 (1: the reverse SDE, 0: the probability-flow ODE), or η(t) as a function of times of any shape."""


def stochasticity_at(eta: Stochasticity, t: Tensor) -> Tensor:
    """η at times t, a float64 tensor like t.

    Raises:
        ValueError: If it is negative anywhere.
    """
    values = torch.as_tensor(eta(t) if callable(eta) else eta, dtype=torch.float64).expand(t.shape)
    if not (values >= 0).all():
        raise ValueError(
            f"stochasticity must be >= 0 (0: probability flow, 1: reverse SDE), got {values.min().item()}"
        )
    return values


class Predictor(ABC):
    """A one-step method."""

    @abstractmethod
    def stages(self, sde: SDE, times: Tensor) -> list[Stage]:
        """Its table, one stage for each step of the grid `times`, shape (steps + 1,)."""


class EulerMaruyama(Predictor):
    """The Euler-Maruyama step of the reverse SDE at stochasticity η."""

    def __init__(self, stochasticity: Stochasticity = 1.0) -> None:
        self.stochasticity = stochasticity

    def stages(self, sde: SDE, times: Tensor) -> list[Stage]:
        path = Path(sde, times[:-1])
        step, eta = -times.diff(), stochasticity_at(self.stochasticity, times[:-1])
        weight = (1 + eta.square()) / 2 * path.g2 * step
        std = eta * (path.g2.clamp_min(0.0) * step).sqrt()
        return one_stage_a_step(times, (0.0, 1.0), 1 - path.f * step, weight, std)


class ReverseDiffusion(Predictor):
    """The reverse diffusion step of Song et al. (2021, eq. 46), on the exact transition, at stochasticity
    η."""

    def __init__(self, stochasticity: Stochasticity = 1.0) -> None:
        self.stochasticity = stochasticity

    def stages(self, sde: SDE, times: Tensor) -> list[Stage]:
        alpha_ts, var_ts = sde.transition(times[1:], times[:-1])
        eta = stochasticity_at(self.stochasticity, times[:-1])
        weight = (1 + eta.square()) / 2 * var_ts
        return one_stage_a_step(times, (0.0, 1.0), 2 - alpha_ts, weight, eta * var_ts.sqrt())


class Ancestral(Predictor):
    """DDPM's ancestral step: a draw from q(x_s | x_t, x_0) at the estimated x_0 (Ho et al., 2020, eqs. 6-7),
    for every SDE; DDIM at η = 1.

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
    path = Path(sde, times)
    alpha_t, alpha_s, sigma_t, sigma_s = path.alpha[:-1], path.alpha[1:], path.sigma[:-1], path.sigma[1:]
    var = eta**2 * sde.transition(times[1:], times[:-1])[1] * (sigma_s / sigma_t).square()  # η² β̃
    keep = (sigma_s.square() - var).clamp_min(0.0).sqrt() / sigma_t
    denoised = (1 / alpha_t, sigma_t.square() / alpha_t)
    return one_stage_a_step(times, denoised, keep, alpha_s - keep * alpha_t, var.sqrt())


PREDICTORS: dict[str, type[Predictor]] = {
    "euler_maruyama": EulerMaruyama,
    "reverse_diffusion": ReverseDiffusion,
    "ancestral": Ancestral,
    "none": NoPredictor,
}
