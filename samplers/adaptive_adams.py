"""Likelihoods by exponential Adams methods whose steps and orders follow from a tolerance.

The equations are those of `exponential_adams.py`. A step predicts through the last k values, evaluates once
at the prediction, and corrects through the last k values and the new one. Two less accurate corrections use
the newest k values, and the newest k - 1:

- The difference between the first two is the estimated error of the step, and the more accurate one is kept
  (local extrapolation). A step whose error is too large is repeated with a shorter length.
- k rises while the differences shrink from one order to the next. It falls where they do not, because a
  polynomial of higher degree is no better there.

Every sample has its own times, step lengths and orders, so that its result does not depend on the batch. Step
lengths are measured along `early_grid`, the grid of the fixed-step method.

References:
    Computer Solution of Ordinary Differential Equations: The Initial Value Problem (Shampine & Gordon, 1975):
        the choice of step and order of Adams methods.
    Solving Ordinary Differential Equations I (Hairer, Nørsett & Wanner, 1993): Section III.5, variable steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from score_diffusion.samplers.adams_table import linear_coefficients, step_weights
from score_diffusion.samplers.exponential_adams import rate
from score_diffusion.samplers.grids import early_grid
from score_diffusion.samplers.linear import GridCoefficients
from score_diffusion.sde_lib import SDE, InputError
from score_diffusion.sde_lib.likelihood import DensityField, Solution, density_error_size
from score_diffusion.sde_lib.ode_solver import check_tolerances
from score_diffusion.sde_lib.per_sample import flags_like

GRID_STEPS = 1024  # of the grid along which step lengths are measured
FIRST_STEP, SHORTEST_STEP = 1 / 256, 1e-9  # in units of the whole grid
SAFETY, SHRINK, GROW = 0.9, 0.25, 2.0  # of the factor from one step length to the next


@dataclass(frozen=True)
class _Times:
    """A time of each sample and the coefficients there, each (B,), float64, on the CPU."""

    t: Tensor
    lam: Tensor
    scale: Tensor
    """x = scale · y."""
    p: Tensor
    q: Tensor
    """v = p x + q score."""

    @classmethod
    def at(cls, sde: SDE, t: Tensor, data_std: float) -> _Times:
        at = GridCoefficients(sde, t)
        return cls(t, at.lam, *linear_coefficients(at, data_std))

    def rate(self, field: DensityField, state: Tensor) -> Tensor:
        """v and its divergence at the states (B, D + P)."""
        t, *coefficients = (each.to(state.device) for each in (self.t, self.scale, self.p, self.q))
        return rate(field, state, t, *(each[:, None] for each in coefficients))


@dataclass(frozen=True)
class _Path:
    """How far each sample has come."""

    position: Tensor
    """In units of the whole grid, (B,)."""
    now: Tensor
    """λ there, (B,)."""
    state: Tensor
    """y and the change of log p, (B, D + P)."""
    coarser: Tensor
    """The same by the less accurate corrections."""
    values: Tensor
    """v at the times of the path, the newest first, (B, order, D + P)."""
    lams: Tensor
    """λ of these values, (B, order)."""
    known: Tensor
    """How many of them there are, (B,)."""


@dataclass(frozen=True)
class _Trial:
    """Steps that may be too long; tensors of shape (B, D + P)."""

    value: Tensor
    """The new values."""
    change: Tensor
    """The change of the state by the correction through k + 1 values."""
    error: Tensor
    """Its difference from the correction through k values."""
    lower: Tensor
    """The difference of that from the correction through k - 1 values; for k = 1, from no change at all."""


class _Interpolation:
    """Integrals of the polynomials through the newest values, over a step of each sample."""

    def __init__(self, start: Tensor, end: Tensor, lams: Tensor, values: Tensor, data_std: float) -> None:
        self.values, self.weights = values, step_weights(start, end, lams, data_std)

    def change(self, count: Tensor) -> Tensor:
        """The integrals through the newest values, `count` of them (B,): shape (B, D + P)."""
        rows = self.weights[torch.arange(len(count)), (count - 1).clamp_min(0)]  # (B, k)
        used = torch.arange(rows.shape[1]) < count[:, None]
        weights = torch.where(used, rows, 0.0).to(self.values.device)
        total = torch.zeros_like(self.values[:, 0])
        for j in range(weights.shape[1]):
            total = torch.addcmul(total, weights[:, j, None], self.values[:, j])
        return total


class AdaptiveAdams:
    """Solves for x_T and the log density within a tolerance, with one evaluation a step.

    Args:
        rtol: Relative tolerance of a step of each sample.
        atol: Absolute tolerance of a step of each sample, in units of x and in nats.
        order: Largest number of values that a prediction interpolates.
        data_std: Standard deviation of the data that is solved exactly.

    Raises:
        InputError: If a tolerance is not positive, or the order is below 1.
    """

    def __init__(
        self, rtol: float = 1e-5, atol: float = 1e-5, *, order: int = 6, data_std: float = 0.7
    ) -> None:
        check_tolerances(rtol, atol)
        if order < 1:
            raise InputError(f"order must be at least 1, got {order}")
        self.rtol, self.atol, self.order, self.data_std = rtol, atol, order, data_std

    def __call__(self, sde: SDE, field: DensityField, x: Tensor, eps: float) -> Solution:
        """The solution at T, and a less accurate one.

        Raises:
            InputError: If no step meets the tolerance, or the score is not finite.
        """
        grid, D = early_grid(sde, GRID_STEPS, eps).flip(0), field.dimensions
        ends = _Times.at(sde, grid[[0, -1]], self.data_std)
        first_scale, last_scale = ends.scale.tolist()
        path = self._start(sde, field, x, grid[0].item())
        step = torch.full_like(path.position, FIRST_STEP)
        order = torch.ones_like(path.known)  # k of each sample
        while (active := path.position < 1).any():
            if (step[active] < SHORTEST_STEP).any():
                raise InputError(
                    f"the solver found no step that meets rtol={self.rtol} and atol={self.atol}: raise the "
                    "tolerances"
                )
            position = torch.where(path.position + 1.01 * step >= 1, 1.0, path.position + step)
            new = _Times.at(sde, _interpolated(grid, position), self.data_std)
            trial = self._try(field, path, new, order)
            error, lower = (self._size(each, path, trial, new, D) for each in (trial.error, trial.lower))
            if (failed := active & ~error.isfinite()).any():
                where = new.t[failed][0].item()
                raise InputError(
                    f"the score or its divergence is not finite near t = {where:.2g}: check the score"
                )
            factor = SAFETY * error.clamp_min(1e-12) ** (-1 / (order + 1))
            step = torch.where(active, step * factor.clamp(SHRINK, GROW), step)  # the others have no error
            taken = active & (error <= 1)
            path = _with_steps_taken(path, trial, new, position, taken)
            falls = (order > 1) & (lower <= error)
            order = torch.where(taken, torch.where(falls, order - 1, (order + 1).minimum(path.known)), order)
        log_scale = D * math.log(last_scale / first_scale)

        def solution(at_end: Tensor, others: tuple[Solution, ...] = ()) -> Solution:
            latent = (at_end[:, :D] * last_scale).reshape(field.shape)
            return Solution(latent, at_end[:, D:] + log_scale, others)

        return solution(path.state, (solution(path.coarser),))

    def _start(self, sde: SDE, field: DensityField, x: Tensor, t: float) -> _Path:
        now = _Times.at(sde, torch.full((len(x),), t, dtype=torch.float64), self.data_std)
        state = torch.nn.functional.pad(x.double().flatten(1) / now.scale[0].item(), (0, field.estimates))
        values = now.rate(field, state)[:, None].repeat(1, self.order, 1)
        lams = now.lam[:, None].repeat(1, self.order)
        known = torch.ones(len(x), dtype=torch.long)
        return _Path(torch.zeros_like(now.t), now.lam, state, state, values, lams, known)

    def _try(self, field: DensityField, path: _Path, new: _Times, order: Tensor) -> _Trial:
        """Steps to new times, by predictions through the newest k values; k = order, (B,)."""
        predict = _Interpolation(path.now, new.lam, path.lams, path.values, self.data_std)
        value = new.rate(field, path.state + predict.change(order))
        lams = torch.cat([new.lam[:, None], path.lams], 1)
        values = torch.cat([value[:, None], path.values], 1)
        correct = _Interpolation(path.now, new.lam, lams, values, self.data_std)
        best, middle, lower = (correct.change(order + more) for more in (1, 0, -1))
        return _Trial(value, best, best - middle, middle - lower)

    def _size(self, error: Tensor, path: _Path, trial: _Trial, new: _Times, dimensions: int) -> Tensor:
        """The size of errors of the steps in units of the tolerance, (B,)."""
        units = torch.ones_like(error)
        units[:, :dimensions] = new.scale[:, None].to(error.device)  # from y to x
        largest = torch.maximum(path.state.abs(), (path.state + trial.change).abs()) * units
        scaled = error * units / (self.atol + self.rtol * largest)
        return density_error_size(scaled, dimensions).cpu()


def _with_steps_taken(path: _Path, trial: _Trial, new: _Times, position: Tensor, taken: Tensor) -> _Path:
    """The path with the steps of some samples, those that are `taken` (B,)."""

    def choose(after: Tensor, before: Tensor) -> Tensor:
        return torch.where(flags_like(taken.to(before.device), before), after, before)

    def with_newest(value: Tensor, history: Tensor) -> Tensor:
        return choose(torch.cat([value[:, None], history[:, :-1]], 1), history)

    return _Path(
        choose(position, path.position),
        choose(new.lam, path.now),
        choose(path.state + trial.change, path.state),
        choose(path.coarser + trial.change - trial.error, path.coarser),
        with_newest(trial.value, path.values),
        with_newest(new.lam, path.lams),
        (path.known + taken).clamp_max(path.lams.shape[1]),
    )


def _interpolated(grid: Tensor, position: Tensor) -> Tensor:
    """The times at positions in [0, 1] of a grid, linear between its times."""
    steps = len(grid) - 1
    i = (position * steps).long().clamp_max(steps - 1)
    return torch.lerp(grid[i], grid[i + 1], position * steps - i)
