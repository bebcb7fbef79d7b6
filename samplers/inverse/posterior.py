"""Posterior samplers as score functions: what all of them share.

    ∇ log p(x_t | y) = ∇ log p_t(x_t) + ∇ log p(y | x_t),    y = A(x_0) + σ_y z

The first term is the score; the second is the guidance, which is intractable, because p(y | x_t) is the
mean of N(y; A(x_0), σ_y² I) over p(x_0 | x_t). A method is an approximation of it from x̂_0 = E[x_0 | x_t],
Tweedie's formula, and mostly its Jacobian J = ∂x̂_0/∂x_t, which is symmetric for an exact score:

    x̂_0 = (x_t + σ_t² score)/α_t,    V[x_0 | x_t] = (σ_t²/α_t) J

A `PosteriorScore` is a score function like the one that it wraps: it works with every sampler, SDE and time
grid. One call is one evaluation of the score; methods that need J differentiate through it besides.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from score_diffusion.samplers.inverse.operators import LinearOperator, Operator, batch_shape
from score_diffusion.sde_lib import SDE, InputError, ScoreFunction, ScoreWrapper, denoised_from
from score_diffusion.sde_lib.score_wrapper import Condition, Evaluation


@dataclass(frozen=True)
class Denoised:
    """x̂_0 = E[x_0 | x_t] where a posterior score is evaluated."""

    x_0: Tensor
    """x̂_0, shape (B, *shape)."""
    t: Tensor
    """The times, shape (B,)."""
    alpha: Tensor
    """α_t, shape (B,), float64."""
    sigma: Tensor
    """σ_t, shape (B,), float64."""
    vjp: Callable[[Tensor], Tensor]
    """v -> Jᵀ v with J = ∂x̂_0/∂x_t, both of shape (B, *shape)."""


class PosteriorScore(ScoreWrapper):
    """The score ∇ log p(x_t | y) of a method that approximates ∇ log p(y | x_t) through x̂_0.

    Args:
        score: The score function of the prior.
        sde: Its SDE.
        operator: The measurement A.
        y: The measurement of all samples, shape (*output_shape), or one for each, (B, *output_shape).
        sigma_y: Standard deviation of its noise, at least 0.

    Raises:
        InputError: If y does not have the operator's output_shape, or sigma_y is negative.
    """

    def __init__(
        self, score: ScoreFunction, sde: SDE, operator: Operator, y: Tensor, sigma_y: float = 0.0
    ) -> None:
        super().__init__(score)
        self.sde = sde
        self.operator = operator
        self.y = checked_measurement(operator, y)
        self.sigma_y = checked_sigma(sigma_y)

    @abstractmethod
    def guidance(self, denoised: Denoised) -> Tensor:
        """The approximation of ∇ log p(y | x_t), shape (B, *shape)."""

    def residual(self, x_0: Tensor) -> Tensor:
        """y - A(x_0), shape (B, *output_shape)."""
        return measurement_of(self.y, x_0) - self.operator(x_0)

    def evaluate(self, inner: Evaluation, x: Tensor, t: Tensor, cond: Condition = None) -> tuple[Tensor, ...]:
        alpha, sigma = self.sde.alpha(t.double()), self.sde.sigma(t.double())
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            score, *fraction = inner(x, t, cond)
            x_0 = denoised_from(self.sde, score, x, t.double())

        def vjp(v: Tensor) -> Tensor:
            return torch.autograd.grad(x_0, x, v, retain_graph=True)[0]

        guidance = self.guidance(Denoised(x_0.detach(), t, alpha, sigma, vjp))
        return (score.detach() + guidance, *(f.detach() for f in fraction))


def checked_measurement(operator: Operator, y: Tensor) -> Tensor:
    """The measurement with a batch dimension in front, (1, *output_shape) or (B, *output_shape).

    Raises:
        InputError: If y does not have the operator's output_shape.
    """
    shape = operator.output_shape
    if y.shape == shape:
        return y[None]
    if y.shape[1:] != shape or y.ndim == 0:
        raise InputError(
            f"y must have the shape of this {type(operator).__name__}'s measurements, {shape} or "
            f"{batch_shape(shape)}, got {tuple(y.shape)}"
        )
    return y


def checked_linear(operator: Operator, method: str) -> LinearOperator:
    """The operator.

    Raises:
        InputError: If it is not linear, as the method needs.
    """
    if not isinstance(operator, LinearOperator):
        raise InputError(
            f"{method} needs a linear operator, got {type(operator).__name__}: use DPS or the twisted sampler"
        )
    return operator


def checked_sigma(sigma_y: float) -> float:
    """sigma_y.

    Raises:
        InputError: If it is negative.
    """
    if not sigma_y >= 0:
        raise InputError(f"sigma_y must be >= 0, the standard deviation of the noise, got {sigma_y}")
    return float(sigma_y)


def measurement_of(y: Tensor, x: Tensor) -> Tensor:
    """The measurements y, shape (1 or B, *output_shape), in the dtype and on the device of the samples x.

    Raises:
        InputError: If there are measurements of another number of samples.
    """
    if len(y) not in (1, len(x)):
        raise InputError(
            f"y holds the measurements of {len(y)} samples, the score is evaluated for {len(x)}: give one "
            "measurement for all samples, or a sampler that evaluates all samples at once"
        )
    return y.to(x)
