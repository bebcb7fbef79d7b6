"""Sampling by the probability-flow ODE (Song et al., 2021, Section 4.3), dx/dt = f x - ½ g² score(x, t), from
T to eps.

The solvers are torchdiffeq's. States are float64, whatever the network computes in: the solver's error
estimate is a difference of nearly equal numbers. Adaptive methods choose their steps for the whole batch, by
its worst sample, so that a sample depends on its neighbours within the tolerance; with fixed-step methods,
which take the steps of the time grid, it does not depend on them at all.

Reference:
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
        https://arxiv.org/abs/2011.13456: Section 4.3, Appendix D.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torchdiffeq import odeint

from samplers.base import CountedScore, Sampler
from samplers.grids import uniform_grid
from sde_lib import SDE, SampleNoise
from sde_lib.ode import ADAPTIVE_METHODS, FIXED_METHODS, Dynamics, solve_adaptively

ODE_METHODS = (*ADAPTIVE_METHODS, *FIXED_METHODS)


class ODESampler(Sampler):
    """The probability-flow ODE, solved by torchdiffeq.

    Args:
        sde: The SDE.
        method: A name in `ODE_METHODS`.
        times: Time grid: the steps of the fixed-step methods, the output times of the adaptive ones; None for
            `uniform_grid(sde, sde.N)`.
        rtol: Relative tolerance of the adaptive methods, met by every sample.
        atol: Absolute tolerance of the adaptive methods, met by every sample.
        denoise: Whether to end with Tweedie's formula, one more evaluation.

    Raises:
        ValueError: If the method is unknown.
    """

    def __init__(
        self,
        sde: SDE,
        method: str = "dopri5",
        times: Tensor | None = None,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        denoise: bool = False,
    ) -> None:
        super().__init__(sde, uniform_grid(sde, sde.N) if times is None else times, denoise)
        if method not in ODE_METHODS:
            raise ValueError(f"method must be one of {', '.join(ODE_METHODS)}, got {method!r}")
        self.method, self.rtol, self.atol = method, rtol, atol

    def integrate(
        self,
        score: CountedScore,
        x: Tensor,
        noise: SampleNoise,
        record: Callable[[Tensor], None] | None,
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        def dynamics(t: Tensor, x_t: Tensor) -> Tensor:
            return self.sde.dlog_alpha(t) * x_t - self.sde.g2(t) / 2 * score(x_t, t.expand(len(x_t)))

        solve = self._fixed_steps if self.method in FIXED_METHODS else self._adaptive_steps
        return solve(dynamics, x.double(), record, on_step).to(x)

    def _fixed_steps(
        self,
        dynamics: Dynamics,
        x: Tensor,
        record: Callable[[Tensor], None] | None,
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        times = self.times.to(x.device)
        for i in range(len(times) - 1):
            x = odeint(dynamics, x, times[i : i + 2], method=self.method)[-1]
            if record is not None:
                record(x)
            on_step(i + 1, len(times) - 1)
        return x

    def _adaptive_steps(
        self,
        dynamics: Dynamics,
        x: Tensor,
        record: Callable[[Tensor], None] | None,
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        times = self.times.to(x.device) if record is not None else self.times[[0, -1]].to(x.device)
        states = solve_adaptively(dynamics, x, times, self.method, self.rtol, self.atol)
        if record is not None:
            for state in states[1:]:
                record(state)
        on_step(1, 1)
        return states[-1]
