"""Plug-and-play restoration (DiffPIR): x̂_0 is corrected towards the measurement before each step.

    x̂_0' = argmin_x ‖y - A x‖² + ρ_t ‖x - x̂_0‖²,    ρ_t = λ σ_y²/σ̃²,   σ̃ = σ_t/α_t
         = x̂_0 + Aᵀ (A Aᵀ + ρ_t I)⁻¹ (y - A x̂_0)
    x_s  = α_s x̂_0' + σ_s (√(1 - ζ) ε̂' + √ζ z),    ε̂' = (x_t - α_t x̂_0')/σ_t

The correction is a score function, (α_t x̂_0' - x_t)/σ_t², for any sampler; the step is linear in x_t and
x̂_0', a table.

Assumes that p(x_0 | x_t) is N(x̂_0, σ̃²/λ I); needs no differentiation. It aims at one good image: samples
are too concentrated in what the measurement tells.

Reference:
    Denoising Diffusion Models for Plug-and-Play Image Restoration (Zhu et al., 2023),
        https://arxiv.org/abs/2305.08995: Algorithm 1.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from score_diffusion.samplers.grids import Grid
from score_diffusion.samplers.inverse.operators import Operator
from score_diffusion.samplers.inverse.posterior import (
    checked_linear,
    checked_measurement,
    checked_sigma,
    measurement_of,
)
from score_diffusion.samplers.linear import GridCoefficients, LinearSampler, Stage, one_stage_per_step
from score_diffusion.sde_lib import (
    SDE,
    InputError,
    ScoreFunction,
    ScoreWrapper,
    denoised_from,
    score_change,
)
from score_diffusion.sde_lib.score_wrapper import Condition, Evaluation


class DiffPIR(ScoreWrapper):
    """The score of the corrected x̂_0', for linear operators with a decomposition.

    Args:
        score: The score function of the prior.
        sde: Its SDE.
        operator: The measurement A, linear, with a decomposition.
        y: The measurement of all samples, shape (*output_shape), or one for each, (B, *output_shape).
        sigma_y: Standard deviation of its noise, at least 0; without noise x̂_0' fits y exactly.
        regularization: λ. 1 takes the noise for what it is; the paper's values, about 7 for images, trust
            x̂_0 more.

    Raises:
        InputError: If the operator is not linear or has no decomposition, y or sigma_y do not fit, or the
            regularization is not positive.
    """

    def __init__(
        self,
        score: ScoreFunction,
        sde: SDE,
        operator: Operator,
        y: Tensor,
        sigma_y: float = 0.0,
        *,
        regularization: float = 1.0,
    ) -> None:
        super().__init__(score)
        if not regularization > 0:
            raise InputError(f"regularization must be positive, got {regularization}")
        self.sde, self.operator, self.regularization = (
            sde,
            checked_linear(operator, "DiffPIR"),
            regularization,
        )
        self.y, self.sigma_y = checked_measurement(operator, y), checked_sigma(sigma_y)
        self._svd = operator.svd()

    def evaluate(self, inner: Evaluation, x: Tensor, t: Tensor, cond: Condition = None) -> tuple[Tensor, ...]:
        score, *fraction = inner(x, t, cond)
        alpha, sigma = self.sde.alpha(t.double()), self.sde.sigma(t.double())
        x_0 = denoised_from(self.sde, score, x, t.double())
        rho = self.regularization * (self.sigma_y * alpha / sigma).square()
        residual = measurement_of(self.y, x) - self.operator(x_0)
        correction = self.operator.adjoint(self._svd.solve(residual, torch.ones_like(rho), rho))
        return (score + score_change(self.sde, correction, t.double()), *fraction)


def diffpir_steps(
    sde: SDE, times: Tensor | Grid = Grid("clock", 49), *, denoise: bool = True, zeta: float = 0.6
) -> LinearSampler:
    """The sampler of DiffPIR: DDIM with a share of fresh noise. It takes the score `DiffPIR`.

    Args:
        sde, times, denoise: As for every `Sampler`.
        zeta: ζ in [0, 1], the share of fresh noise: 0 is DDIM. The paper's values are about 0.3.

    Raises:
        InputError: If zeta lies outside [0, 1].
    """
    if not 0 <= zeta <= 1:
        raise InputError(f"zeta must lie in [0, 1] (0: DDIM, 1: only fresh noise), got {zeta}")
    return LinearSampler(sde, times, partial(_stages, zeta=zeta), denoise=denoise)


def _stages(sde: SDE, times: Tensor, zeta: float) -> list[Stage]:
    """DiffPIR's steps as a table (Algorithm 1); its values are the denoised samples x̂_0'."""
    path = GridCoefficients(sde, times)
    alpha_t, alpha_s, sigma_t, sigma_s = path.alpha[:-1], path.alpha[1:], path.sigma[:-1], path.sigma[1:]
    keep = (1 - zeta) ** 0.5 * sigma_s / sigma_t
    denoised = (1 / alpha_t, sigma_t.square() / alpha_t)
    return one_stage_per_step(times, denoised, keep, alpha_s - keep * alpha_t, zeta**0.5 * sigma_s)
