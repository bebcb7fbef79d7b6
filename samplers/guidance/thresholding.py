"""Dynamic thresholding: denoised samples that leave the range of the data are brought back to it.

    s = max(r, the q-quantile of |x̂_0| over the elements of a sample),    x̂_0 ← clip(x̂_0, -s, s) · r/s

with r the largest value of the data, 1 for images in [-1, 1]. Strong guidance pushes x̂_0 out of the range,
step by step, and images saturate; clipping at r only, "static thresholding", leaves them flat there.

Reference:
    Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding (Saharia et al., 2022),
        https://arxiv.org/abs/2205.11487: Section 2.3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from score_diffusion.sde_lib import (
    SDE,
    InputError,
    ScoreFunction,
    ScoreWrapper,
    denoised_from,
    expand,
    score_change,
)
from score_diffusion.sde_lib.score_wrapper import Condition, Evaluation


class DynamicThresholding(ScoreWrapper):
    """A score whose denoised samples stay within the range of the data, for any sampler.

    Args:
        score: The score, guided or not.
        sde: Its SDE.
        quantile: Fraction q in (0, 1] of the elements of a sample that are within ±s; 0.995 as in Imagen.
        largest: The largest absolute value r of the data.

    Raises:
        InputError: If quantile or largest is out of its range.
    """

    def __init__(
        self, score: ScoreFunction, sde: SDE, *, quantile: float = 0.995, largest: float = 1.0
    ) -> None:
        super().__init__(score)
        if not 0 < quantile <= 1:
            raise InputError(f"quantile must lie in (0, 1], got {quantile}")
        if not largest > 0:
            raise InputError(f"largest must be positive, got {largest}")
        self.sde, self.quantile, self.largest = sde, quantile, largest

    def evaluate(self, inner: Evaluation, x: Tensor, t: Tensor, cond: Condition = None) -> tuple[Tensor, ...]:
        score, *fraction = inner(x, t, cond)
        x_0 = denoised_from(self.sde, score, x, t)
        s = expand(_quantile_each(x_0.abs(), self.quantile).clamp_min(self.largest), x_0)
        change = x_0.clamp(-s, s) * (self.largest / s) - x_0
        # Where nothing changes this is the score itself, without rounding.
        return (score + score_change(self.sde, change, t), *fraction)


def _quantile_each(x: Tensor, q: float) -> Tensor:
    """The q-quantile of the elements of each sample, (B,), between neighbours by linear interpolation.

    torch.quantile refuses more than 16 million elements, as a batch of images has them.
    """
    ordered = x.flatten(1).sort(dim=1).values
    position = q * (ordered.shape[1] - 1)
    low, high = ordered[:, math.floor(position)], ordered[:, math.ceil(position)]
    return torch.lerp(low, high, position % 1)
