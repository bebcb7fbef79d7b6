"""Diffusion posterior sampling (DPS): the likelihood of x̂_0 in place of p(y | x_t).

Theorem 1 of Chung et al. takes p(y | x_t) ≈ p(y | x̂_0) = N(y; A(x̂_0), σ_y² I), so that

    ∇ log p(y | x_t) ≈ -1/(2σ_y²) ∇‖y - A(x̂_0)‖² = -(‖y - A(x̂_0)‖/σ_y²) ∇‖y - A(x̂_0)‖

Algorithm 1 has steps of fixed length instead, after each step of DDPM from t to s:

    x_s ← x_s - ζ ∇‖y - A(x̂_0)‖

The score moves such a step by (σ²_{t|s}/α_{t|s}) score: ancestral sampling on the same time grid with the
guidance -ζ (α_{t|s}/σ²_{t|s}) ∇‖y - A(x̂_0)‖ is Algorithm 1, and other samplers follow the same reverse
SDE. Where the noise σ_y is given, the smaller of both weights is taken,

    ∇ log p(y | x_t) ≈ -min(‖y - A(x̂_0)‖/σ_y², ζ α_{t|s}/σ²_{t|s}) ∇‖y - A(x̂_0)‖

never more than the likelihood says, and never a longer step than Algorithm 1's, which keeps small σ_y
stable. Nor does a step go beyond the zero of the linearized residual, ‖y - A(x̂_0)‖/‖∇‖y - A(x̂_0)‖‖² in
place of ζ where that is less (Polyak's step length): else samples of few dimensions, where a step of length
ζ is long, would never come to rest.

Assumes that x_0 is known given x_t, which is true at the end only: while there is much noise the guidance
is too strong for the likelihood, and where ζ bounds it the spread of the samples depends on ζ and the
number of steps.

Reference:
    Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2023),
        https://arxiv.org/abs/2209.14687.
"""

from __future__ import annotations

import torch
from torch import Tensor

from score_diffusion.samplers.grids import uniform_grid
from score_diffusion.samplers.inverse.operators import Operator
from score_diffusion.samplers.inverse.posterior import Denoised, PosteriorScore
from score_diffusion.sde_lib import SDE, InputError, ScoreFunction, expand
from score_diffusion.sde_lib.per_sample import dot_each

ROUNDING = 1e-6  # of times in single precision, relative to T


class DPS(PosteriorScore):
    """Diffusion posterior sampling, for every differentiable operator.

    Args:
        score: The score function of the prior.
        sde: Its SDE.
        operator: The measurement A.
        y: The measurement of all samples, shape (*output_shape), or one for each, (B, *output_shape).
        sigma_y: Standard deviation of its noise; 0 for Algorithm 1 as it stands.
        zeta: ζ of Algorithm 1, for the gradient of the residual's norm; None for Theorem 1 as it stands.
        times: The time grid whose steps ζ belongs to, that of the sampler; None for 1000 uniform steps.

    Raises:
        InputError: If zeta is not positive, or sigma_y not where zeta is None; or as for PosteriorScore.
    """

    def __init__(
        self,
        score: ScoreFunction,
        sde: SDE,
        operator: Operator,
        y: Tensor,
        sigma_y: float = 0.0,
        *,
        zeta: float | None = 1.0,
        times: Tensor | None = None,
    ) -> None:
        super().__init__(score, sde, operator, y, sigma_y)
        if zeta is None and not sigma_y > 0:
            raise InputError(f"zeta=None needs sigma_y > 0, the noise of the likelihood, got {sigma_y}")
        if zeta is not None and not zeta > 0:
            raise InputError(f"zeta must be positive, got {zeta}")
        self.zeta = zeta
        grid = uniform_grid(sde, 1000) if times is None else torch.as_tensor(times, dtype=torch.float64).cpu()
        self._times = grid.flip(0).contiguous()  # ascending
        alpha_ts, var_ts = sde.transition(self._times[:-1], self._times[1:])
        last = self._times[0]  # from there a step to no noise at all
        self._weights = torch.cat([(sde.alpha(last) / sde.sigma(last).square())[None], alpha_ts / var_ts])

    def _weight(self, t: Tensor) -> Tensor:
        """α_{t|s}/σ²_{t|s} of the grid's step that t lies in, shape (B,)."""
        t = t.double() - ROUNDING * self.sde.T
        index = torch.searchsorted(self._times.to(t.device), t.contiguous())
        return self._weights.to(t.device)[index.clamp_max(len(self._weights) - 1)]

    def guidance(self, denoised: Denoised) -> Tensor:
        with torch.enable_grad():
            x_0 = denoised.x_0.detach().requires_grad_()
            norm = torch.linalg.vector_norm(self.residual(x_0).flatten(1), dim=1)
            (gradient,) = torch.autograd.grad(norm.sum(), x_0)
        gradient, norm = denoised.vjp(gradient), norm.detach().double()
        weights = []
        if self.sigma_y > 0:
            weights.append(norm / self.sigma_y**2)  # Theorem 1
        if self.zeta is not None:
            curvature = dot_each(gradient, gradient).clamp_min(torch.finfo(torch.float64).tiny)
            length = torch.minimum(norm / curvature, torch.full_like(norm, self.zeta))
            weights.append(length * self._weight(denoised.t))  # Algorithm 1
        return -gradient * expand(torch.stack(weights).amin(0), x_0)
