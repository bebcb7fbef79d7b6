"""Likelihoods by the exponential Adams-Bashforth-Moulton method, a solver for `log_likelihood`.

In y = x/(α H) (see `adams_table.py`) the probability-flow ODE is dy = -v/H² dσ̃. By the change of variables

    log p_ε(x_ε) = log p_T(x_T) + D log(α_T H_T / (α_ε H_ε)) - ∫_{σ̃_ε}^{σ̃_T} α H ∇_x·v / H² dσ̃.

The integrand of the log density is treated as that of y is: it is interpolated through the same times, and so
integrated with the same weights. A step takes one evaluation: it predicts through the last values, evaluates
at the prediction, and corrects with the new value.

Two cheaper solutions from the same values estimate the error: one takes every second value, the other leaves
out the corrections. Neither knows the values at the corrected states, so that the estimate gives the size of
the error and no bound.

References:
    Exponential Integrators (Hochbruck & Ostermann, 2010), Section 2.5: exponential Adams methods.
    FFJORD (Grathwohl et al., 2019), https://arxiv.org/abs/1810.01367: the change of variables.
"""

from __future__ import annotations

import functools
import math
from collections import deque

import torch
from torch import Tensor

from score_diffusion.samplers.adams_table import AdamsTable
from score_diffusion.samplers.grids import early_grid
from score_diffusion.sde_lib import SDE, InputError
from score_diffusion.sde_lib.likelihood import DensityField, Solution

MIN_STEPS = 8


class ExponentialAdams:
    """Solves for x_T and the log density in a fixed number of steps, without adaptation.

    A sample's result does not depend on its batch, because no step size does.

    Args:
        steps: Number of steps, even, at least 8; steps + 1 evaluations of the score.
        order: Number of values that a prediction interpolates, fewer in the first steps; a correction takes
            one more.
        data_std: Standard deviation of the data that is solved exactly.

    Raises:
        InputError: If steps is odd or below 8, or the order is below 1.
    """

    def __init__(self, steps: int = 128, *, order: int = 4, data_std: float = 0.7) -> None:
        if steps < MIN_STEPS or steps % 2:
            raise InputError(f"steps must be an even number of at least {MIN_STEPS}, got {steps}")
        if order < 1:
            raise InputError(f"order must be at least 1, got {order}")
        self.steps, self.order, self.data_std = steps, order, data_std

    def __call__(self, sde: SDE, field: DensityField, x: Tensor, eps: float) -> Solution:
        """The solution at T, and two less accurate ones."""
        table = AdamsTable(sde, early_grid(sde, self.steps, eps).flip(0), "clock", self.data_std)
        scale, D = table.scale.tolist(), field.dimensions
        values: deque[Tensor] = deque(maxlen=2 * self.order + 1)  # the newest first, each (B, D + P)

        def change(a: int, b: int, count: int, every: int = 1) -> Tensor:
            """The integral from time a to time b through the last `count` of every so many values."""
            nodes = range(newest, max(newest - every * count, -1), -every)
            weights = table.weights(a, b, nodes).tolist()
            terms = (w * values[newest - node] for w, node in zip(weights, nodes, strict=True))
            return functools.reduce(torch.add, terms)

        start = torch.nn.functional.pad(x.double().flatten(1) / scale[0], (0, field.estimates))
        predicted = corrected = uncorrected = coarse = start  # (B, D + P): y and the change of log p
        for newest in range(self.steps + 1):
            (p, q), t = table.values[newest], table.at.t[newest].to(x.device)
            values.appendleft(rate(field, predicted, t, scale[newest], p, q))
            if newest > 0:
                corrected = corrected + change(newest - 1, newest, self.order + 1)
                if newest % 2 == 0:
                    coarse = coarse + change(newest - 2, newest, self.order, every=2)
            if newest < self.steps:
                step = change(newest, newest + 1, self.order)
                predicted, uncorrected = corrected + step, uncorrected + step

        def solution(end: Tensor, others: tuple[Solution, ...] = ()) -> Solution:
            latent = (end[:, :D] * scale[-1]).reshape(field.shape)
            return Solution(latent, end[:, D:] + D * math.log(scale[-1] / scale[0]), others)

        return solution(corrected, (solution(coarse), solution(uncorrected)))


Coefficient = float | Tensor
"""A number for all samples, or one for each: shape (B, 1)."""


def rate(
    field: DensityField, state: Tensor, t: Tensor, scale: Coefficient, p: Coefficient, q: Coefficient
) -> Tensor:
    """v = p x + q score and its divergence in y = x/scale.

    Args:
        field: The score and its divergence.
        state: y and the change of log p, shape (B, D + P), float64.
        t: The time, or that of each sample (B,).
        scale, p, q: The coefficients there.

    Returns:
        Shape (B, D + P), float64.
    """
    D = field.dimensions
    x_t = state[:, :D] * scale
    s, traces = field(x_t.reshape(field.shape), t)
    return torch.cat([p * x_t + q * s.flatten(1), scale * (p * D + q * traces)], dim=1)
