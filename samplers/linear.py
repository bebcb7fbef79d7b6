"""Samplers as tables of numbers.

Most samplers are linear in what they know: at a stage they evaluate the score, form from it a value v - the
score itself, the denoised samples, the noise estimate, the drift - and move to a linear combination of the
states, the values so far and fresh noise,

    v_0 = p x + q score(x, t),      x ← keep · x + Σ_j weights_j v_{-j} + std · z,

where v_{-j} is the value of j evaluations ago. Euler-Maruyama, DDIM, DPM-Solver++, UniPC, Runge-Kutta methods
and restarts differ only in the table (p, q, keep, weights, std), which is computed in float64 from the SDE
and the time grid before the first evaluation. One loop serves them all, costs next to nothing and never waits
for the device. For Gaussian data the score is linear too, and the law that a table samples can be computed
exactly.

A method that returns to the states before an earlier stage (a Runge-Kutta method, a corrector) is rewritten
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
from score_diffusion.samplers.grids import Grid
from score_diffusion.sde_lib import SDE, InputError, SampleNoise


@dataclass(frozen=True)
class Stage:
    """One row of a table: x ← keep · x + Σ_j weights[j] v_{-j} + std · z."""

    time: float | None
    """The time of x, at which the stage first evaluates the score; None for a stage without an evaluation."""
    value: tuple[float, float]
    """(p, q) of the value v_0 = p x + q score(x, time) that the evaluation gives."""
    keep: float
    weights: tuple[float, ...]
    """Weights of the values, the newest first."""
    std: float = 0.0
    ends_step: bool = True
    """Whether the stage brings x to the next time of the grid."""


Table = Callable[[SDE, Tensor], Sequence[Stage]]
"""From the SDE and the time grid, shape (steps + 1,), to the stages."""

Clip = float | tuple[float, float] | None
"""Bounds of the denoised samples: c for [-c, c], two bounds, 0 or None for none."""


def apply_stage(
    stage: Stage,
    score: CountedScore,
    x: Tensor,
    values: deque[Tensor],
    noise: SampleNoise,
    clip: tuple[float, float] | None = None,
) -> Tensor:
    """Computes the states after a stage.

    Args:
        stage: The stage.
        score: The score function.
        x: States before the stage, shape (B, *shape).
        values: The values so far, the newest first; the stage's own value is added.
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
    # not strict: more values may be kept than this stage uses
    for weight, value in zip(stage.weights, values, strict=False):
        if weight:
            x.add_(value, alpha=weight)
    return x.add_(noise.normal(), alpha=stage.std) if stage.std else x


