"""Pseudoinverse-guided diffusion (ΠGDM): an isotropic Gaussian in place of p(x_0 | x_t).

    p(x_0 | x_t) ≈ N(x̂_0, r_t² I),    r_t² = s² σ̃²/(s² + σ̃²),    σ̃ = σ_t/α_t             (Section 3.2)
    ∇ log p(y | x_t) ≈ Jᵀ Aᵀ (r_t² A Aᵀ + σ_y² I)⁻¹ (y - A x̂_0)                         (eq. 7)

with s the standard deviation of the data, 1 in the paper. r_t² is then the variance of p(x_0 | x_t) for
data from N(0, s² I), for which the method is exact. Without noise (r_t² A Aᵀ)⁻¹ becomes the pseudo-inverse,
and for any function h with a pseudo-inverse h⁺, h h⁺ h = h, such as JPEG's,

    ∇ log p(y | x_t) ≈ r_t⁻² Jᵀ (h⁺(y) - h⁺(h(x̂_0)))                                     (eq. 9)

Reference:
    Pseudoinverse-Guided Diffusion Models for Inverse Problems (Song et al., 2023),
        https://openreview.net/forum?id=9_gsMA8MRKQ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from score_diffusion.samplers.inverse.operators import LinearOperator, Operator
from score_diffusion.samplers.inverse.posterior import Denoised, PosteriorScore, measurement_of
from score_diffusion.sde_lib import SDE, InputError, ScoreFunction, expand


def isotropic_variance(alpha: Tensor, sigma: Tensor, data_std: float) -> Tensor:
    """r_t², the variance of p(x_0 | x_t) for data from N(0, s² I), shape (B,), float64."""
    noise = (sigma / alpha).square()
    return data_std**2 * noise / (data_std**2 + noise)


class PiGDM(PosteriorScore):
    """Pseudoinverse guidance.

    Args:
        score: The score function of the prior.
        sde: Its SDE.
        operator: A linear operator with a decomposition, or any one with a pseudo-inverse if sigma_y is 0.
        y: The measurement of all samples, shape (*output_shape), or one for each, (B, *output_shape).
        sigma_y: Standard deviation of its noise, at least 0.
        data_std: s, the standard deviation of the data.

    Raises:
        InputError: If the operator has no fast decomposition or pseudo-inverse, data_std is not positive,
            or a non-linear measurement is noisy; or as for PosteriorScore.
    """

    def __init__(
        self,
        score: ScoreFunction,
        sde: SDE,
        operator: Operator,
        y: Tensor,
        sigma_y: float = 0.0,
        *,
        data_std: float = 1.0,
    ) -> None:
        super().__init__(score, sde, operator, y, sigma_y)
        if not data_std > 0:
            raise InputError(f"data_std must be positive, got {data_std}")
        self.data_std = data_std
        self._svd = operator.svd() if isinstance(operator, LinearOperator) else None
        if self._svd is None:
            operator.pseudo_inverse(self.y)  # refuses operators that have none
            if sigma_y > 0:
                raise InputError(
                    f"pseudoinverse guidance through a non-linear operator needs sigma_y = 0, got {sigma_y}"
                )

    def guidance(self, denoised: Denoised) -> Tensor:
        variance = isotropic_variance(denoised.alpha, denoised.sigma, self.data_std)
        if self._svd is not None:
            noise = torch.full_like(variance, self.sigma_y**2)
            solution = self._svd.solve(self.residual(denoised.x_0), variance, noise)
            return denoised.vjp(self._svd.V(self._svd.s.to(solution) * self._svd.Ut(solution)))  # eq. 7
        inverse, x_0 = self.operator.pseudo_inverse, denoised.x_0
        difference = inverse(measurement_of(self.y, x_0)) - inverse(self.operator(x_0))
        return denoised.vjp(difference / expand(variance, x_0))  # eq. 9
