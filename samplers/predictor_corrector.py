"""Predictor-corrector sampling (Song et al., 2021, Algorithm 1): a solver's step in time, then MCMC steps at
the time reached.

Predictors, from x_t to x_s with α_{t|s}, σ²_{t|s} of the exact transition p(x_t | x_s), so that they hold for
every SDE and every grid:

    euler_maruyama      x_s = x_t - [f x_t - (1 + η²)/2 g² score] (t - s) + η g √(t - s) z
    reverse_diffusion   x_s = (2 - α_{t|s}) x_t + (1 + η²)/2 σ²_{t|s} score + η σ_{t|s} z  (eq. 46)
    ancestral           x_s ~ q(x_s | x_t, x_0 = Tweedie's estimate), DDPM's posterior   (Ho et al., eqs. 6-7)

With β_k = σ²_{t|s} the second is the paper's step of the DDPM chain, and with σ²_{t|s} = σ_t² - σ_s² that of
the NCSN chain.

Correctors move along the score at a fixed time, x ← x + ε score + √(2ε) z:

    langevin            ε = 2 α_t² (r ‖z‖/‖score‖)²                                   (Algorithms 4, 5)
    ald                 ε = 2 α_t² (r σ_t)², annealed Langevin dynamics        (NCSN, at signal-to-noise r)

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
        https://arxiv.org/abs/2011.13456.
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239.
    Generative Modeling by Estimating Gradients of the Data Distribution (Song & Ermon, 2019),
        https://arxiv.org/abs/1907.05600.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from samplers.base import StepSampler
from samplers.grids import uniform_grid
from sde_lib import SDE, SampleNoise, ScoreFunction, expand, tweedie


class Predictor(ABC):
    """A step from time t to an earlier time s."""

    @abstractmethod
    def step(
        self, sde: SDE, score: ScoreFunction, x: Tensor, t: Tensor, s: Tensor, noise: SampleNoise
    ) -> Tensor:
        """The states at s, shape (B, *shape), from x at t; t and s have shape (B,), float64."""


class EulerMaruyama(Predictor):
    """The Euler-Maruyama step of the reverse SDE at stochasticity η >= 0 (1: reverse SDE, 0: probability
    flow).
    """

    def __init__(self, stochasticity: float = 1.0) -> None:
        self.stochasticity = stochasticity

    def step(
        self, sde: SDE, score: ScoreFunction, x: Tensor, t: Tensor, s: Tensor, noise: SampleNoise
    ) -> Tensor:
        drift, diffusion = sde.reverse(score, stochasticity=self.stochasticity).sde(x, t)
        x = x - expand(t - s, x) * drift
        return x + expand(diffusion * (t - s).sqrt(), x) * noise.normal() if self.stochasticity else x


class ReverseDiffusion(Predictor):
    """The reverse diffusion step of Song et al. (2021, eq. 46), on the exact transition, at stochasticity η
    >= 0.
    """

    def __init__(self, stochasticity: float = 1.0) -> None:
        self.stochasticity = stochasticity

    def step(
        self, sde: SDE, score: ScoreFunction, x: Tensor, t: Tensor, s: Tensor, noise: SampleNoise
    ) -> Tensor:
        alpha_ts, var_ts = sde.transition(s, t)
        weight = (1 + self.stochasticity**2) / 2
        x = expand(2 - alpha_ts, x) * x + expand(weight * var_ts, x) * score(x, t)
        return x + expand(self.stochasticity * var_ts.sqrt(), x) * noise.normal() if self.stochasticity else x


class Ancestral(Predictor):
    """DDPM's ancestral step: a draw from q(x_s | x_t, x_0) at the estimated x_0 (Ho et al., 2020, eqs. 6-7),
    for every SDE.

    Mean (x_t + σ²_{t|s} score)/α_{t|s}, variance σ²_{t|s} σ_s²/σ_t². score_sde_pytorch's VP version uses the
    larger variance σ²_{t|s}; the two agree as steps shrink.
    """

    def step(
        self, sde: SDE, score: ScoreFunction, x: Tensor, t: Tensor, s: Tensor, noise: SampleNoise
    ) -> Tensor:
        mean, var = sde.posterior(x, tweedie(sde, score, x, t), s, t)
        return mean + expand(var.sqrt(), x) * noise.normal()


class NoPredictor(Predictor):
    """Leaves x as it is: corrector-only sampling."""

    def step(
        self, sde: SDE, score: ScoreFunction, x: Tensor, t: Tensor, s: Tensor, noise: SampleNoise
    ) -> Tensor:
        return x


class Corrector(ABC):
    """Langevin steps at a fixed time. `ratio` is what a step carries to the next one, shape (B,).

    Args:
        snr: The signal-to-noise ratio r of a step, above 0.
        n_steps: Number of steps at each time.

    Raises:
        ValueError: If the snr is not positive or n_steps is below 1.
    """

    def __init__(self, snr: float = 0.16, n_steps: int = 1) -> None:
        if not snr > 0 or n_steps < 1:
            raise ValueError(
                f"a corrector needs snr > 0 and n_steps >= 1, got snr={snr} and n_steps={n_steps}"
            )
        self.snr, self.n_steps = snr, n_steps

    @abstractmethod
    def update_ratio(self, ratio: Tensor, score: Tensor, sigma: Tensor) -> Tensor:
        """The estimate of σ² ‖score‖²/D that sets the step size, shape (B,)."""

    def step(
        self, sde: SDE, score: ScoreFunction, x: Tensor, t: Tensor, noise: SampleNoise, ratio: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The states after `n_steps` Langevin steps at time t, and the ratio to carry on."""
        sigma, alpha = sde.sigma(t), sde.alpha(t)
        for _ in range(self.n_steps):
            gradient = score(x, t)
            ratio = self.update_ratio(ratio, gradient, sigma)
            step_size = 2 * (alpha * self.snr * sigma).square() / ratio
            x = x + expand(step_size, x) * gradient + expand((2 * step_size).sqrt(), x) * noise.normal()
        return x, ratio


