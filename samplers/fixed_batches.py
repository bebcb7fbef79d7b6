"""Network evaluations that do not depend on the batch size."""

from __future__ import annotations

import torch
from torch import Tensor

from score_diffusion.sde_lib import InputError, ScoreFunction, ScoreWrapper, map_condition
from score_diffusion.sde_lib.score_wrapper import Condition, Evaluation


class FixedBatches(ScoreWrapper):
    """A score function that is evaluated in batches of one size, the last one padded.

    Convolutions and matrix products choose their order of summation by the shape of the batch: the same
    sample differs in its last bits between batches of different sizes, but not between places in a batch. In
    batches of one size the score of a sample depends on that sample only, bit for bit.

    Args:
        score: The score function, a network's.
        size: Samples in a batch, at least 1.

    Raises:
        InputError: If the size is below 1.
    """

    def __init__(self, score: ScoreFunction, size: int) -> None:
        super().__init__(score)
        if size < 1:
            raise InputError(f"size must be at least 1, got {size}")
        self.size = size

    def evaluate(self, inner: Evaluation, x: Tensor, t: Tensor, cond: Condition = None) -> tuple[Tensor, ...]:
        n, missing = len(x), -len(x) % self.size
        index = torch.arange(n + missing, device=x.device).clamp_max(n - 1)

        def part(rows: Tensor) -> tuple[Tensor, ...]:
            return inner(x[rows], t[rows], map_condition(lambda c: c[rows], cond))

        parts = [part(rows) for rows in index.split(self.size)]
        return tuple(torch.cat(values)[:n] for values in zip(*parts, strict=True))
