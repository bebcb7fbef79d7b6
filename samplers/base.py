"""What all samplers share: the call, the loop, the randomness of each sample, and the record that comes back.

    result = sampler(score, shape, seed=0)

`score` is any score function, exact or learned. A sampler's own part is `StepSampler.step`, a pure function
from (x_t, t, s) to x_s; one that hands the whole interval to a solver is a `Sampler` with `integrate`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_lib import SDE, SampleNoise, ScoreFunction, score_and_fraction, tweedie

State = Any
"""What a sampler carries from step to step besides x: nothing, a running average, a method's history."""


@dataclass(frozen=True)
class SampleResult:
    """What a sampler returns."""

    samples: Tensor
    """The samples, shape (B, *shape)."""
    nfe: int
    """Evaluations of the score function per sample, counted where it is called."""
    times: Tensor
    """The time grid, shape (steps + 1,), float64, from T down."""
    trajectory: Tensor | None
    """The states at these times, shape (steps + 1, B, *shape), before any final denoising; None unless asked
    for.
    """


class CountedScore:
    """A score function that counts its calls and checks the shape of what comes back."""

    def __init__(self, score: ScoreFunction) -> None:
        self._score = score
        self.calls = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self._checked(x, self._score(x, t))

    def score_and_fraction(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The score and the fraction of a learned variance (`ScoreModel.score_and_fraction`): one call."""
        score, fraction = score_and_fraction(self._score, x, t)
        return self._checked(x, score), fraction

    def _checked(self, x: Tensor, score: Tensor) -> Tensor:
        self.calls += 1
        if score.shape != x.shape:
            raise ValueError(
                f"the score must have the shape of x, {tuple(x.shape)}, it has {tuple(score.shape)}"
            )
        return score


class Sampler(ABC):
    """Base class of the samplers.

    Args:
        sde: The SDE whose reverse is followed.
        times: Strictly decreasing times in [0, T], shape (steps + 1,), made by a function of
            `samplers.grids`.
        denoise: Whether to end with Tweedie's formula, which removes the noise that is left at the last time,
            if any.

    Raises:
        ValueError: If the times are not strictly decreasing within [0, T].
    """

    def __init__(self, sde: SDE, times: Tensor, denoise: bool) -> None:
        times = torch.as_tensor(times, dtype=torch.float64).cpu()
        if (
            times.ndim != 1
            or len(times) < 2
            or not (times.diff() < 0).all()
            or not 0 <= times[-1] <= times[0] <= sde.T
        ):
            raise ValueError(
                "times must be a strictly decreasing sequence of two or more numbers in [0, T] = "
                f"[0, {sde.T}], got {times.tolist()[:5]}..."
            )
        self.sde = sde
        self.times = times
        self.denoise = (
            denoise and sde.sigma(times[-1]).item() > 0
        )  # without noise Tweedie's formula is 0/0, and the identity

    @abstractmethod
    def integrate(
        self,
        score: ScoreFunction,
        x: Tensor,
        noise: SampleNoise,
        record: Callable[[Tensor], None] | None,
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        """Carries x from the first time to the last.

        Args:
            score: The score function.
            x: States at the first time, shape (B, *shape).
            noise: The samples' streams of randomness.
            record: Takes the states at each of the times after the first; None where nobody asked for them.
            on_step: Takes the number of steps done and the number of all steps.

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
        x_T: Tensor | None = None,
        first: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        trajectory: bool = False,
        on_step: Callable[[int, int], None] | None = None,
    ) -> SampleResult:
        """Draws samples.

        Args:
            score: The score function `score(x, t)`.
            shape: Shape of the batch, (B, *shape).
            seed: Seed of the run. Sample k of the call depends on (seed, first + k) alone.
            x_T: Start states at the first time, shape `shape`; None to draw them from the prior. They bring
                their device and dtype.
            first: Index of the first sample within its run.
            device: Where to sample; None for the device of a score that has one (`ScoreModel.device`), else
                the CPU.
            dtype: Floating-point type of the states.
            trajectory: Whether to keep the state at every time.
            on_step: Called as on_step(i, n) after step i of n, for progress bars.

        Returns:
            Samples, the number of score evaluations per sample, the time grid and, if asked for, the
            trajectory.

        Raises:
            ValueError: If the shape is not (B, *shape), x_T disagrees with it, the score changes it, or the
                result is not finite.
        """
        shape = tuple(shape)
        if len(shape) < 2 or not all(isinstance(n, int) and n > 0 for n in shape):
            raise ValueError(f"shape must be (B, *shape) of positive integers, got {shape}")
        if x_T is not None:
            if tuple(x_T.shape) != shape or not x_T.is_floating_point():
                raise ValueError(
                    f"x_T must be a floating-point tensor of shape {shape}, "
                    f"got {tuple(x_T.shape)} of {x_T.dtype}"
                )
            device, dtype = x_T.device, x_T.dtype
        elif device is None:
            device = getattr(score, "device", "cpu")
        noise = SampleNoise(seed, first, shape, device, dtype)
        x = self.sde.prior_std * noise.normal() if x_T is None else x_T
        states = [x]
        counted = CountedScore(score)

        def record(state: Tensor) -> None:
            states.append(state.to(dtype))

        x = self.integrate(counted, x, noise, record if trajectory else None, on_step or (lambda i, n: None))
        if self.denoise:
            x = tweedie(self.sde, counted, x, self.times[-1:].to(x.device).expand(len(x)))
        if not x.isfinite().all():
            raise ValueError(
                f"{type(self).__name__} met values that are not finite: check the score function, "
                "or take smaller steps (more of them, a lower snr)"
            )
        return SampleResult(x, counted.calls, self.times, torch.stack(states) if trajectory else None)


class StepSampler(Sampler):
    """A sampler that goes from each time of its grid to the next by a step of its own."""

    def initial_state(self, x: Tensor) -> State:
        """What `step` carries from one step to the next besides x."""
        return None

    @abstractmethod
    def step(
        self, score: ScoreFunction, x: Tensor, t: Tensor, s: Tensor, noise: SampleNoise, state: State
    ) -> tuple[Tensor, State]:
        """One step from time t to the earlier time s.

        Args:
            score: The score function.
            x: States at t, shape (B, *shape).
            t: Time of x, shape (B,), float64.
            s: Time to reach, shape (B,), float64.
            noise: The samples' streams of randomness.
            state: What the last step returned, first `initial_state(x)`.

        Returns:
            States at s, shape (B, *shape), and the state for the next step.
        """

    def integrate(
        self,
        score: ScoreFunction,
        x: Tensor,
        noise: SampleNoise,
        record: Callable[[Tensor], None] | None,
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        state = self.initial_state(x)
        times = self.times.to(x.device)[:, None].expand(-1, len(x))  # (steps + 1, B)
        for i in range(len(times) - 1):
            x, state = self.step(score, x, times[i], times[i + 1], noise, state)
            if record is not None:
                record(x)
            on_step(i + 1, len(times) - 1)
        return x
