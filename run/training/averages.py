"""Averages of a model's weights over training, which sample better than the weights themselves.

After update t the average moves by θ̄ ← β(t) θ̄ + (1 - β(t)) θ, where, with n = t - 1,

    exponential   β(t) = min(decay, (1 + n)/(10 + n))    a short memory at first forgets the initial weights
    power         β(t) = (1 - 1/t)^(γ + 1)               a memory in proportion to t: weights ∝ τ^γ up to t

A power average is named by its relative width σ_rel, the standard deviation of its profile over t,

    σ_rel² = (γ + 1)/((γ + 2)² (γ + 3)),

and from snapshots of two of them that of any other width follows afterwards; see post_hoc_averages.py.

Reference:
    Analyzing and Improving the Training Dynamics of Diffusion Models (Karras et al., 2024),
        https://arxiv.org/abs/2312.02696: Section 3.1, eq. 126 and Algorithm 2.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor, nn


def exponential_name(decay: float) -> str:
    return f"ema_{decay}"


def power_name(sigma_rel: float) -> str:
    return f"power_{sigma_rel}"


def power_exponent(sigma_rel: float) -> float:
    """γ of a power average of relative width σ_rel in (0, 1/√12), the largest root of the cubic above."""
    v = sigma_rel**-2
    return float(np.roots([1, 7, 16 - v, 12 - v]).real.max())


def exponential(decay: float) -> Callable[[Tensor], Tensor]:
    """1 - β as a function of the number n of updates so far; the first update copies the weights."""
    return lambda n: torch.where(n == 0, 1.0, 1 - ((1 + n) / (10 + n)).clamp_max(decay))


def power(sigma_rel: float) -> Callable[[Tensor], Tensor]:
    """As `exponential`."""
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
        self._collect()

    def _collect(self) -> None:
        self._weights = list(self.module.parameters())
        self._buffers = list(self.module.buffers())

    def replace(self, change: Callable[[nn.Module], None]) -> None:
        """Lets `change` put other tensors in the places of the copy's weights."""
        change(self.module)
        self._collect()

    @torch.no_grad()
    def update(self, model: nn.Module, n: Tensor, use: Tensor) -> None:
        """One update after n others; none where `use` is 0. Both are on the device and not waited for."""
        # With numbers on the device this is a kernel for each tensor; nothing waits for them.
        rate = self.rate(n) * use
        torch._foreach_lerp_(
            self._weights, list(model.parameters()), [rate.to(weight.dtype) for weight in self._weights]
        )
        if self._buffers:
            torch._foreach_copy_(self._buffers, list(model.buffers()))


class Averages:
    """The averages of a `training` section, updated together.

    Args:
        model: The model.
        section: The section `training`.
        device: Where the model is.
    """

    def __init__(self, model: nn.Module, section: ConfigDict, device: torch.device) -> None:
        self.main = Average(model, exponential(section.ema_decay))
        self.further = {
            exponential_name(decay): Average(model, exponential(decay)) for decay in section.extra_ema_decays
        }
        self.powers = {
            power_name(sigma_rel): Average(model, power(sigma_rel)) for sigma_rel in section.ema_sigma_rels
        }
        self.updates = torch.zeros((), dtype=torch.float64, device=device)

    def replace(self, change: Callable[[nn.Module], None]) -> None:
        """Lets `change` put other tensors in the places of all averages' weights."""
        for average in (self.main, *self.beside_main.values()):
            average.replace(change)

    def update(self, model: nn.Module, use: Tensor) -> None:
        """Takes the weights into all averages, or into none where the boolean on the device is false."""
        use = use.to(self.updates)
        for average in (self.main, *self.further.values(), *self.powers.values()):
            average.update(model, self.updates, use)
        self.updates += use

    @property
    def beside_main(self) -> dict[str, Average]:
        """All averages but the first, by name."""
        return {**self.further, **self.powers}


def named_weights(averages: dict[str, Average]) -> dict[str, Tensor]:
    """The weights of all averages as "NAME/WEIGHT"."""
    return {
        f"{name}/{key}": weight
        for name, average in averages.items()
        for key, weight in average.module.state_dict().items()
    }
