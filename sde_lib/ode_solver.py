"""The probability-flow ODE solved with torchdiffeq, for sampling and for likelihoods."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torchdiffeq import odeint

from score_diffusion.sde_lib.errors import InputError, check_name

ADAPTIVE_METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")

Dynamics = Callable[[Tensor, Tensor], Tensor]


def worst_sample_norm(y: Tensor) -> Tensor:
    """The largest root-mean-square over the samples of a batch (B, ...): a step is accepted when every sample
    accepts it.
    """
    return y.flatten(1).square().mean(1).sqrt().max()


def solve_adaptively(
    dynamics: Dynamics,
    y: Tensor,
    times: Tensor,
    method: str,
    rtol: float,
    atol: float,
    norm: Callable[[Tensor], Tensor] = worst_sample_norm,
) -> Tensor:
    """Solves dy/dt = dynamics(t, y) with an adaptive method.

    Args:
        dynamics: The right-hand side; t has shape (), y is like the state.
        y: State at the first time, shape (B, ...), float64: the error estimate is a difference of nearly
            equal numbers.
        times: Increasing or decreasing times, shape (n,), float64.
        method: A name in `ADAPTIVE_METHODS`.
        rtol: Relative tolerance, above 0.
        atol: Absolute tolerance, above 0.
        norm: Norm of the scaled error of a batch.

    Returns:
        States at the times, shape (n, B, ...).

    Raises:
        InputError: If the method is unknown, a tolerance is not positive, or no step size meets the
            tolerance.
    """
    check_name("method", method, ADAPTIVE_METHODS)
    if not (rtol > 0 and atol > 0):
        raise InputError(f"rtol and atol must be above 0, got {rtol} and {atol}")
    # A step ends at the last time and none goes beyond it, where an SDE or its score need not be defined.
    options = {"norm": norm, "step_t": times[-1:]}
    try:
        return odeint(dynamics, y, times, method=method, rtol=rtol, atol=atol, options=options)
    except AssertionError as error:  # how torchdiffeq reports a step size of 0 or a state that is not finite
        raise InputError(
            f"the ODE solver found no step that meets rtol={rtol} and atol={atol} ({error}): "
            "check that the score is finite, or raise the tolerances"
        ) from error
