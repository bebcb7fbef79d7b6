"""Denoising diffusion restoration (DDRM): a chain of its own for each singular value of A.

With x̄ = Vᵀ x_t/α_t and ȳ = diag(1/s) Uᵀ y, whose noise has the standard deviation σ_y/s (see
measured_part.py), from σ̃_t = σ_t/α_t to σ̃_s and with x̄_0 = Vᵀ x̂_0 (eqs. 7-8):

    first                 N(ȳ, σ̃_T² - σ_y²/s²), not measured: N(0, σ̃_T²)
    not measured          N(x̄_0 + √(1 - η²) σ̃_s (x̄_t - x̄_0)/σ̃_t,          η² σ̃_s²)
    σ̃_s < σ_y/s           N(x̄_0 + √(1 - η²) σ̃_s (ȳ - x̄_0)/(σ_y/s),        η² σ̃_s²)
    σ̃_s >= σ_y/s          N((1 - η_b) x̄_0 + η_b ȳ,                        σ̃_s² - η_b² σ_y²/s²)

Whatever η and η_b, the chain has the marginals N(x̄_0, σ̃_s²) of the diffusion if x̂_0 is x_0 and y its
measurement (Proposition 3.1). It needs no differentiation. Where it is noisy, x_t is measured anew rather
than moved, so that few steps suffice, and unmeasured parts learn of the measurement only through x̂_0: as
with Replacement, they agree less with it than in the posterior.

Reference:
    Denoising Diffusion Restoration Models (Kawar et al., 2022), https://arxiv.org/abs/2201.11793.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from score_diffusion.samplers.base import CountedScore
from score_diffusion.samplers.grids import Grid
from score_diffusion.samplers.inverse.measured_part import MeasuredPartSampler
from score_diffusion.samplers.inverse.operators import Operator
from score_diffusion.sde_lib import SDE, InputError, SampleNoise


class DDRMSampler(MeasuredPartSampler):
    """Denoising diffusion restoration. It takes the score of the prior.

    Args:
        sde, times, operator, y, sigma_y, denoise: As for `MeasuredPartSampler`.
        eta: η in [0, 1], the share of fresh noise.
        eta_b: η_b in [0, 1], how far noisy measured parts follow the measurement.

    Raises:
        InputError: If the operator has no decomposition, y or sigma_y do not fit, or eta or eta_b lie outside
            [0, 1].
    """

    def __init__(
        self,
        sde: SDE,
        times: Tensor | Grid = Grid("clock", 49),
        *,
        operator: Operator,
        y: Tensor,
        sigma_y: float = 0.0,
        denoise: bool = True,
        eta: float = 0.85,
        eta_b: float = 1.0,
    ) -> None:
        super().__init__(sde, times, operator, y, sigma_y, denoise)
        if not (0 <= eta <= 1 and 0 <= eta_b <= 1):
            raise InputError(f"eta and eta_b must lie in [0, 1], got {eta} and {eta_b}")
        self.eta, self.eta_b = eta, eta_b

    def _first(self, x: Tensor) -> Tensor:
        """The states at the first time, from those of the prior (eq. 7)."""
        z, (known, std), level = x / self.sde.prior_std, self._known(x), self._level[0]
        measured = self._svd.Vt(z)
        variance = level**2 - std.square()
        # A measurement noisier than x_T tells nothing yet.
        target = torch.where(variance > 0, known + variance.clamp_min(0).sqrt() * measured, level * measured)
        return self._alpha[0] * (level * z + self._svd.V(target - level * measured))

    def step(
        self, score: CountedScore, x: Tensor, k: int, noise: SampleNoise, state: None
    ) -> tuple[Tensor, None]:
        """A draw from p(x_s | x_t, y) (eq. 8)."""
        alpha, level, next_level = self._alpha[k], self._level[k], self._level[k + 1]
        x_0 = x / alpha + alpha * level**2 * score(x, self.times[k].item())
        z = noise.normal()
        keep = math.sqrt(1 - self.eta**2) * next_level
        free = x_0 + (keep / level) * (x / alpha - x_0) + (self.eta * next_level) * z
        (known, std), c_0, c_z = self._known(x), self._svd.Vt(x_0), self._svd.Vt(z)
        less = c_0 + (keep / std) * (known - c_0) + (self.eta * next_level) * c_z
        variance = (next_level**2 - (self.eta_b * std).square()).clamp_min(0)
        more = (1 - self.eta_b) * c_0 + self.eta_b * known + variance.sqrt() * c_z
        measured = torch.where(next_level < std, less, more)
        return self._alpha[k + 1] * (free + self._svd.V(measured - self._svd.Vt(free))), None

    def integrate(
        self,
        score: CountedScore,
        x: Tensor,
        noise: SampleNoise,
        record: Callable[[Tensor], None] | None,
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        return super().integrate(score, self._first(x), noise, record, on_step)
