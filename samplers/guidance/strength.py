"""How strongly a score is guided: the scale w, and the noise levels at which there is guidance at all.

    w = 0    the model without guidance: unconditional, or the guiding model itself in autoguidance
    w = 1    the requested model: conditional
    w > 1    beyond it, p_t(x) (p_t(x | c)/p_t(x))^w: typical samples of c, and less diverse ones

This is the scale of Imagen, GLIDE, EDM2 and diffusers. That of Ho & Salimans (2022) is w - 1, and so is
Dhariwal & Nichol's (2021) for a classifier that guides a conditional model; for an unconditional one it is w.

References:
    Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion Models
        (Kynkäänniemi et al., 2024), https://arxiv.org/abs/2404.07724.
"""

from __future__ import annotations

import math

from torch import Tensor

from score_diffusion.sde_lib import SDE, InputError


def checked_scale(scale: float) -> float:
    """The scale.

    Raises:
        InputError: If it is negative or not finite.
    """
    if not (scale >= 0 and math.isfinite(scale)):
        raise InputError(
            f"scale must be a number of at least 0 (0: no guidance, 1: the conditional score), got {scale}"
        )
    return float(scale)


class NoiseInterval:
    """The noise levels low < σ/α <= high, as a function of the time.

    Args:
        sde: The SDE.
        bounds: low and high; high may be infinite.

    Raises:
        InputError: If the bounds are not increasing, or low is negative.
    """

    def __init__(self, sde: SDE, bounds: tuple[float, float]) -> None:
        if len(bounds) != 2 or not 0 <= bounds[0] < bounds[1]:
            raise InputError(
                "interval must be two increasing noise levels σ/α of at least 0, such as (0.2, 5), got "
                f"{bounds}"
            )
        self._sde = sde
        self.low, self.high = (float(bound) for bound in bounds)

    def __call__(self, t: Tensor) -> Tensor:
        """Whether times t (B,) lie in the interval, bool (B,)."""
        level = self._sde.log_noise_level(t.double()).exp()
        return (level > self.low) & (level <= self.high)
