"""Predictor-corrector sampling (Song et al., 2021, Algorithm 1): a step of a solver to the next time, then
MCMC steps at that time.

The predictors are the one-step methods of `predictors.py`. Correctors move along the score at a fixed time,
x ← x + ε score + √(2ε) z:

    langevin            ε = 2 α_t² (r ‖z‖/‖score‖)²                                   (Algorithms 4, 5)
    ald                 ε = 2 α_t² (r σ_t)², annealed Langevin dynamics        (NCSN, at signal-to-noise r)

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
        https://arxiv.org/abs/2011.13456.
    Generative Modeling by Estimating Gradients of the Data Distribution (Song & Ermon, 2019),
        https://arxiv.org/abs/1907.05600.
"""

from __future__ import annotations

from collections import deque
from typing import Annotated

import torch
from torch import Tensor

from score_diffusion.samplers.base import CountedScore, StepSampler
from score_diffusion.samplers.grids import Grid
from score_diffusion.samplers.linear import GridCoefficients, apply_stage
from score_diffusion.samplers.options import Names
from score_diffusion.samplers.predictors import PREDICTORS, NoPredictor, Predictor
from score_diffusion.sde_lib import SDE, InputError, SampleNoise, check_name
from score_diffusion.sde_lib.per_sample import mean_square_each


class Corrector:
    """Langevin steps at a fixed time with ε = 2 (r α_t σ_t)²/ratio; the ratio, one number per sample, is
    carried from step to step.

    Args:
        snr: The signal-to-noise ratio r of a step, above 0.
        n_steps: Number of steps at each time.

    Raises:
        InputError: If the snr is not positive or n_steps is below 1.
    """

    def __init__(self, snr: float, n_steps: int) -> None:
        if not snr > 0 or n_steps < 1:
            raise InputError(
                f"a corrector needs snr > 0 and n_steps >= 1, got snr={snr} and n_steps={n_steps}"
            )
        self.snr, self.n_steps = snr, n_steps

    def update_ratio(self, ratio: Tensor, score: Tensor, sigma: float) -> Tensor:
        """The estimate of σ² ‖score‖²/D that sets the step size, float64, shape (B, 1, ..., 1)."""
        return ratio

    def step(
        self,
        score: CountedScore,
        x: Tensor,
        point: tuple[float, float, float],
        noise: SampleNoise,
        ratio: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The states after `n_steps` Langevin steps at a point (t, α, σ), and the new ratio."""
        t, alpha, sigma = point
        for _ in range(self.n_steps):
            gradient = score(x, t)
            ratio = self.update_ratio(ratio, gradient, sigma)
            step_size = 2 * (alpha * self.snr * sigma) ** 2 / ratio
            x = torch.addcmul(x, step_size.to(x), gradient)
            x.addcmul_((2 * step_size).sqrt().to(x), noise.normal())
        return x, ratio


class Langevin(Corrector):
    """Step size ε = 2 α_t² (r ‖z‖/‖score‖)² (Song et al., 2021, Algorithms 4 and 5).

    The paper averages both norms over the batch, which makes a sample depend on its neighbours. With the
    norms of one sample only, the step size depends on the state, and Langevin dynamics with step size ε(x)
    converge to a law proportional to p(x)/ε(x): in D dimensions the variance grows by the factor 1 + 2/D, a
    doubling for points in the plane. Here ‖z‖² is replaced by its expectation D. σ²‖score‖²/D, which is at
    most 1 on average and changes slowly, is averaged along the path of the sample over about 1000/D steps,
    so that the bias is small in every dimension. α_t is the coefficient α(t) of the mean, the cumulative
    product in the paper's notation: the rule does not depend on N.
    """

    averaged_numbers = 1000
    smallest = 1e-6  # a score that is zero everywhere must not make an infinite step

    def update_ratio(self, ratio: Tensor, score: Tensor, sigma: float) -> Tensor:
        elements = score[0].numel()
        now = sigma**2 * mean_square_each(score).reshape(ratio.shape)
        # at most 1: with a larger ratio the steps of an outlier would be too short to bring it back
        return torch.lerp(ratio, now, min(1.0, elements / self.averaged_numbers)).clamp(self.smallest, 1.0)


class AnnealedLangevin(Corrector):
    """Step size ε = 2 α_t² (r σ_t)² (Song et al., 2021, the "ald" corrector, after Song & Ermon, 2019)."""


CORRECTORS: dict[str, type[Corrector] | None] = {"langevin": Langevin, "ald": AnnealedLangevin, "none": None}


class PCSampler(StepSampler):
    """Predictor-corrector sampling (Song et al., 2021, Algorithm 1).

    Args:
        sde, times, denoise: As for every `Sampler`.
        predictor: The step from each time to the next. Besides a name in `PREDICTORS` it may be a `Predictor`
            with other settings, such as `EulerMaruyama(stochasticity=0.5)`.
        corrector: The rule for the Langevin steps at each time. A name in `CORRECTORS`.
        snr: Signal-to-noise ratio of a corrector step. 0.16 suits small images (Song et al., 2021, Appendix
            G).
        n_corrector_steps: Number of corrector steps after each predictor step.

    Raises:
        InputError: If a name is unknown, snr or n_corrector_steps is not positive, or both the predictor and
            the corrector are "none".
    """

    def __init__(
        self,
        sde: SDE,
        times: Tensor | Grid = Grid("clock", 500),
        *,
        denoise: bool = True,
        predictor: Annotated[str | Predictor, Names(*PREDICTORS)] = "reverse_diffusion",
        corrector: Annotated[str, Names(*CORRECTORS)] = "langevin",
        snr: float = 0.16,
        n_corrector_steps: int = 1,
    ) -> None:
        super().__init__(sde, times, denoise)
        if isinstance(predictor, str):
            check_name("predictor", predictor, PREDICTORS)
            predictor = PREDICTORS[predictor]()
        check_name("corrector", corrector, CORRECTORS)
        if isinstance(predictor, NoPredictor) and corrector == "none":
            raise InputError(
                "predictor and corrector are both 'none', and nothing would move: choose at least one"
            )
        self.predictor = predictor
        self._stages = predictor.stages(sde, self.times)
        make_corrector = CORRECTORS[corrector]
        self.corrector = make_corrector(snr, n_corrector_steps) if make_corrector else None
        at = GridCoefficients(sde, self.times)
        self._points = list(zip(at.t.tolist(), at.alpha.tolist(), at.sigma.tolist(), strict=True))

    def initial_state(self, x: Tensor) -> Tensor:
        """σ²‖score‖²/D of pure noise, which is 1, for every sample."""
        return torch.ones(len(x), *(1,) * (x.ndim - 1), dtype=torch.float64, device=x.device)

    def step(
        self, score: CountedScore, x: Tensor, k: int, noise: SampleNoise, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The predictor from times[k] to times[k + 1], then the corrector there."""
        x = apply_stage(self._stages[k], score, x, deque(maxlen=1), noise)
        if self.corrector is None:
            return x, state
        return self.corrector.step(score, x, self._points[k + 1], noise, state)
