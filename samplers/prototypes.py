"""Prototype laws on the line, on which the coefficients of `eabm` are fitted, see `prototype_fit.py`.

They stand for what a sampler meets when it knows nothing about the data: directions of every width, pairs of
modes at every distance, narrow and broad, that become distinct early or late, and random mixtures of four
modes, all from scales of 0.01 to 8. In x̃ = x/α and σ̃ = σ/α the probability flow keeps quantiles: x̃ at level
σ̃ has the same distribution function as x̃ at every other level, which gives the flow without solving the ODE.
Its derivative is a ratio of densities,

    dx̃_0/dx̃ = p_σ̃(x̃)/p_0(x̃_0).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from score_diffusion.sde_lib import generator_for

Modes = tuple[Sequence[float], Sequence[float], Sequence[float]]
"""Means, standard deviations and weights of a law's modes."""

BISECTIONS = 70


class Prototypes:
    """Laws on the line and, of each, the paths of the probability flow at some quantiles.

    Args:
        laws: The laws.
        quantiles: The paths, as quantiles of the standard normal distribution.
    """

    def __init__(self, laws: Sequence[Modes], quantiles: Tensor) -> None:
        modes = max(len(means) for means, _, _ in laws)

        def padded(rows: list[Sequence[float]], value: float) -> Tensor:
            full = [[*row, *[value] * (modes - len(row))] for row in rows]
            return torch.tensor(full, dtype=torch.float64).repeat_interleave(len(quantiles), 0)

        means, deviations, weights = zip(*laws, strict=True)
        self.means = padded(list(means), 0.0)  # (R, K), R = laws × quantiles
        self.variances = padded(list(deviations), 1.0).square()  # (R, K)
        weight = padded(list(weights), 0.0)  # 0 leaves a mode out
        self.log_weights = (weight / weight.sum(1, keepdim=True)).log()  # (R, K)
        self.share = torch.special.ndtr(quantiles.double()).repeat(len(laws))  # (R,)
        self.paths_per_law = len(quantiles)

    def flow(self, levels: Tensor) -> Tensor:
        """x̃ of each path at each level σ̃ > 0, shape (n, R) for levels (n,), by bisection."""
        var = self.variances + levels.square()[:, None, None]  # (n, R, K)
        reach = 12 * var.sqrt()
        low, high = (self.means - reach).amin(-1), (self.means + reach).amax(-1)  # (n, R)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            each = torch.special.ndtr((middle[..., None] - self.means) / var.sqrt())
            below = (self.log_weights.exp() * each).sum(-1) < self.share
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def log_density(self, x: Tensor, levels: Tensor) -> Tensor:
        """log p_σ̃(x̃) up to a constant, shape (n, R), for x̃ (n, R) and levels (n,)."""
        var = self.variances + levels.square()[:, None, None]
        return (
            self.log_weights - (x[..., None] - self.means).square() / (2 * var) - var.log() / 2
        ).logsumexp(-1)

    def denoised(self, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """x̂_0 and dx̂_0/dx̃, each of shape (R,), for x̃ (R,) at one level."""
        var = self.variances + level.square()  # (R, K)
        deviation = x[:, None] - self.means
        share = (self.log_weights - deviation.square() / (2 * var) - var.log() / 2).softmax(-1)
        of_mode = self.means + self.variances / var * deviation
        mean = (share * of_mode).sum(-1)
        slope = (share * (self.variances / var - of_mode * deviation / var)).sum(-1)
        return mean, slope + mean * (share * deviation / var).sum(-1)

    @cached_property
    def laws(self) -> int:
        """Number of laws."""
        return len(self.share) // self.paths_per_law


def prototypes() -> Prototypes:
    """The laws to which `eabm` is fitted."""
    generator = generator_for(0, "prototypes")

    def uniform(low: float, high: float, n: int) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64)

    laws: list[Modes] = [([0.0], [s], [1.0]) for s in torch.logspace(-2, 0.9, 22).tolist()]
    for distance in torch.logspace(-1.5, 0.8, 14).tolist():
        for ratio in (0.01, 0.05, 0.2, 0.6):
            laws.append(([-distance, distance], [ratio * distance] * 2, [0.5, 0.5]))
    for _ in range(60):
        scale = 10 ** uniform(-1.0, 0.7, 1)
        means = scale * torch.randn(4, generator=generator, dtype=torch.float64)
        deviations, weights = scale * 10 ** uniform(-1.7, 0.2, 4), uniform(0.2, 1.2, 4)
        laws.append((means.tolist(), deviations.tolist(), weights.tolist()))
    return Prototypes(laws, torch.linspace(0.15, 2.1, 6))
