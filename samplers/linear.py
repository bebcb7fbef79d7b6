"""Samplers as tables of numbers.

Most samplers are linear in what they know: at a stage they evaluate the score, form from it a value v - the
score itself, the denoised samples, the noise estimate, the drift - and move to a linear combination of the
states, the values so far and fresh noise,

    v_0 = p x + q score(x, t),      x ← keep · x + Σ_j weights_j v_{-j} + std · z,

with v_{-j} the value of j evaluations ago. What distinguishes Euler-Maruyama, DDIM, DPM-Solver++, UniPC,
Runge-Kutta methods or restarts is the table (p, q, keep, weights, std) alone, which follows in float64 from
the SDE and the time grid before the first evaluation: the loop below serves them all, costs next to nothing
and never waits for the device. For data from a Gaussian the score is linear too, and the law that a table
samples can be computed exactly.

A method that goes back to the states before an earlier stage (a Runge-Kutta method, a corrector) is rewritten
in terms of the newest states: x_old is a combination of them and of the values in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from score_diffusion.samplers.base import CountedScore, Sampler
from score_diffusion.sde_lib import SDE, SampleNoise


@dataclass(frozen=True)
class Stage:
    """One row of a table: x ← keep · x + Σ_j weights[j] v_{-j} + std · z."""

    time: float | None
    """Where the score is evaluated first, the time of x; None where it is not."""
    value: tuple[float, float]
    """(p, q) of the value v_0 = p x + q score(x, time) that the evaluation gives."""
    keep: float
    weights: tuple[float, ...]
    """Of the values, the newest first."""
    std: float = 0.0
    ends_step: bool = True
    """Whether x has then arrived at the next time of the grid."""


def move(
    stage: Stage,
    score: CountedScore,
    x: Tensor,
    values: deque[Tensor],
    noise: SampleNoise,
    clip: tuple[float, float] | None = None,
) -> Tensor:
    """The states after a stage.

    Args:
        stage: The stage.
        score: The score function.
        x: States before it, shape (B, *shape).
        values: The values so far, the newest first; gets the new one.
        noise: The samples' streams of randomness.
        clip: Bounds of the new value; None for none.

    Returns:
        States, shape (B, *shape).
    """
    if stage.time is not None:
        p, q = stage.value
        value = score(x, stage.time)
        if p:
            value = (x * p).add_(value, alpha=q)
        elif q != 1:
            value = value * q
        values.appendleft(value if clip is None else value.clamp(*clip))
    x = x * stage.keep
    for weight, value in zip(
        stage.weights, values, strict=False
    ):  # older values than a table uses may remain
        if weight:
            x.add_(value, alpha=weight)
    return x.add_(noise.normal(), alpha=stage.std) if stage.std else x


class LinearSampler(Sampler):
    """Carries out a table of stages.

    Args:
        sde: The SDE.
        times: Time grid, shape (steps + 1,).
        stages: The table; as many of its stages end a step as the grid has steps.
        denoise: Whether to end with Tweedie's formula, one more evaluation.
        clip: Bounds of every value, for tables whose values are denoised samples; None for none.

    Raises:
        ValueError: If the table does not fit the grid, a stage uses a value that does not exist yet, or
            clip is not two increasing numbers.
    """

    def __init__(
        self,
        sde: SDE,
        times: Tensor,
        stages: Sequence[Stage],
        denoise: bool = False,
        clip: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(sde, times, denoise)
        self.stages = tuple(stages)
        self.clip = checked_clip(clip)
        evaluations = 0
        for stage in self.stages:
            evaluations += stage.time is not None
            if len(stage.weights) > evaluations:
                raise ValueError(
                    f"a stage weighs {len(stage.weights)} values after {evaluations} evaluations of the score"
                )
        steps = sum(stage.ends_step for stage in self.stages)
        if steps != len(self.times) - 1 or not self.stages[-1].ends_step:
            raise ValueError(
                f"{steps} stages end a step, as the last must, and the grid has {len(self.times) - 1} steps"
            )

    def integrate(
        self,
        score: CountedScore,
        x: Tensor,
        noise: SampleNoise,
        record: Callable[[Tensor], None] | None,
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        values: deque[Tensor] = deque(maxlen=max(1, *(len(stage.weights) for stage in self.stages)))
        done, steps = 0, len(self.times) - 1
        for stage in self.stages:
            x = move(stage, score, x, values, noise, self.clip)
            if stage.ends_step:
                done += 1
                if record is not None:
                    record(x)
                on_step(done, steps)
        return x


def checked_clip(clip: tuple[float, float] | None) -> tuple[float, float] | None:
    """The bounds, if they are two increasing numbers or None."""
    if clip is not None and not (len(clip) == 2 and clip[0] < clip[1]):
        raise ValueError(f"clip must be None or two increasing bounds of x_0, such as (-1, 1), got {clip}")
    return clip


class Path:
    """The path of an SDE at given times: α, σ, λ = log(α/σ) and f, g², each a float64 tensor like the times,
    on the CPU.
    """

    def __init__(self, sde: SDE, times: Tensor | Sequence[float]) -> None:
        self.t = torch.as_tensor(times, dtype=torch.float64).cpu()
        self.alpha, self.sigma = sde.alpha(self.t), sde.sigma(self.t)
        self.level = self.sigma / self.alpha  # σ̃, the noise where the signal has scale 1
        self.lam = -sde.noise_level(self.t)
        self.f, self.g2 = sde.dlog_alpha(self.t), sde.g2(self.t)


def one_stage_a_step(
    times: Tensor,
    value: tuple[Tensor | float, Tensor | float],
    keep: Tensor,
    weight: Tensor,
    std: Tensor | float = 0.0,
) -> list[Stage]:
    """The table of a method with one evaluation a step and no memory; tensors of shape (steps,)."""
    rows = torch.broadcast_tensors(
        times[:-1].double(), *(torch.as_tensor(v, dtype=torch.float64) for v in (*value, keep, weight, std))
    )
    return [
        Stage(t, (p, q), a, (b,), c) for t, p, q, a, b, c in zip(*(row.tolist() for row in rows), strict=True)
    ]


def combined(a: Sequence[float], b: Sequence[float]) -> tuple[float, ...]:
    """The sum of two rows of weights, the shorter one filled up with zeros."""
    return tuple(x + y for x, y in zip_longest(a, b, fillvalue=0.0))


def stages_of_step(
    times: Sequence[float],
    values: Sequence[tuple[float, float]],
    rows: Sequence[tuple[float, Sequence[float]]],
    ends_step: bool = True,
) -> list[Stage]:
    """The stages of one step of a single-step method.

    Args:
        times: The times of its evaluations.
        values: (p, q) of the value at each.
        rows: (K, W) of each: the states after it are K x_t + Σ_i W_i v_i with x_t those at the step's start
            and v_i its values, the first first.
        ends_step: Whether the grid goes on after it.

    Returns:
        The stages, each in terms of the states before it.
    """
    stages, K_old, W_old = [], 1.0, ()
    for i, (t, value, (K, W)) in enumerate(zip(times, values, rows, strict=True)):
        keep = K / K_old
        weights = combined(W, [-keep * w for w in W_old])[::-1]
        stages.append(Stage(t, value, keep, weights, ends_step=ends_step and i == len(times) - 1))
        K_old, W_old = K, W
    return stages
