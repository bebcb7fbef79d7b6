"""Super-resolution by a network that was trained for it: conditioned on the small image and its noise.

The measurement y = A(x_0) + σ_y ε, A the means of blocks, is what the network was trained to be conditioned
on: the small image with noise of a level s,

    x_low = cos(πs/2) A(x_0) + sin(πs/2) ε = α y,    tan(πs/2) = σ_y,    α = 1/√(1 + σ_y²).

Its samples are those of p(x_0 | y) as far as it has learned them, without any gradient.

Reference:
    Image Super-Resolution via Iterative Refinement (Saharia et al., 2021), https://arxiv.org/abs/2104.07636.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from score_diffusion.samplers.guidance.conditions import rows_for
from score_diffusion.sde_lib import ScoreFunction, ScoreWrapper
from score_diffusion.sde_lib.score_wrapper import Condition, Evaluation


def augmentation_level(sigma_y: float) -> float:
    """The level s in [0, 1) of the noise in a small image."""
    return 2 / math.pi * math.atan(sigma_y)


class GivenSmallImage(ScoreWrapper):
    """The score of p(x_t | y) by that of a network which enlarges images.

    Args:
        score: The score of the network, score(x, t, cond); see models/super_resolution.py.
        y: The small image, shape (C, *size), or one for each sample.
        sigma_y: Standard deviation of its noise.
    """

    def __init__(self, score: ScoreFunction, y: Tensor, sigma_y: float) -> None:
        super().__init__(score)
        self.small = y / math.hypot(1.0, sigma_y)
        self.level = augmentation_level(sigma_y)

    def evaluate(self, inner: Evaluation, x: Tensor, t: Tensor, cond: Condition = None) -> tuple[Tensor, ...]:
        small = self.small if self.small.ndim == x.ndim else self.small[None]
        level = torch.full((len(x),), self.level, device=x.device)
        given = {"low_resolution": rows_for(small, x, "y").float(), "augmentation": level}
        return inner(x, t, {**(cond or {}), **given})
