"""Autoguidance: a model guided by a worse version of itself.

    s_w(x, t) = s'(x, t) + w (s(x, t) - s'(x, t))

s' is the score of a smaller or less trained network for the same data and the same condition. Where both
agree nothing changes; where they differ, s' errs in the same direction as s, and more, and w > 1 leads away
from it. Unlike classifier-free guidance it does not narrow the classes, and it works without any.

Assumes that the errors of s' resemble those of s: the same data, objective and conditions. Costs an
evaluation of each score, counted as such; of s only where w = 1 and outside the interval, whose times are
read back from the device once per call.

Reference:
    Guiding a Diffusion Model with a Bad Version of Itself (Karras et al., 2024),
        https://arxiv.org/abs/2406.02507: eq. 5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from score_diffusion.samplers.guidance.strength import NoiseInterval, checked_scale
from score_diffusion.sde_lib import SDE, ScoreFunction, ScoreWrapper, map_condition
from score_diffusion.sde_lib.score_wrapper import Condition, Evaluation, evaluations


class Autoguidance(ScoreWrapper):
    """Autoguidance.

    Args:
        score: The score of the better model.
        sde: The SDE of both.
        guide: The score of the worse model, conditioned as the better one is.
        scale: Guidance scale w of at least 0, 0 for the worse model, 1 for the better one.
        interval: Noise levels σ/α, low and high, between which there is guidance; None for all.

    Raises:
        InputError: If scale or interval is out of its range.
    """

    def __init__(
        self,
        score: ScoreFunction,
        sde: SDE,
        guide: ScoreFunction,
        *,
        scale: float = 2.0,
        interval: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(score)
        self.guide, self.scale = guide, checked_scale(scale)
        self.interval = None if interval is None else NoiseInterval(sde, interval)

    @property
    def any_dtype(self) -> bool:
        return super().any_dtype and getattr(self.guide, "any_dtype", False)

    def evaluations(self, t: Tensor) -> int | Tensor:
        of_score, of_guide = evaluations(self.score, t), evaluations(self.guide, t)
        if self.scale == 1:
            return of_score
        return of_score + (of_guide if self.interval is None else self.interval(t) * of_guide)

    def evaluate(self, inner: Evaluation, x: Tensor, t: Tensor, cond: Condition = None) -> tuple[Tensor, ...]:
        score, *fraction = inner(x, t, cond)
        every = torch.arange(len(x), device=x.device)
        rows = every if self.interval is None else every[self.interval(t)]
        if self.scale == 1 or not len(rows):
            return (score, *fraction)
        worse = ScoreWrapper(self.guide)(x[rows], t[rows], map_condition(lambda c: c[rows], cond))
        guided = worse + self.scale * (score[rows] - worse)
        return (score.index_copy(0, rows, guided), *fraction)
