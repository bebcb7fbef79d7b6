"""Conjugate gradients for a batch of linear systems, each with a symmetric positive definite matrix of its
own.

Reference:
    Methods of Conjugate Gradients for Solving Linear Systems (Hestenes & Stiefel, 1952); with a
        preconditioner as in Numerical Optimization (Nocedal & Wright, 2006), Algorithm 5.3.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from score_diffusion.sde_lib import expand
from score_diffusion.sde_lib.per_sample import dot_each

Linear = Callable[[Tensor], Tensor]


def conjugate_gradients(
    matrix: Linear, b: Tensor, iterations: int, preconditioner: Linear | None = None
) -> Tensor:
    """An approximate solution of matrix(x) = b from x = 0.

    All samples take the same number of iterations, so that nothing waits for the device; a sample whose
    residual is down to rounding, or whose direction has no positive curvature, keeps its x.

    Args:
        matrix: v -> M v for v of shape (B, *shape).
        b: Right-hand sides, shape (B, *shape).
        iterations: Iterations, one product with the matrix each.
        preconditioner: v -> P v with P close to the inverse of M; None for the identity.

    Returns:
        x, shape (B, *shape).
    """
    tolerance = torch.finfo(b.dtype).eps ** 2
    x, residual = torch.zeros_like(b), b
    target = tolerance * dot_each(b, b)
    z = residual if preconditioner is None else preconditioner(residual)
    direction, rz = z, dot_each(residual, z)
    for _ in range(iterations):
        product = matrix(direction)
        curvature = dot_each(direction, product)
        active = (curvature > 0) & (dot_each(residual, residual) > target)
        step = expand(torch.where(active, rz / curvature, 0.0), b)
        x = x + step * direction
        residual = residual - step * product
        z = residual if preconditioner is None else preconditioner(residual)
        last, rz = rz, dot_each(residual, z)
        direction = z + expand(torch.where(active, rz / last, 0.0), b) * direction
    return x
