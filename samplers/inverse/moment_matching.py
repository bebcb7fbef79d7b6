"""Moment matching posterior sampling (MMPS): the Gaussian with the mean and covariance of p(x_0 | x_t) in
its place.

    p(x_0 | x_t) ≈ N(x̂_0, V),    V = V[x_0 | x_t] = (σ_t²/α_t) J                    (Tweedie's covariance)
    ∇ log p(y | x_t) ≈ Jᵀ Aᵀ (A V Aᵀ + σ_y² I)⁻¹ (y - A x̂_0)                        (∂V/∂x_t neglected)

V is never formed: V v = (σ_t²/α_t) Jᵀ v is a differentiation, and the system is solved by conjugate
gradients. Where the operator has a decomposition, ΠGDM's solution, that of an isotropic V, preconditions
them: the first iteration is ΠGDM with its strength set by the Jacobian. With an exact score, a linear A and
as many iterations as A has singular values, the method is exact for Gaussian data. For data with separate
modes ∂V/∂x_t matters where x_t chooses between them: the full solution then trusts the measurement too
little, and one iteration is closer.

Reference:
    Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al., 2024),
        https://arxiv.org/abs/2405.13712: Section 4.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from score_diffusion.samplers.inverse.operators import SVD, Operator
from score_diffusion.samplers.inverse.pigdm import isotropic_variance
from score_diffusion.samplers.inverse.posterior import Denoised, PosteriorScore, checked_linear
from score_diffusion.samplers.inverse.solve import Linear, conjugate_gradients
from score_diffusion.sde_lib import SDE, InputError, ScoreFunction, expand


class MomentMatching(PosteriorScore):
    """Moment matching, for linear operators.

    Args:
        score: The score function of the prior.
        sde: Its SDE.
        operator: The measurement A, linear.
        y: The measurement of all samples, shape (*output_shape), or one for each, (B, *output_shape).
        sigma_y: Standard deviation of its noise, at least 0.
        iterations: Iterations of conjugate gradients, one differentiation through the score each.
        data_std: Standard deviation of the data, for the preconditioner only.

    Raises:
        InputError: If the operator is not linear or iterations not positive; or as for PosteriorScore.
    """

    def __init__(
        self,
        score: ScoreFunction,
        sde: SDE,
        operator: Operator,
        y: Tensor,
        sigma_y: float = 0.0,
        *,
        iterations: int = 1,
        data_std: float = 1.0,
    ) -> None:
        super().__init__(score, sde, operator, y, sigma_y)
        self._A = checked_linear(operator, "moment matching")
        if not isinstance(iterations, int) or iterations < 1:
            raise InputError(f"iterations must be a positive integer, got {iterations}")
        self.iterations, self.data_std = iterations, data_std
        try:
            self._svd: SVD | None = operator.svd()
        except InputError:  # it has no fast one
            self._svd = None

    def _preconditioner(self, denoised: Denoised) -> Linear | None:
        if self._svd is None:
            return None
        svd, noise = self._svd, torch.full_like(denoised.sigma, self.sigma_y**2)
        variance = isotropic_variance(denoised.alpha, denoised.sigma, self.data_std)
        return lambda v: svd.solve(v, variance, noise)

    def guidance(self, denoised: Denoised) -> Tensor:
        A, scale = self._A, expand(denoised.sigma.square() / denoised.alpha, denoised.x_0)

        def covariance(v: Tensor) -> Tensor:
            return self.sigma_y**2 * v + A(scale * denoised.vjp(A.adjoint(v)))

        residual = self.residual(denoised.x_0)
        solution = conjugate_gradients(covariance, residual, self.iterations, self._preconditioner(denoised))
        return denoised.vjp(A.adjoint(solution))
