"""What samplers share that draw the measured part of x_t apart from the rest.

In the coordinates x̄ = Vᵀ x_t/α_t of the decomposition A = U diag(s) Vᵀ the measurement is ȳ = diag(1/s) Uᵀ
y, with noise of standard deviation σ_y/s. Where σ̃_t = σ_t/α_t is above it, ȳ with more noise is a state of
the diffusion.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from score_diffusion.samplers.base import CountedScore, StepSampler
from score_diffusion.samplers.grids import Grid
from score_diffusion.samplers.inverse.operators import Operator
from score_diffusion.samplers.inverse.posterior import (
    checked_linear,
    checked_measurement,
    checked_sigma,
    measurement_of,
)
from score_diffusion.samplers.linear import GridCoefficients
from score_diffusion.sde_lib import SDE, SampleNoise


class MeasuredPartSampler(StepSampler):
    """A step sampler with a measurement. It takes the score of the prior.

    Args:
        sde: The SDE.
        times: Time grid, shape (steps + 1,), or a `Grid`.
        operator: The measurement A, linear, with a decomposition.
        y: The measurement of all samples, shape (*output_shape), or one for each, (B, *output_shape).
        sigma_y: Standard deviation of its noise, at least 0.
        denoise: Whether to end with a step to σ = 0 where the grid ends above it, one more evaluation.

    Raises:
        InputError: If the operator has no decomposition, or y or sigma_y do not fit.
    """

    def __init__(
        self, sde: SDE, times: Tensor | Grid, operator: Operator, y: Tensor, sigma_y: float, denoise: bool
    ) -> None:
        super().__init__(sde, times, denoise=False)
        self.y, self.sigma_y = checked_measurement(operator, y), checked_sigma(sigma_y)
        self._svd = checked_linear(operator, type(self).__name__).svd()
        grid = GridCoefficients(sde, self.times)
        self._alpha, self._level = grid.alpha.tolist(), (grid.sigma / grid.alpha).tolist()
        if denoise and self._level[-1] > 0:
            self._alpha.append(1.0)
            self._level.append(0.0)

    def _known(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """ȳ, shape (1 or B, R), and the standard deviation of its noise, shape (R,)."""
        s = self._svd.s.to(x)
        return self._svd.Ut(measurement_of(self.y, x)) / s, self.sigma_y / s

    def integrate(
        self,
        score: CountedScore,
        x: Tensor,
        noise: SampleNoise,
        record: Callable[[Tensor], None] | None,
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        return self._finished(score, super().integrate(score, x, noise, record, on_step), noise)

    def _finished(self, score: CountedScore, x: Tensor, noise: SampleNoise) -> Tensor:
        """The states after the step to σ = 0, if there is one."""
        last = len(self.times) - 1
        return self.step(score, x, last, noise, None)[0] if len(self._level) > last + 1 else x
