"""Network evaluations that do not depend on the batch size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from score_diffusion.sde_lib import ScoreFunction, score_and_fraction


class FixedBatches:
    """A score function, evaluated in batches of one size, the last one padded.

    Convolutions and matrix products choose their order of summation by the shape of the batch: the same
    sample comes out different in its last bits in a batch of another size, though not at another place in
    it. In batches of one size a sample's score is a function of that sample alone, bit for bit.

    Args:
        score: The score function, a network's.
        size: Samples in a batch, at least 1.

    Raises:
        ValueError: If the size is below 1.
    """

    def __init__(self, score: ScoreFunction, size: int) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self._score, self._size = score, size

    @property
    def device(self) -> torch.device:
        """The device of the score."""
        return getattr(self._score, "device", torch.device("cpu"))

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The score of x, shape (B, *shape), at times t, shape (B,)."""
        return self._in_batches(lambda x, t: (self._score(x, t),), x, t)[0]

    def score_and_fraction(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The score and the fraction of a learned variance, see `ScoreModel.score_and_fraction`."""
        return self._in_batches(lambda x, t: score_and_fraction(self._score, x, t), x, t)

    def _in_batches(
        self, evaluate: Callable[[Tensor, Tensor], tuple[Tensor, ...]], x: Tensor, t: Tensor
    ) -> tuple[Tensor, ...]:
        n, missing = len(x), -len(x) % self._size
        index = torch.arange(n + missing, device=x.device).clamp_max(n - 1)
        parts = [evaluate(x[i], t[i]) for i in index.split(self._size)]
        return tuple(torch.cat(values)[:n] for values in zip(*parts, strict=True))
