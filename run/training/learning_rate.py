"""The learning rate of each step: linear warm-up, then a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

# The factor of the learning rate as a function of progress in [0, 1] through the steps after the warm-up.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "constant": lambda progress: 1.0,
}


@dataclass(frozen=True)
class LearningRate:
    """The learning rate as a function of the step."""

    peak: float
    """The rate after the warm-up."""
    warmup_steps: int
    total_steps: int
    """Steps of the whole training: a cosine reaches 0 after the last one."""
    schedule: str
    """A name in `SCHEDULES`."""

    def __call__(self, step: int) -> float:
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        length = max(1, self.total_steps - self.warmup_steps)
        progress = min(1.0, max(0, step - self.warmup_steps) / length)
        return self.peak * warmup * SCHEDULES[self.schedule](progress)


def total_steps(steps: int, images: int, batch_size: int) -> int:
    """The steps of the whole training: `steps`, or fewer if they hold `images` before that (0: no limit)."""
    return min(steps, -(-images // batch_size) or steps)
