"""DDPM's tables of variances β_k, float64, from the first step on.

    linear      β_k uniform from 1e-4 to 0.02                      (Ho et al., 2020, Section 4)
    quadratic   √β_k uniform between the same ends                  (Song et al., 2021, DDIM, Appendix D.3)
    sigmoid     β_k = 1e-4 + (0.02 - 1e-4) sigmoid(u), u uniform from -6 to 6
    cosine      ᾱ(u) = f(u)/f(0), f(u) = cos²((u + s)/(1 + s) π/2), β_k = 1 - ᾱ((k+1)/N)/ᾱ(k/N) <= 0.999
                                                                    (Nichol & Dhariwal, 2021, eq. 17)

The ends of the first three are those of N = 1000 steps. At other N they are multiplied by 1000/N, as Improved
DDPM does, which keeps Π (1 - β_k), and so the amount of noise at the end, nearly the same.

References:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239.
    Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021),
        https://arxiv.org/abs/2102.09672.
    Denoising Diffusion Implicit Models (Song et al., 2021), https://arxiv.org/abs/2010.02502.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from score_diffusion.sde_lib.errors import InputError

FIRST_BETA, LAST_BETA = 1e-4, 0.02  # at N = 1000


def _ends(N: int, first: float | None, last: float | None) -> tuple[float, float]:
    """The first and the last β; those of N = 1000 times 1000/N where they are None."""
    scale = 1000 / max(N, 1)
    if N < 1 or last is None and LAST_BETA * scale >= 1:
        raise InputError(
            f"this table has betas up to 20/N, which must be below 1: use N > 20 or cosine_betas, got N={N}"
        )
    first = FIRST_BETA * scale if first is None else first
    last = LAST_BETA * scale if last is None else last
    if not 0 < first <= last < 1:
        raise InputError(f"the first and the last beta must ascend within (0, 1), got {first:g} and {last:g}")
    return first, last


def linear_betas(N: int, first: float | None = None, last: float | None = None) -> Tensor:
    """Uniformly spaced β_k, shape (N,), float64 (Ho et al., 2020, Section 4).

    Args:
        N: Number of steps.
        first: β_0; None for 0.1/N.
        last: The last β; None for 20/N.
    """
    return torch.linspace(*_ends(N, first, last), N, dtype=torch.float64)


def quadratic_betas(N: int, first: float | None = None, last: float | None = None) -> Tensor:
    """Uniformly spaced √β_k, shape (N,), float64 (Song et al., 2021, DDIM); arguments of `linear_betas`."""
    first, last = _ends(N, first, last)
    return torch.linspace(math.sqrt(first), math.sqrt(last), N, dtype=torch.float64).square()


def sigmoid_betas(N: int, first: float | None = None, last: float | None = None) -> Tensor:
    """β_k along a sigmoid from -6 to 6, shape (N,), float64; arguments as for `linear_betas`."""
    first, last = _ends(N, first, last)
    return first + (last - first) * torch.linspace(-6, 6, N, dtype=torch.float64).sigmoid()


def cosine_betas(N: int, s: float = 0.008, largest: float = 0.999) -> Tensor:
    """β_k of ᾱ ∝ cos², shape (N,), float64 (Nichol & Dhariwal, 2021, eq. 17).

    Args:
        N: Number of steps, at least 1.
        s: Offset that keeps β_k from vanishing at k = 0.
        largest: Bound on β_k, below 1.
    """
    if N < 1:
        raise InputError(f"N must be at least 1 (a number of steps), got {N}")
    u = torch.arange(N + 1, dtype=torch.float64) / N
    f = ((u + s) / (1 + s) * math.pi / 2).cos().square()
    return (1 - f[1:] / f[:-1]).clamp_max(largest)


BETA_TABLES: dict[str, Callable[..., Tensor]] = {
    "linear": linear_betas,
    "quadratic": quadratic_betas,
    "cosine": cosine_betas,
    "sigmoid": sigmoid_betas,
}
