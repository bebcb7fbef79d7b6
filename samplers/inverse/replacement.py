"""Replacement: the measured part of x_t follows the measurement, the rest follows the score.

With the decomposition A = U diag(s) Vᵀ the measurement is ȳ = diag(1/s) Uᵀ y = Vᵀ x_0 + (σ_y/s) z. It is
what the diffusion would make of Vᵀ x_0 at the noise level σ_y/s. So above that level, with σ̃_t = σ_t/α_t,
the measured part of x_t is ȳ with more noise, whose score is known, and below it nothing else is known:

    Vᵀ x_t | y ~ N(α_t ȳ, α_t² (σ̃_t² - σ_y²/s²))
    Vᵀ ∇ log p(x_t | y) ≈ (α_t ȳ - Vᵀ x_t)/(α_t² (σ̃_t² - σ_y²/s²))    if σ̃_t > σ_y/s, else Vᵀ score

and the rest takes the score of the unconditional law at the whole x_t. The variance is kept above a quarter
of σ_t², for the sake of the steps that cross the level. `strength` λ < 1 mixes the two scores of the
measured part.

For a mask this is inpainting, for a mean over channels colorization, as in score SDE, where the measured part
is overwritten with α_t y + σ_t z after every step. Here it moves by its own reverse SDE, from the prior to
y, jointly with the rest: samplers need no change and, without noise and with a final denoising, known
pixels come out exact. For A = I and a stochastic sampler the method is exact: it denoises y by the reverse
SDE from the level of y. (A deterministic sampler would take the one state y to one sample.)

Assumes that the rest depends on the measured part at the same noise level only. It does not, because a
clean known part tells more than a noisy one: across the border of a mask things agree less than in the
posterior, unless they are independent.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
        https://arxiv.org/abs/2011.13456: Appendix I.2, imputation and colorization.
    Solving Inverse Problems in Medical Imaging with Score-Based Generative Models (Song et al., 2022),
        https://arxiv.org/abs/2111.08005: Section 3, projection with λ.
    SNIPS: Solving Noisy Inverse Problems Stochastically (Kawar et al., 2021),
        https://arxiv.org/abs/2105.14951: a noisy measurement as a state of the diffusion, singular value by
        singular value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from score_diffusion.samplers.inverse.operators import Operator
from score_diffusion.samplers.inverse.posterior import checked_measurement, checked_sigma, measurement_of
from score_diffusion.sde_lib import SDE, InputError, ScoreFunction, ScoreWrapper, expand
from score_diffusion.sde_lib.score_wrapper import Condition, Evaluation

LEAST_VARIANCE = 0.25  # of the measured part, in units of σ_t²


class Replacement(ScoreWrapper):
    """Replacement, for operators with a fast decomposition: inpainting, colorization, projection.

    Args:
        score: The score function of the prior.
        sde: Its SDE.
        operator: The measurement A, with a decomposition.
        y: The measurement of all samples, shape (*output_shape), or one for each, (B, *output_shape).
        sigma_y: Standard deviation of its noise, at least 0.
        strength: λ in (0, 1].

    Raises:
        InputError: If the operator has no decomposition, y or sigma_y do not fit, or strength lies outside
            (0, 1].
    """

    def __init__(
        self,
        score: ScoreFunction,
        sde: SDE,
        operator: Operator,
        y: Tensor,
        sigma_y: float = 0.0,
        *,
        strength: float = 1.0,
    ) -> None:
        super().__init__(score)
        if not 0 < strength <= 1:
            raise InputError(f"strength must lie in (0, 1], got {strength}")
        self.sde, self.strength, self.sigma_y = sde, strength, checked_sigma(sigma_y)
        self._svd = operator.svd()
        self._y = checked_measurement(operator, y)

    def evaluate(self, inner: Evaluation, x: Tensor, t: Tensor, cond: Condition = None) -> tuple[Tensor, ...]:
        score, *fraction = inner(x, t, cond)
        svd, s = self._svd, self._svd.s.to(x)
        known = svd.Ut(measurement_of(self._y, x)) / s  # ȳ, (1 or B, R)
        score_c, x_c = svd.Vt(score), svd.Vt(x)  # (B, R)
        alpha, sigma = (expand(f(t.double()), x_c) for f in (self.sde.alpha, self.sde.sigma))
        noise = (alpha * self.sigma_y / s).square()  # of ȳ, at the scale of x_t
        variance = torch.maximum(sigma.square() - noise, LEAST_VARIANCE * sigma.square())
        target = torch.where(sigma.square() > noise, (alpha * known - x_c) / variance, score_c)
        return (score + self.strength * svd.V(target - score_c), *fraction)
