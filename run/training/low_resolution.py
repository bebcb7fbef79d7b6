"""What training conditions an enlarging model on: smaller copies of the samples, with noise and blur."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from score_diffusion.run.data.low_resolution import (
    LEVEL,
    LOW_RESOLUTION,
    blurred,
    shrink,
    with_noise,
)
from score_diffusion.run.data.scaling import Scaling

BLURRED = 0.5  # the share of small images that are blurred, where any are


@dataclass(frozen=True)
class LowResolution:
    """Makes the small images of a batch."""

    factor: int
    """How many times smaller each side is."""
    scaling: Scaling
    """Of the samples."""
    noise: float
    """The largest level of the noise in them, see `run/data/low_resolution.py`."""
    blur: float
    """The largest standard deviation of the blur in pixels of the small image; 0 for none."""

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """What is random about the small images of a batch of samples of a shape (B, C, *size): levels (B,),
        noise (B, C, *size/factor), and widths of blurs (B,).
        """
        count, channels, *sides = shape
        small, device = [side // self.factor for side in sides], generator.device
        level, width, chosen = torch.rand((3, count), generator=generator, device=device)
        noise = torch.randn((count, channels, *small), generator=generator, device=device)
        return self.noise * level, noise, self.blur * width * (chosen < BLURRED)

    def conditions(self, samples: Tensor, level: Tensor, noise: Tensor, width: Tensor) -> dict[str, Tensor]:
        """The small images of stored samples (B, C, *size), under their names as conditions."""
        small = self.scaling.stored_to_model(shrink(samples, self.factor))
        if self.blur:
            small = blurred(small, width, self.blur)
        return {LOW_RESOLUTION: with_noise(small, level, noise), LEVEL: level}
