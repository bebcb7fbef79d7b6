"""What all samplers share: the call, the loop, the randomness of each sample, and the result.

    result = sampler(score, shape, seed=0)
    result = sampler(score, shape, seed=0, cond={"label": labels})      of a score(x, t, cond)

`score` is any score function, exact or learned. Most samplers are tables of coefficients, see `linear.py`. A
sampler whose coefficients depend on the states is a `StepSampler` with its own `step`, a pure function of the
states and the index of the step; one that chooses its own steps is a `Sampler` with its own `integrate`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from score_diffusion.samplers.grids import Grid, times_of
from score_diffusion.sde_lib import (
    SDE,
    InputError,
    SampleNoise,
    ScoreFunction,
    ScoreWrapper,
    evaluations,
    in_dtype,
    map_condition,
    score_device,
    tweedie,
)
from score_diffusion.sde_lib.score_wrapper import Condition, Evaluation

State = Any
"""What a sampler carries from step to step besides x, such as a running average; None for nothing."""


@dataclass(frozen=True)
class SampleResult:
    """What a sampler returns."""

    samples: Tensor
    """The samples, shape (B, *shape)."""
    nfe: int
    """Evaluations of the score function per sample, counted where it is called; the largest number where
    samples choose their own steps.
    """
    nfe_each: Tensor
    """Evaluations of each sample, shape (B,)."""
    times: Tensor
    """The time grid, shape (steps + 1,), float64, from T down."""
    trajectory: Tensor | None
    """The states at these times, shape (steps + 1, B, *shape), before any final denoising; None unless
    requested.
    """


class CountedScore(ScoreWrapper):
    """A score function that counts its evaluations, takes one time for all samples or one for each, gives
    each sample its own condition, and records where its values stop being finite.

    Args:
        score: The score function.
        batch: Number of samples.
        cond: What the samples are conditioned on, in tensors of `batch` rows or of 1 row for all; None for
            nothing.

    Raises:
        InputError: If a tensor of the condition has another number of rows.
    """

    def __init__(self, score: ScoreFunction, batch: int, cond: Condition = None) -> None:
        super().__init__(score)
        self._batch, self.cond = batch, map_condition(partial(_rows_for, batch), cond)
        self._sums: list[Tensor] = []  # one number per call, left on the device: reading would wait for it
        self._times: list[Tensor] = []
        self._shared = 0
        self._individual: Tensor | None = None

    @property
    def calls(self) -> int:
        """Number of calls so far."""
        return len(self._sums)

    def evaluations_each(self) -> Tensor:
        """Evaluations of each sample so far, shape (B,), on the CPU."""
        shared = torch.full((self._batch,), self._shared)
        return shared if self._individual is None else shared + self._individual.cpu()

    def __call__(
        self, x: Tensor, t: float | Tensor, cond: Condition = None, *, among: Tensor | None = None
    ) -> Tensor:
        """The score of x, shape (n, *shape), at time t, a number or of shape (n,).

        `among` holds the indices (n,) of these samples if x is not the whole batch; one may have many rows.
        """
        t = self._times_each(x, t)
        self._count(evaluations(self.score, t), x, among)
        return super().__call__(x, t, self._cond_of(among) if cond is None else cond)

    def score_and_fraction(
        self, x: Tensor, t: float | Tensor, cond: Condition = None
    ) -> tuple[Tensor, Tensor]:
        """The score and the fraction of a learned variance (`ScoreModel.score_and_fraction`): one call."""
        t = self._times_each(x, t)
        self._count(evaluations(self.score, t), x, None)
        return super().score_and_fraction(x, t, self.cond if cond is None else cond)

    def _cond_of(self, among: Tensor | None) -> Condition:
        return self.cond if among is None else map_condition(lambda rows: rows[among], self.cond)

    def evaluate(self, inner: Evaluation, x: Tensor, t: Tensor, cond: Condition = None) -> tuple[Tensor, ...]:
        score, *fraction = inner(x, t, cond)
        if score.shape != x.shape:
            raise InputError(
                f"the score must have the shape of x, {tuple(x.shape)}, got {tuple(score.shape)}"
            )
        self._sums.append(score.detach().sum())
        self._times.append(t)
        return (score, *fraction)

    @staticmethod
    def _times_each(x: Tensor, t: float | Tensor) -> Tensor:
        if isinstance(t, Tensor):
            return t
        return torch.full((len(x),), t, dtype=torch.float64, device=x.device)

    def _count(self, n: int | Tensor, x: Tensor, among: Tensor | None) -> None:
        """Adds n evaluations, one number or one per row of x, of all samples or of some."""
        if among is None and isinstance(n, int):
            self._shared += n
            return
        if self._individual is None:
            self._individual = torch.zeros(self._batch, dtype=torch.long, device=x.device)
        rows = torch.arange(self._batch, device=x.device) if among is None else among
        counts = torch.as_tensor(n, device=x.device).expand(len(rows)).long()
        self._individual.index_add_(0, rows, counts)  # a sample may have several rows

    def first_failure(self) -> tuple[int, float] | None:
        """Index and time of the first evaluation with values that are not finite; waits for the device."""
        for k, (total, t) in enumerate(zip(self._sums, self._times, strict=True)):
            if not total.isfinite():
                return k, float(t.max())
        return None


def _rows_for(batch: int, values: Tensor) -> Tensor:
    """A tensor of a condition with one row for each sample."""
    if len(values) not in (1, batch):
        raise InputError(f"cond must have one row for each of the {batch} samples, or 1, got {len(values)}")
    return values.expand(batch, *values.shape[1:])


def _checked_shape(shape: Sequence[int], x_T: Tensor | None) -> tuple[int, ...]:
    """The shape (B, *shape) of a batch, if it is one and x_T has it."""
    shape = tuple(shape)
    if len(shape) < 2 or not all(isinstance(n, Integral) and n > 0 for n in shape):
        raise InputError(f"shape must be (B, *shape) of positive integers, got {shape}")
    if x_T is not None and (tuple(x_T.shape) != shape or not x_T.is_floating_point()):
        raise InputError(
            f"x_T must be a floating-point tensor of shape {shape}, got {tuple(x_T.shape)} of {x_T.dtype}"
        )
    return shape


class Sampler(ABC):
    """Base class of the samplers.

    Args:
        sde: The SDE whose reverse is followed.
        times: Strictly decreasing times in [0, T], shape (steps + 1,), made by a function of
            `samplers.grids`, or a `Grid`, which names such a function.
        denoise: Whether to end with Tweedie's formula, which removes the noise that is left at the last time,
            if any. It costs one evaluation.

    Raises:
        InputError: If the times are not strictly decreasing within [0, T].
    """

    def __init__(self, sde: SDE, times: Tensor | Grid, denoise: bool) -> None:
        times = times_of(sde, times)
        if (
            times.ndim != 1
            or len(times) < 2
            or not (times.diff() < 0).all()
            or not 0 <= times[-1] <= times[0] <= sde.T
        ):
            raise InputError(
                "times must be a strictly decreasing sequence of two or more numbers in [0, T] = "
                f"[0, {sde.T}], got {times.tolist()[:5]}..."
            )
        self.sde = sde
        self.times = times
        # Without noise there is nothing to remove, and Tweedie's formula would be 0/0.
        self.denoise = denoise and sde.sigma(times[-1]).item() > 0

    @abstractmethod
    def integrate(
        self,
        score: CountedScore,
        x: Tensor,
        noise: SampleNoise,
        record: Callable[[Tensor], None] | None,
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        """Carries x from the first time to the last.

        Args:
            score: The score function; it takes one time for all samples, or one for each.
            x: States at the first time, shape (B, *shape).
            noise: The samples' streams of randomness.
            record: Called with the states at each time after the first; None if no trajectory is requested.
            on_step: Called with the number of finished steps and the number of all steps.

        Returns:
            States at the last time, shape (B, *shape).
        """

    @torch.no_grad()
    def __call__(
        self,
        score: ScoreFunction,
        shape: Sequence[int],
        seed: int = 0,
        *,
        cond: Condition = None,
        x_T: Tensor | None = None,
        first: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        trajectory: bool = False,
        on_step: Callable[[int, int], None] | None = None,
    ) -> SampleResult:
        """Draws samples.

        Args:
            score: The score function `score(x, t)`, or `score(x, t, cond)` where `cond` is given.
            shape: Shape of the batch, (B, *shape).
            seed: Seed of the run. Sample k of the call depends only on (seed, first + k), and on its
                condition.
            cond: What the samples are conditioned on: a tensor or a dict of tensors, of B rows, one for each
                sample, or of 1 row for all. None for nothing.
            x_T: Start states at the first time, shape `shape`, whose device and dtype are used; None to draw
                them from the prior.
            first: Index of the first sample within its run.
            device: Where to sample; None for the device of a score that has one (`ScoreModel.device`), else
                the CPU.
            dtype: Floating-point type of the samples and of the states, which are float32 for samples of half
                precision, where small steps would be lost.
            trajectory: Whether to keep the state at every time.
            on_step: Called as on_step(i, n) after step i of n, for progress bars.

        Returns:
            The samples, the number of score evaluations per sample, the time grid and, if requested, the
            trajectory.

        Raises:
            InputError: If the shape is not (B, *shape), x_T or the score does not have it, cond has another
                number of rows, or the result is not finite.
        """
        shape = _checked_shape(shape, x_T)
        if x_T is not None:
            device, dtype = x_T.device, x_T.dtype
        working = torch.promote_types(dtype, torch.float32)
        noise = SampleNoise(seed, first, shape, score_device(score) if device is None else device, working)
        x = self.sde.prior_std * noise.normal() if x_T is None else x_T.to(working)
        cond = map_condition(lambda rows: rows.to(x.device), cond)
        states, counted = [x], CountedScore(in_dtype(score, dtype), shape[0], cond)
        record = (lambda state: states.append(state.to(working))) if trajectory else None
        x = self.integrate(counted, x, noise, record, on_step or (lambda i, n: None))
        if self.denoise:
            x = tweedie(self.sde, counted, x, self.times[-1:].to(x.device).expand(len(x)))
        if not x.isfinite().all():
            raise InputError(self._failure(counted))
        nfe_each = counted.evaluations_each()
        path = torch.stack(states).to(dtype) if trajectory else None
        return SampleResult(x.to(dtype), int(nfe_each.max()), nfe_each, self.times, path)

    def _failure(self, score: CountedScore) -> str:
        failure = score.first_failure()
        if failure is None:
            return (
                f"{type(self).__name__} produced NaN or infinity although every score was finite: take "
                "smaller steps (more of them, or a lower snr)"
            )
        return (
            f"{type(self).__name__} got a score that is not finite at evaluation {failure[0] + 1} of "
            f"{score.calls}, t = {failure[1]:.6g}: check the score function there, or take smaller steps "
            "(more of them, or a lower snr)"
        )


class StepSampler(Sampler):
    """A sampler with a function for the step from each time of its grid to the next."""

    def initial_state(self, x: Tensor) -> State:
        """The state that the first step gets, for starting states x."""
        return None

    @abstractmethod
    def step(
        self, score: CountedScore, x: Tensor, k: int, noise: SampleNoise, state: State
    ) -> tuple[Tensor, State]:
        """The step from the k-th time of the grid to the next.

        Coefficients depend only on k: they are computed in float64 when the sampler is made and cost nothing
        here.

        Args:
            score: The score function; it takes one time for all samples, or one for each.
            x: States at times[k], shape (B, *shape).
            k: Index of the step, from 0.
            noise: The samples' streams of randomness.
            state: What the previous step returned, `initial_state(x)` in the first.

        Returns:
            States at times[k + 1], shape (B, *shape), and the state for the next step.
        """

    def integrate(
        self,
        score: CountedScore,
        x: Tensor,
        noise: SampleNoise,
        record: Callable[[Tensor], None] | None,
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        state, steps = self.initial_state(x), len(self.times) - 1
        for k in range(steps):
            x, state = self.step(score, x, k, noise, state)
            if record is not None:
                record(x)
            on_step(k + 1, steps)
        return x
