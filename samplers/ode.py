"""Sampling by the probability-flow ODE (Song et al., 2021, Section 4.3), dx/dt = f x - ½ g² score(x, t), and
the codes, reconstruction and interpolation that it allows as a bijection of noise and data.

Adaptive methods choose a step size for each sample (`sde_lib/ode_solver.py`); the fixed-step methods are
torchdiffeq's, on the time grid. With both a sample does not depend on its neighbours. States are float64,
whatever the dtype of the network: the error estimate of a solver is a difference of nearly equal numbers.

Reference:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
        https://arxiv.org/abs/2011.13456: Section 4.3, Appendix D.
    Animating Rotation with Quaternion Curves (Shoemake, 1985): spherical linear interpolation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor
from torchdiffeq import odeint

from score_diffusion.samplers.base import CountedScore, Sampler
from score_diffusion.samplers.chain import DDIMSampler
from score_diffusion.samplers.grids import Grid
from score_diffusion.samplers.options import Names
from score_diffusion.sde_lib import SDE, InputError, SampleNoise, ScoreFunction, check_name, expand, in_dtype
from score_diffusion.sde_lib.ode_solver import PAIRS, check_tolerances, solve_each
from score_diffusion.sde_lib.per_sample import root_mean_square_each
from score_diffusion.sde_lib.score_wrapper import Condition

EVALUATIONS_PER_STEP = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
"""The fixed-step methods, with their evaluations per step."""

ODE_METHODS = (*reversed(PAIRS), *EVALUATIONS_PER_STEP)


class ODESampler(Sampler):
    """The probability-flow ODE, by an adaptive method or a fixed-step one of torchdiffeq.

    Args:
        sde, times, denoise: As for every `Sampler`. The grid holds the steps of a fixed-step method; for an
            adaptive one only its ends matter, and where a trajectory is recorded.
        method: The solver, dopri5, bosh3 and adaptive_heun with adaptive steps, the others with those of the
            grid.
        rtol: Relative tolerance of an adaptive method, met by every sample.
        atol: Absolute tolerance of an adaptive method, met by every sample.

    Raises:
        InputError: If the method is unknown, or a tolerance is not positive.
    """

    def __init__(
        self,
        sde: SDE,
        times: Tensor | Grid = Grid("clock", 100),
        *,
        denoise: bool = False,
        method: Annotated[str, Names(*ODE_METHODS)] = "dopri5",
        rtol: float = 1e-5,
        atol: float = 1e-5,
    ) -> None:
        super().__init__(sde, times, denoise)
        check_name("method", method, ODE_METHODS)
        check_tolerances(rtol, atol)
        self.method, self.rtol, self.atol = method, rtol, atol

    def integrate(
        self,
        score: CountedScore,
        x: Tensor,
        noise: SampleNoise,
        record: Callable[[Tensor], None] | None,
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        return self._solve(score, x.double(), self.times, record, on_step).to(x)

    @torch.no_grad()
    def encode(
        self,
        score: ScoreFunction,
        x: Tensor,
        cond: Condition = None,
        on_step: Callable[[int, int], None] = lambda i, n: None,
    ) -> Tensor:
        """Computes the codes x_T of data x by the same ODE from the last time of the grid up to the first.

        Args:
            score: The score function.
            x: States at the last time, which are data up to a little noise, shape (B, *shape).
            cond: What the samples are conditioned on, as in a call.
            on_step: Called after step i of n, as in a call.

        Returns:
            States at the first time, shape (B, *shape). Decoding them, `sampler(score, shape, x_T=code)`,
            reproduces x up to the error of the solver.
        """
        counted = CountedScore(in_dtype(score, x.dtype), len(x), cond)
        return self._solve(counted, x.double(), self.times.flip(0), None, on_step).to(x)

    def _solve(
        self,
        score: CountedScore,
        x: Tensor,
        times: Tensor,
        record: Callable[[Tensor], None] | None,
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        times = times.to(x.device)

        def dynamics(x_t: Tensor, t: Tensor, index: Tensor | None = None) -> Tensor:
            f, g2 = self.sde.dlog_alpha(t), self.sde.g2(t)
            return expand(f, x_t) * x_t - expand(g2 / 2, x_t) * score(x_t, t, among=index)

        if self.method in EVALUATIONS_PER_STEP:
            for i in range(len(times) - 1):
                pair = times[i : i + 2]
                x = odeint(lambda t, x_t: dynamics(x_t, t.expand(len(x_t))), x, pair, method=self.method)[-1]
                if record is not None:
                    record(x)
                on_step(i + 1, len(times) - 1)
            return x
        ends = times[[0, -1]] if record is None else times
        states = solve_each(
            dynamics,
            x,
            ends,
            self.method,
            self.rtol,
            self.atol,
            lambda done: on_step(round(100 * done), 100),
        )
        if record is not None:
            for state in states[1:]:
                record(state)
        return states[-1]


def reconstruction_error(sampler: ODESampler | DDIMSampler, score: ScoreFunction, x: Tensor) -> Tensor:
    """The root-mean-square distance of each sample to the decoding of its code, shape (B,).

    Args:
        sampler: A sampler with `encode`, without a final denoising.
        score: The score function.
        x: Data, shape (B, *shape).
    """
    decoded = sampler(score, x.shape, x_T=sampler.encode(score, x)).samples
    return root_mean_square_each(decoded - x)


def interpolate(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Interpolates codes on the sphere (Shoemake, 1985), which keeps the norm of noise. Decoded, they are a
    path from one sample to the other.

    Args:
        a: Codes, shape (B, *shape).
        b: Codes, same shape.
        weights: Shape (n,), 0 for a and 1 for b.

    Returns:
        Codes, shape (n, B, *shape).

    Raises:
        InputError: If the shapes differ.
    """
    if a.shape != b.shape:
        raise InputError(f"a and b must have the same shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    u, v = a.flatten(1), b.flatten(1)
    cosine = torch.nn.functional.cosine_similarity(u, v, dim=1).clamp(-1, 1)
    angle = cosine.arccos()[None, :, None]  # (1, B, 1)
    w = weights.to(a)[:, None, None]
    straight = (1 - w) * u + w * v
    curved = (((1 - w) * angle).sin() * u + (w * angle).sin() * v) / angle.sin()
    return torch.where(angle.sin() < 1e-6, straight, curved).reshape(len(weights), *a.shape)
