"""Likelihoods by exponential Adams methods whose steps and orders follow from a tolerance.

The equations are those of `exponential_adams.py`. A step predicts through the last k values, evaluates once
at the prediction, and corrects through the last k values and the new one. Two less accurate corrections use
the newest k values, and the newest k - 1:

- The difference between the first two is the estimated error of the step, and the more accurate one is kept
  (local extrapolation). A step whose error is too large is repeated with a shorter length.
- k rises while the differences shrink from one order to the next. It falls where they do not, because a
  polynomial of higher degree is no better there.

Step lengths are measured along `early_grid`, the grid of the fixed-step method.

References:
    Computer Solution of Ordinary Differential Equations: The Initial Value Problem (Shampine & Gordon, 1975):
        the choice of step and order of Adams methods.
    Solving Ordinary Differential Equations I (Hairer, Nørsett & Wanner, 1993): Section III.5, variable steps.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from score_diffusion.samplers.adams_table import AdamsTable
from score_diffusion.samplers.exponential_adams import rate
from score_diffusion.samplers.grids import early_grid
from score_diffusion.sde_lib import SDE, InputError
from score_diffusion.sde_lib.likelihood import DensityField, Solution, density_norm

GRID_STEPS = 1024  # of the grid along which step lengths are measured
FIRST_STEP, SHORTEST_STEP = 1 / 256, 1e-9  # in units of the whole grid
SAFETY, SHRINK, GROW = 0.9, 0.25, 2.0  # of the factor from one step length to the next


@dataclass(frozen=True)
class _Trial:
    """A step that may be too long; its tensors have shape (B, D + P)."""

    value: Tensor
    """The new value."""
    change: Tensor
    """The change of the state by the correction through k + 1 values."""
    error: Tensor
    """Its difference from the correction through k values."""
    lower: Tensor
    """The difference of that from the correction through k - 1 values; for k = 1, from no change at all."""


class AdaptiveAdams:
    """Solves for x_T and the log density within a tolerance, with one evaluation a step.

    Args:
        rtol: Relative tolerance of a step, met by every sample.
        atol: Absolute tolerance of a step, met by every sample, in units of x and in nats.
        order: Largest number of values that a prediction interpolates.
        data_std: Standard deviation of the data that is solved exactly.

    Raises:
        InputError: If a tolerance is not positive, or the order is below 1.
    """

    def __init__(
        self, rtol: float = 1e-5, atol: float = 1e-5, *, order: int = 6, data_std: float = 0.7
    ) -> None:
        if not (rtol > 0 and atol > 0):
            raise InputError(f"rtol and atol must be above 0, got {rtol} and {atol}")
        if order < 1:
            raise InputError(f"order must be at least 1, got {order}")
        self.rtol, self.atol, self.order, self.data_std = rtol, atol, order, data_std

    def __call__(self, sde: SDE, field: DensityField, x: Tensor, eps: float) -> Solution:
        """The solution at T, and a less accurate one.

        Raises:
            InputError: If no step meets the tolerance, or the score is not finite.
        """
        grid = early_grid(sde, GRID_STEPS, eps).flip(0)
        position, step = 0.0, FIRST_STEP  # in units of the whole grid
        times = deque([grid[0]], maxlen=self.order)  # the newest last
        table = self._table(sde, times)
        first_scale, D, order = table.scale[0].item(), field.dimensions, 1
        state = torch.nn.functional.pad(x.double().flatten(1) / first_scale, (0, field.estimates))
        values, coarser = deque([rate(table, 0, field, state)], maxlen=self.order), state
        while position < 1:
            if step < SHORTEST_STEP:
                raise InputError(
                    f"the solver found no step that meets rtol={self.rtol} and atol={self.atol}: raise the "
                    "tolerances"
                )
            end = 1.0 if position + 1.01 * step >= 1 else position + step
            time = _interpolated(grid, end)
            table = self._table(sde, [*times, time])
            trial = _try(table, list(values), state, order, field)
            scale = table.scale[-1].item()
            size = functools.partial(self._size, state, state + trial.change, scale, D)
            error = size(trial.error)
            if not math.isfinite(error):
                raise InputError(
                    f"the score or its divergence is not finite near t = {time:.2g}: check the score"
                )
            step *= min(max(SAFETY * max(error, 1e-12) ** (-1 / (order + 1)), SHRINK), GROW)
            if error > 1:
                continue
            position, state = end, state + trial.change
            coarser = coarser + trial.change - trial.error
            times.append(time)
            values.append(trial.value)
            if order > 1 and size(trial.lower) <= error:
                order -= 1
            elif order < len(values):
                order += 1
        log_scale = D * math.log(scale / first_scale)

        def solution(at_end: Tensor, others: tuple[Solution, ...] = ()) -> Solution:
            return Solution((at_end[:, :D] * scale).reshape(field.shape), at_end[:, D:] + log_scale, others)

        return solution(state, (solution(coarser),))

    def _table(self, sde: SDE, times: Sequence[Tensor]) -> AdamsTable:
        return AdamsTable(sde, torch.stack(list(times)), "clock", self.data_std)

    def _size(self, old: Tensor, new: Tensor, scale: float, dimensions: int, error: Tensor) -> float:
        """An error in units of the tolerance, in x and log p."""
        units = torch.ones_like(error)
        units[:, :dimensions] = scale  # from y to x
        largest = torch.maximum(old.abs(), new.abs()) * units
        return density_norm(error * units / (self.atol + self.rtol * largest), dimensions).item()


def _interpolated(grid: Tensor, position: float) -> Tensor:
    """The time at a position in [0, 1] of a grid, linear between its times."""
    steps = len(grid) - 1
    i = min(int(position * steps), steps - 1)
    return torch.lerp(grid[i], grid[i + 1], position * steps - i)


def _try(table: AdamsTable, values: list[Tensor], state: Tensor, order: int, field: DensityField) -> _Trial:
    """A step to the last time of the table from the one before.

    Args:
        table: The coefficients at the times of the values and at the new time.
        values: The values, the newest last.
        state: The state at the time of the newest value.
        order: Number k of values that the prediction interpolates.
        field: The score and its divergence.
    """
    new = len(values)

    def change(known: list[Tensor], count: int) -> Tensor:
        nodes = range(len(known) - count, len(known))
        weights = table.weights(new - 1, new, nodes).tolist()
        return functools.reduce(torch.add, (w * known[i] for w, i in zip(weights, nodes, strict=True)))

    value = rate(table, new, field, state + change(values, order))
    known = [*values, value]
    best, middle = change(known, order + 1), change(known, order)
    lower = change(known, order - 1) if order > 1 else torch.zeros_like(middle)
    return _Trial(value, best, best - middle, middle - lower)
