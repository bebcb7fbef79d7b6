"""Averages of a model's weights over training, which sample better than the weights themselves.

After update t the average moves by θ̄ ← β(t) θ̄ + (1 - β(t)) θ, where, with n = t - 1,

    exponential   β(t) = min(decay, (1 + n)/(10 + n))    a short memory at first forgets the initial weights
    power         β(t) = (1 - 1/t)^(γ + 1)               a memory proportional to t: weights ∝ τ^γ up to t

A power average is named by its relative width σ_rel, the standard deviation of its profile over t,

    σ_rel² = (γ + 1)/((γ + 2)² (γ + 3)),

and the average of any other width follows afterwards from snapshots of two of them: post_hoc_averages.py.

Reference:
    Analyzing and Improving the Training Dynamics of Diffusion Models (Karras et al., 2024),
        https://arxiv.org/abs/2312.02696: Section 3.1, eq. 126 and Algorithm 2.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from score_diffusion.run.distributed.model import own_shard


def exponential_name(decay: float) -> str:
    return f"ema_{decay}"


def power_name(sigma_rel: float) -> str:
    return f"power_{sigma_rel}"


def power_exponent(sigma_rel: float) -> float:
    """γ of a power average of relative width σ_rel in (0, 1/√12), the largest root of the cubic above."""
    v = sigma_rel**-2
    return float(np.roots([1, 7, 16 - v, 12 - v]).real.max())


def exponential(decay: float) -> Callable[[Tensor], Tensor]:
    """1 - β as a function of the number n of updates so far. The first update copies the weights."""
    return lambda n: torch.where(n == 0, 1.0, 1 - ((1 + n) / (10 + n)).clamp_max(decay))


def power(sigma_rel: float) -> Callable[[Tensor], Tensor]:
    """1 - β as a function of the number n of updates so far. The first update copies the weights."""
    gamma = power_exponent(sigma_rel)
    return lambda n: -torch.expm1((gamma + 1) * torch.log1p(-1 / (n + 1)))


class Average:
    """One average of a model's weights.

    Args:
        model: The model; a copy of it holds the average.
        rate: 1 - β as a function of the number of updates so far.
    """

    def __init__(self, model: nn.Module, rate: Callable[[Tensor], Tensor]) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False).eval()
        self.rate = rate
        self._collect_tensors()

    def _collect_tensors(self) -> None:
        self._weights = [own_shard(weight) for weight in self.module.parameters()]
        self._buffers = list(self.module.buffers())

    def transform(self, change: Callable[[nn.Module], None]) -> None:
        """Calls `change(module)`, which may replace the module's tensors, by sharded ones for example."""
        change(self.module)
        self._collect_tensors()

    @torch.no_grad()
    def update(self, model: nn.Module, n: Tensor, use: Tensor) -> None:
        """One update after n others, or none where `use` is 0.

        Both numbers are on the device: that costs a kernel for each tensor, and nothing waits for them.
        """
        rate = self.rate(n) * use
        rates = [rate.to(weight.dtype) for weight in self._weights]
        weights = [own_shard(weight) for weight in model.parameters()]
        torch._foreach_lerp_(self._weights, weights, rates)
        if self._buffers:
            torch._foreach_copy_(self._buffers, list(model.buffers()))


class Averages:
    """The averages of one model, updated together.

    Args:
        model: The model, on its device.
        decay: Decay of the main average, with which samples are drawn.
        extra_decays: Decays of further exponential averages.
        sigma_rels: Relative widths of power averages.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float,
        extra_decays: Sequence[float] = (),
        sigma_rels: Sequence[float] = (),
    ) -> None:
        self.main = Average(model, exponential(decay))
        self.exponential = {
            exponential_name(decay): Average(model, exponential(decay)) for decay in extra_decays
        }
        self.power = {power_name(sigma_rel): Average(model, power(sigma_rel)) for sigma_rel in sigma_rels}
        device = next(model.parameters()).device
        self.updates = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def extra(self) -> dict[str, Average]:
        """All averages but the main one, by name."""
        return {**self.exponential, **self.power}

    @property
    def modules(self) -> list[nn.Module]:
        """The averaged models."""
        return [average.module for average in (self.main, *self.extra.values())]

    def transform(self, change: Callable[[nn.Module], None]) -> None:
        """Calls `change(module)` for every average, see `Average.transform`."""
        for average in (self.main, *self.extra.values()):
            average.transform(change)

    def update(self, model: nn.Module, use: Tensor) -> None:
        """Updates all averages, or none where the boolean `use` on the device is false."""
        use = use.to(self.updates)
        for average in (self.main, *self.extra.values()):
            average.update(model, self.updates, use)
        self.updates += use


def named_weights(averages: dict[str, Average]) -> dict[str, Tensor]:
    """The weights of all averages as "NAME/WEIGHT"."""
    return {
        f"{name}/{key}": weight
        for name, average in averages.items()
        for key, weight in average.module.state_dict().items()
    }
