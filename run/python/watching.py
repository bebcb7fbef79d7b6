"""Watching a run at work: a function that sees every evaluation of its score, and may end the work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.sde_lib import ScoreFunction, ScoreWrapper
from score_diffusion.sde_lib.score_wrapper import Condition, Evaluation

Watch = Callable[[Tensor, Tensor, Tensor], None]
"""Gets the states x_t, shape (B, *shape), their times, shape (B,), and their scores, shape (B, *shape)."""


class WatchedScore(ScoreWrapper):
    """A score that shows a function where it is evaluated, and what it gives.

    Args:
        score: The score.
        watch: The function. What it raises ends the work.
    """

    def __init__(self, score: ScoreFunction, watch: Watch) -> None:
        super().__init__(score)
        self.watch = watch

    def evaluate(self, inner: Evaluation, x: Tensor, t: Tensor, cond: Condition = None) -> tuple[Tensor, ...]:
        score, *fraction = inner(x, t, cond)
        self.watch(x.detach(), t.detach(), score.detach())
        return (score, *fraction)


def with_watched_samples(trained: TrainedModel, watch: Watch | None) -> TrainedModel:
    """A model whose samples are watched: the score that they are drawn with, guidance included."""
    if watch is None:
        return trained
    return replace(trained, guide=lambda score: WatchedScore(trained.guide(score), watch))


def with_watched_score(trained: TrainedModel, watch: Watch | None) -> TrainedModel:
    """A model whose score is watched itself, as it is when data are scored."""
    return trained if watch is None else replace(trained, score=WatchedScore(trained.score, watch))
