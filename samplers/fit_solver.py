"""A sampler that is fitted to a score function: time grid and coefficients of one number of evaluations.

From a batch of x_T the probability flow is solved in many steps. What the sampler is fitted by is the
distance of its samples to those ends, in the geometric mean over the batch. It starts as `eabm`, whose
coefficients are fitted to prototype laws, and changes

    1. the grid: the logarithm of the density of steps, piecewise linear between some knots, one knot up or
       down at a time, with the coefficients that `eabm` has on each grid;
    2. the coefficients of all steps together, by their gradient (autograd through the score) and L-BFGS,
       whose first curvature is that of the prototype laws.

A third of the batch takes no part in the second and decides what is kept. `eabm` is among the candidates, so
that the result is never worse than it on these samples.

References:
    Learning to Discretize Denoising Diffusion ODEs (Tong et al., 2025), https://arxiv.org/abs/2405.15506: the
        distance to a teacher's solution as the objective, and gradients through the sampler.
    Numerical Optimization (Nocedal & Wright, 2006), Algorithm 7.4: the two loops of L-BFGS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from score_diffusion.samplers.exponential import eabm
from score_diffusion.samplers.grids import clock, clock_times, spread_grid
from score_diffusion.samplers.linear import GridCoefficients, LinearSampler
from score_diffusion.samplers.prototype_fit import PrototypeFit, default_laws
from score_diffusion.samplers.table_fit import Coordinates, Row, rows_of, stages_of
from score_diffusion.sde_lib import (
    SDE,
    ConditionalScore,
    InputError,
    ScoreFunction,
    generator_for,
    in_dtype,
    score_device,
)
from score_diffusion.sde_lib.score_wrapper import Condition, map_condition

BATCH = 72
HELD_OUT = 1 / 3  # of the batch
FINE_STEPS = 128  # of the reference solution, at least
EVALUATIONS = 128_000  # of all samples together: 64 samples by 1,000 steps of predictor and corrector
FOR_COEFFICIENTS = 0.7  # of the evaluations
KNOTS = 6
FIRST_CHANGE, LAST_CHANGE = 0.4, 0.05  # of the logarithm of the density at a knot
DAMPING = 1e-2  # of the first curvature, relative to its mean diagonal element
PIECE = 24  # samples whose gradient is computed at a time
MEMORY = 10  # steps of L-BFGS before it starts again, with the floor that fits the errors by then
SHORTEST = 1e-2  # step of L-BFGS, relative to the minimum of its model
FLOOR = 0.3  # of the median squared error: smaller errors count little, or single ones would be driven to 0

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SolverFit:
    """A fitted sampler, and how well it does."""

    sampler: LinearSampler
    """The sampler, without final denoising."""
    error: float
    """The geometric mean, over samples it was not fitted on, of the distance to the exact solution (of
    x_0, at the last time).
    """
    default_error: float
    """The same of `eabm`, which is the sampler if nothing better was found."""

    @property
    def is_default(self) -> bool:
        """Whether nothing better than `eabm` was found."""
        return not self.error < self.default_error


def fit_solver(
    score: ScoreFunction,
    sde: SDE,
    nfe: int,
    shape: Sequence[int],
    *,
    cond: Condition = None,
    seed: int = 0,
    batch: int = BATCH,
    evaluations: int = EVALUATIONS,
    on_step: Progress = lambda i, n: None,
) -> SolverFit:
    """Fits a sampler of `nfe` evaluations to a score function: exact, learned, conditional or guided.

    The result depends on the arguments only.

    Args:
        score: The score function, differentiable by autograd, as networks are.
        sde: The SDE.
        nfe: Evaluations of the sampler, one per step.
        shape: Shape of one sample.
        cond: The condition, as for a sampler: of shape (1, ...), or (batch, ...) with one for each sample.
        seed: Seed of x_T, any integer.
        batch: Number of samples that the sampler is fitted to and chosen by.
        evaluations: Evaluations that the fit may take, counted per sample.
        on_step: Called as on_step(i, n) after i of n evaluations.

    Raises:
        InputError: If nfe < 1, the batch is too small, or log(σ/α) is infinite at T or `sde.sampling_eps`.
    """
    if nfe < 1 or batch < 8:
        raise InputError(f"fitting needs nfe >= 1 and a batch of at least 8, got {nfe} and {batch}")
    generator = generator_for(seed, "fit_solver")
    x_T = sde.prior_std * torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
    steps = max(FINE_STEPS, 4 * nfe)
    flow = _Flow(score, sde, x_T.to(score_device(score)), steps, cond)
    return _Search(flow, nfe, evaluations - batch * steps, on_step).run()


@dataclass(frozen=True)
class _Candidate:
    """A grid with a table on it, in x̃ and σ̃, see `table_fit.py`."""

    at: GridCoefficients
    rows: Sequence[Row]

    def coefficients(self) -> list[Tensor]:
        """(keep, weights) of each step."""
        return [row.coefficients() for row in self.rows]

    def with_coefficients(self, coefficients: Sequence[Tensor]) -> _Candidate:
        """The same values combined by other coefficients."""
        moved = [row.with_coefficients(c) for row, c in zip(self.rows, coefficients, strict=True)]
        return _Candidate(self.at, moved)


class _Flow:
    """The score function in x̃ = x/α and σ̃ = σ/α, and where the probability flow carries a batch."""

    def __init__(self, score: ScoreFunction, sde: SDE, x_T: Tensor, steps: int, cond: Condition) -> None:
        self.score, self.sde, self.cond = in_dtype(score, torch.float32), sde, cond
        fine = spread_grid(sde, steps)
        alpha = sde.alpha(fine[[0, -1]]).tolist()
        self.start = x_T / alpha[0]
        self.end = eabm(sde, fine)(self.score, x_T.shape, x_T=x_T, cond=cond).samples / alpha[1]

    def _score_of(self, part: slice) -> ScoreFunction:
        """The score of part of the batch, each sample under its condition."""
        if self.cond is None:
            return self.score
        rows = map_condition(lambda value: value if len(value) == 1 else value[part], self.cond)
        return ConditionalScore(self.score, rows)

    def log_errors(self, candidate: _Candidate, coefficients: Sequence[Tensor], part: slice) -> Tensor:
        """The logarithm of the squared distance to the exact ends, for part of the batch, float64."""
        x, values, score = self.start[part], list[Tensor](), self._score_of(part)
        past = max(len(row.weights) for row in candidate.rows)
        ones = torch.ones(len(x), dtype=torch.float64, device=x.device)
        at = candidate.at
        for i, (row, c) in enumerate(zip(candidate.rows, coefficients, strict=True)):
            (a, b), c = row.value, c.to(x)
            alpha, sigma = at.alpha[i].item(), at.sigma[i].item()
            value = (a + b) * x + b * sigma**2 / alpha * score(alpha * x, at.t[i].item() * ones)
            values = [value, *values[: past - 1]]
            x = c[0] * x
            for weight, value in zip(c[1:], values, strict=False):
                x = x + weight * value
        return (x - self.end[part]).flatten(1).double().square().sum(1).clamp_min(1e-60).log()


class _Search:
    """The steps of the fit, within a number of evaluations."""

    def __init__(self, flow: _Flow, nfe: int, evaluations: int, on_step: Progress) -> None:
        self.flow, self.sde, self.nfe = flow, flow.sde, nfe
        self.left, self.total, self.on_step = evaluations, evaluations, on_step
        batch = len(flow.start)
        self.everything = slice(0, batch)
        self.fitted = slice(0, batch - round(HELD_OUT * batch))
        self.held_out = slice(self.fitted.stop, batch)

    def run(self) -> SolverFit:
        """Grid, then coefficients."""
        default = self.default(spread_grid(self.sde, self.nfe))
        at_default = self.error(default, default.coefficients(), self.held_out)
        best, least = self.fit_coefficients(self.fit_grid(default))
        if not least < at_default:
            sampler, least = eabm(self.sde, default.at.t), at_default
        else:
            sampler = LinearSampler(self.sde, best.at.t, lambda sde, times: stages_of(best.at, best.rows))
        return SolverFit(sampler, math.exp(least / 2), math.exp(at_default / 2))

    def default(self, times: Tensor) -> _Candidate:
        """`eabm` on a grid."""
        at = GridCoefficients(self.sde, times)
        return _Candidate(at, rows_of(at, eabm(self.sde, times).stages))

    def spend(self, evaluations: int) -> None:
        self.left -= evaluations
        self.on_step(min(self.total - self.left, self.total), self.total)

    @torch.no_grad()
    def error(self, candidate: _Candidate, coefficients: Sequence[Tensor], part: slice) -> float:
        """The mean logarithm of the squared error over part of the batch."""
        self.spend(self.nfe * (part.stop - part.start))
        found = self.flow.log_errors(candidate, coefficients, part).mean().item()
        return found if math.isfinite(found) else math.inf

    def fit_grid(self, start: _Candidate) -> _Candidate:
        """`eabm` on the grid with the smallest error over the whole batch."""
        change, width = torch.zeros(min(self.nfe, KNOTS), dtype=torch.float64), FIRST_CHANGE
        best, least = start, self.error(start, start.coefficients(), self.everything)
        reserve = FOR_COEFFICIENTS * self.left
        while self.nfe > 1 and width > LAST_CHANGE:
            before = least
            for k in range(len(change)):
                for sign in (1, -1):
                    if self.left - reserve < self.nfe * self.everything.stop:
                        return best
                    trial = change.clone()
                    trial[k] += sign * width
                    candidate = self.default(respaced(self.sde, start.at.t, trial))
                    error = self.error(candidate, candidate.coefficients(), self.everything)
                    if error < least:
                        least, best, change = error, candidate, trial
                        break
            if least == before:
                width /= 2
        return best

    def fit_coefficients(self, start: _Candidate) -> tuple[_Candidate, float]:
        """The coefficients on the way of L-BFGS with the smallest error of the held-out samples, and it."""
        prototypes = PrototypeFit(default_laws(), start.at.noise_level, start.rows)
        curvature = prototypes.curvature()
        damping = DAMPING * curvature.diagonal().mean() * torch.eye(len(curvature), dtype=torch.float64)
        factor = torch.linalg.cholesky(curvature + damping)
        coordinates = Coordinates(start.coefficients(), prototypes.coordinates.bases)
        coefficients = coordinates.coefficients

        z = best = coordinates.zero()
        least, moved = self.error(start, coordinates.first, self.held_out), True
        while self.left > 0 and moved:
            memory, step, moved = _Memory(factor), 1.0, False
            floor = self._floor(start, coefficients(z))
            value, slope = self._gradient(start, coefficients, z, floor)
            while self.left > 0 and step > SHORTEST and len(memory.pairs) < MEMORY:
                trial = z + step * memory.direction(slope)
                found, new_slope = self._gradient(start, coefficients, trial, floor)
                if not found < value:
                    step /= 4
                    continue
                memory.add(trial - z, new_slope - slope)
                z, value, slope, step, moved = trial, found, new_slope, 1.0, True
                held_out = self.error(start, coefficients(z), self.held_out)
                if held_out < least:
                    best, least = z, held_out
        return start.with_coefficients(coefficients(best)), least

    @torch.no_grad()
    def _floor(self, candidate: _Candidate, coefficients: Sequence[Tensor]) -> float:
        """The error below which a fitted sample counts little: a share of the median squared error."""
        self.spend(self.nfe * self.fitted.stop)
        return FLOOR * self.flow.log_errors(candidate, coefficients, self.fitted).exp().median().item()

    def _gradient(
        self, candidate: _Candidate, coefficients: Callable[[Tensor], list[Tensor]], z: Tensor, floor: float
    ) -> tuple[float, Tensor]:
        """The mean of log(squared error + floor) of the fitted samples and its derivative by z; inf if one is
        not finite.
        """
        z, slope = z.detach().requires_grad_(), torch.zeros_like(z)
        count, value = self.fitted.stop, 0.0
        for first in range(0, count, PIECE):
            part = slice(first, min(first + PIECE, count))
            with torch.enable_grad():
                squares = self.flow.log_errors(candidate, coefficients(z), part).exp()
                loss = (squares + floor).log().sum() / count
            slope = slope + torch.autograd.grad(loss, z)[0]
            value += loss.item()
        self.spend(3 * self.nfe * count)  # a backward pass costs about two evaluations
        return (value if math.isfinite(value) and slope.isfinite().all() else math.inf), slope


class _Memory:
    """L-BFGS: the product of the inverse Hessian and a gradient, from past steps and a first Hessian.

    Args:
        factor: The Cholesky factor of the first Hessian, (N, N).
    """

    def __init__(self, factor: Tensor) -> None:
        self.factor = factor
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def add(self, step: Tensor, change: Tensor) -> None:
        """Adds a step and the change of the gradient along it, unless the curvature there is negative."""
        if step @ change > 1e-10 * step.norm() * change.norm():
            self.pairs.append((step, change))

    def direction(self, gradient: Tensor) -> Tensor:
        """The step to the minimum of the quadratic model."""
        q, shares = gradient, list[Tensor]()
        for step, change in reversed(self.pairs):
            shares.append(step @ q / (step @ change))
            q = q - shares[-1] * change
        q = torch.cholesky_solve(q[:, None], self.factor)[:, 0]
        for (step, change), share in zip(self.pairs, reversed(shares), strict=True):
            q = q + (share - change @ q / (step @ change)) * step
        return -q


def respaced(sde: SDE, times: Tensor, change: Tensor) -> Tensor:
    """The grid with the logarithms of its steps in the clock τ changed by these values at knots."""
    tau = clock(sde.log_noise_level(times.double()))
    knots = torch.linspace(0, 1, len(change), dtype=torch.float64)
    places = torch.linspace(0, 1, len(times) - 1, dtype=torch.float64)
    hats = (1 - (places[:, None] - knots).abs() * max(1, len(knots) - 1)).clamp_min(0.0)  # (steps, knots)
    lengths = -tau.diff() * (hats @ change).exp()
    lengths = lengths * (tau[0] - tau[-1]) / lengths.sum()
    moved = clock_times(sde, tau[0] - lengths.cumsum(0))
    moved[-1] = times[-1]
    return torch.cat([times[:1].double(), moved])