class LinearSampler(Sampler):
    """Carries out a table of stages.

    Args:
        sde: The SDE.
        times: Time grid, shape (steps + 1,), or a `Grid`.
        table: Computes the stages from the SDE and the times; as many of them end a step as the grid has
            steps.
        denoise: Whether to end with Tweedie's formula, one more evaluation.
        clip: Bounds of every value, for tables whose values are denoised samples, see `clip_bounds`.

    Raises:
        ValueError: If the table does not fit the grid, or a stage uses a value that does not exist yet.
        InputError: If clip does not stand for bounds.
    """

    def __init__(
        self, sde: SDE, times: Tensor | Grid, table: Table, *, denoise: bool = False, clip: Clip = 0.0
    ) -> None:
        super().__init__(sde, times, denoise)
        self.stages = tuple(table(sde, self.times))
        self.clip = clip_bounds(clip)
        evaluations = 0
        for stage in self.stages:
            evaluations += stage.time is not None
            if len(stage.weights) > evaluations:
                raise ValueError(
                    f"a stage has {len(stage.weights)} weights after only {evaluations} evaluations of the "
                    "score: it must have at most one for each"
                )
        steps = sum(stage.ends_step for stage in self.stages)
        if steps != len(self.times) - 1 or not self.stages[-1].ends_step:
            raise ValueError(
                f"the table must have a stage that ends each of the {len(self.times) - 1} steps of the grid, "
                f"and the last stage must end one; {steps} of its stages do"
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
            x = apply_stage(stage, score, x, values, noise, self.clip)
            if stage.ends_step:
                done += 1
                if record is not None:
                    record(x)
                on_step(done, steps)
        return x


def clip_bounds(clip: Clip) -> tuple[float, float] | None:
    """The bounds that `clip` stands for: ±c for a number c, the two of a pair, None for 0 or None.

    Raises:
        InputError: If the number is negative, or the pair is not increasing.
    """
    bounds = (-clip, clip) if isinstance(clip, int | float) else clip
    if not clip or bounds is None:
        return None
    if len(bounds) != 2 or not bounds[0] < bounds[1]:
        raise InputError(
            f"clip must be 0 (none), a bound above 0 on the absolute value of x_0, or two increasing bounds "
            f"such as (-1, 1), got {clip}"
        )
    return bounds


class GridCoefficients:
    """The coefficients of an SDE at the times of a grid: α, σ, the noise level σ/α, λ = log(α/σ), f and g²,
    each a float64 tensor of the shape of the times, on the CPU.
    """

    def __init__(self, sde: SDE, times: Tensor | Sequence[float]) -> None:
        self.t = torch.as_tensor(times, dtype=torch.float64).cpu()
        self.alpha, self.sigma = sde.alpha(self.t), sde.sigma(self.t)
        self.noise_level = self.sigma / self.alpha
        self.lam = -sde.log_noise_level(self.t)
        self.f, self.g2 = sde.dlog_alpha(self.t), sde.g2(self.t)


def denoised_values(at: GridCoefficients) -> list[tuple[float, float]]:
    """(p, q) of x̂_0 = (x + σ² score)/α at each time of a grid."""
    return list(zip((1 / at.alpha).tolist(), (at.sigma.square() / at.alpha).tolist(), strict=True))


def noise_values(at: GridCoefficients) -> list[tuple[float, float]]:
    """(p, q) of ε̂ = -σ score at each time of a grid."""
    return [(0.0, -sigma) for sigma in at.sigma.tolist()]


def finite_log_coefficients(sde: SDE, times: Tensor) -> GridCoefficients:
    """The coefficients at the times of a grid, with λ finite everywhere.

    Raises:
        InputError: If λ = log(α/σ) is infinite at an end.
    """
    at = GridCoefficients(sde, times)
    if not at.lam.isfinite().all():
        raise InputError(
            f"log(α/σ) must be finite at all times of the grid; it is {at.lam[0]:.4g} at the first and "
            f"{at.lam[-1]:.4g} at the last: choose a grid that ends above t = 0, and denoise=True"
        )
    return at


def one_stage_per_step(
    times: Tensor,
    value: tuple[Tensor | float, Tensor | float],
    keep: Tensor,
    weight: Tensor,
    std: Tensor | float = 0.0,
) -> list[Stage]:
    """The table of a method with one evaluation per step and no history; tensors of shape (steps,)."""
    rows = torch.broadcast_tensors(
        times[:-1].double(), *(torch.as_tensor(v, dtype=torch.float64) for v in (*value, keep, weight, std))
    )
    return [
        Stage(t, (p, q), a, (b,), c) for t, p, q, a, b, c in zip(*(row.tolist() for row in rows), strict=True)
    ]


def add_weights(a: Sequence[float], b: Sequence[float]) -> tuple[float, ...]:
    """The sum of two rows of weights, the shorter one padded with zeros."""
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
        values: (p, q) of the value of each evaluation.
        rows: (K, W) of each evaluation: the states after it are K x_t + Σ_i W_i v_i, where x_t are the states
            at the start of the step and v_i its values in order of evaluation.
        ends_step: Whether the last stage brings x to the next time of the grid.

    Returns:
        The stages, each in terms of the states before it.
    """
    stages: list[Stage] = []
    K_old, W_old = 1.0, list[float]()
    for i, (t, value, (K, W)) in enumerate(zip(times, values, rows, strict=True)):
        keep = K / K_old
        weights = add_weights(W, [-keep * w for w in W_old])[::-1]
        stages.append(Stage(t, value, keep, weights, ends_step=ends_step and i == len(times) - 1))
        K_old, W_old = K, list(W)
    return stages