class Langevin(Corrector):
    """Step size ε = 2 α_t² (r ‖z‖/‖score‖)² (Song et al., 2021, Algorithms 4 and 5).

    The paper averages both norms over the batch, which makes a sample depend on its neighbours. With the
    norms of one sample alone the step size depends on the state, and Langevin dynamics with step size ε(x)
    settle in a law proportional to p(x)/ε(x): in D dimensions the variance grows by 2/D of itself, a doubling
    for points. Here ‖z‖² is its expectation D, and σ²‖score‖²/D - at most 1 on average, and slowly changing -
    is averaged along the sample's own path over about 1000/D steps, so that the bias is small in every
    dimension. α_t is the mean coefficient α(t) of the SDE, the cumulative product that the paper's notation
    means: the rule does not depend on N.
    """

    averaged_numbers = 1000
    smallest = 1e-6  # a score that is zero everywhere must not make an infinite step

    def update_ratio(self, ratio: Tensor, score: Tensor, sigma: Tensor) -> Tensor:
        elements = score.flatten(1)
        now = sigma.square() * elements.double().square().mean(1)
        weight = min(1.0, elements.shape[1] / self.averaged_numbers)
        # at most 1: with a larger ratio an outlier's steps would be too short to bring it back
        return torch.lerp(ratio, now, weight).clamp(self.smallest, 1.0)


class AnnealedLangevin(Corrector):
    """Step size ε = 2 α_t² (r σ_t)² (Song et al., 2021, the "ald" corrector, after Song & Ermon, 2019)."""

    def update_ratio(self, ratio: Tensor, score: Tensor, sigma: Tensor) -> Tensor:
        return ratio


PREDICTORS: dict[str, type[Predictor]] = {
    "euler_maruyama": EulerMaruyama,
    "reverse_diffusion": ReverseDiffusion,
    "ancestral": Ancestral,
    "none": NoPredictor,
}
CORRECTORS: dict[str, type[Corrector] | None] = {"langevin": Langevin, "ald": AnnealedLangevin, "none": None}


class PCSampler(StepSampler):
    """Predictor-corrector sampling (Song et al., 2021, Algorithm 1).

    Args:
        sde: The SDE.
        predictor: A name in `PREDICTORS`, or a predictor with settings of its own, such as
            `EulerMaruyama(stochasticity=0.5)`.
        corrector: A name in `CORRECTORS`.
        snr: Signal-to-noise ratio of a corrector step: 0.16 suits small images (Song et al., 2021, Appendix
            G).
        n_corrector_steps: Corrector steps after each predictor step.
        times: Time grid; None for `uniform_grid(sde, sde.N)`.
        denoise: Whether to end with Tweedie's formula, one more evaluation.

    Raises:
        ValueError: If a name is unknown, snr or n_corrector_steps is not positive, or both the predictor and
            the corrector are "none".
    """

    def __init__(
        self,
        sde: SDE,
        predictor: str | Predictor = "reverse_diffusion",
        corrector: str = "langevin",
        snr: float = 0.16,
        n_corrector_steps: int = 1,
        times: Tensor | None = None,
        denoise: bool = True,
    ) -> None:
        super().__init__(sde, uniform_grid(sde, sde.N) if times is None else times, denoise)
        if isinstance(predictor, str):
            if predictor not in PREDICTORS:
                raise ValueError(f"predictor must be one of {', '.join(PREDICTORS)}, got {predictor!r}")
            predictor = PREDICTORS[predictor]()
        if corrector not in CORRECTORS:
            raise ValueError(f"corrector must be one of {', '.join(CORRECTORS)}, got {corrector!r}")
        if isinstance(predictor, NoPredictor) and corrector == "none":
            raise ValueError(
                "predictor and corrector are both 'none': nothing would move; choose one of them"
            )
        self.predictor = predictor
        make_corrector = CORRECTORS[corrector]
        self.corrector = make_corrector(snr, n_corrector_steps) if make_corrector else None

    def initial_state(self, x: Tensor) -> Tensor:
        """σ²‖score‖²/D of pure noise, which is 1, for every sample."""
        return torch.ones(len(x), dtype=torch.float64, device=x.device)

    def step(
        self, score: ScoreFunction, x: Tensor, t: Tensor, s: Tensor, noise: SampleNoise, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The predictor from t to s, then the corrector at s."""
        x = self.predictor.step(self.sde, score, x, t, s, noise)
        return (
            (x, state) if self.corrector is None else self.corrector.step(self.sde, score, x, s, noise, state)
        )
