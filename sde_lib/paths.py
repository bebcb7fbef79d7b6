"""Paths of later papers as SDEs: the cosine schedule, EDM's path, rectified flow.

Each is α(t), σ(t) and their derivatives; the base class derives the rest.

References:
    Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021),
        https://arxiv.org/abs/2102.09672: eq. 17, the cosine schedule.
    DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling (Lu et al., 2022),
        https://arxiv.org/abs/2206.00927: Appendix D.4, its continuous form and end time.
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
        https://arxiv.org/abs/2206.00364: Table 1, σ(t) = t.
    Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow (Liu et al., 2023),
        https://arxiv.org/abs/2209.03003; Flow Matching for Generative Modeling (Lipman et al., 2023),
        https://arxiv.org/abs/2210.02747.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from score_diffusion.sde_lib.errors import InputError
from score_diffusion.sde_lib.sde import SDE
from score_diffusion.sde_lib.vp_ve import VariancePreserving


class CosineVPSDE(VariancePreserving):
    """The variance-preserving SDE with α(t) = cos(π/2 (t + s)/(1 + s))/cos(π/2 s/(1 + s)), s = 0.008
    (Nichol & Dhariwal, 2021, eq. 17).

    α(1) = 0, where x_t holds nothing of the data: the path ends at T = 0.9946, as in DPM-Solver, with
    α(T) = 0.008.

    Args:
        N: Number of discretization steps.
    """

    T = 0.9946
    _s = 0.008

    def __init__(self, N: int = 1000) -> None:
        super().__init__(N)

    def _angle(self, t: Tensor) -> Tensor:
        return (t + self._s) * (math.pi / 2 / (1 + self._s))

    def log_alpha(self, t: Tensor) -> Tensor:
        # cos(a)/cos(a_0) = 1 + [cos(a) - cos(a_0)]/cos(a_0), the difference as a product that keeps small
        # t's digits
        start = math.pi / 2 * self._s / (1 + self._s)
        half = t * (math.pi / 4 / (1 + self._s))
        return torch.log1p(-2 * (start + half).sin() * half.sin() / math.cos(start))

    def beta(self, t: Tensor) -> Tensor:
        return self._angle(t).tan() * (math.pi / (1 + self._s))

    def discrete_times(self) -> Tensor:
        """t_k = (k + 1) T/N: ascending, shape (N,), float64, on the CPU."""
        return self.T * torch.arange(1, self.N + 1, dtype=torch.float64) / self.N

    def chain_position(self, t: Tensor) -> Tensor:
        return t * (self.N / self.T) - 1

    def step_index(self, t: Tensor) -> Tensor:
        """Index k of the step with t in (t_{k-1}, t_k]; tolerates float32 rounding of times on the grid."""
        return ((t.double() / self.T - 2e-7) * self.N).ceil().long().sub(1).clamp(0, self.N - 1)

    def _discrete_beta(self, k: Tensor) -> Tensor:
        end, start = (self.T * n.double() / self.N for n in (k + 1, k))
        return -torch.expm1(2 * (self.log_alpha(end) - self.log_alpha(start)))


class EDMSDE(SDE):
    """α = 1, σ(t) = t, dx = √(2t) dw: time is the noise level itself (Karras et al., 2022).

    Args:
        sigma_min: Where samplers stop, above 0.
        sigma_max: The end time T, above sigma_min.
        N: Number of discretization steps.

    Raises:
        InputError: If 0 < sigma_min < sigma_max does not hold.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, N: int = 1000) -> None:
        super().__init__(N)
        if not 0 < sigma_min < sigma_max:
            raise InputError(
                f"EDMSDE needs 0 < sigma_min < sigma_max, got sigma_min={sigma_min} and sigma_max={sigma_max}"
            )
        self.sampling_eps, self.T = float(sigma_min), float(sigma_max)

    @property
    def prior_std(self) -> float:
        return self.T

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def dlog_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def dsigma2(self, t: Tensor) -> Tensor:
        return 2 * t


class RectifiedFlowSDE(SDE):
    """The straight path α = 1 - t, σ = t as an SDE with its marginals.

    Its probability-flow ODE is the flow of the velocity E[ε - x_0 | x_t] (Liu et al., 2023; Lipman et al.,
    2023). α(1) = 0, where x_t holds nothing of the data: the path ends at T = 0.999.

    Args:
        N: Number of discretization steps.
    """

    T = 0.999

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.log1p(-t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def dlog_alpha(self, t: Tensor) -> Tensor:
        return -1 / (1 - t)

    def dsigma2(self, t: Tensor) -> Tensor:
        return 2 * t
