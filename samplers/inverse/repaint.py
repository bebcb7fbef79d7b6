"""RePaint: replacement with resampling, which goes back and forth in time so that both parts come to agree.

    rest              x_s ~ N(m(x_t), β̃ I), a step of ancestral sampling
    measured part     x_s ~ N(α_s ȳ, σ_s² - α_s² σ_y²/s²) above the noise of ȳ, below it as the rest, and from
                      ȳ itself where the step crosses it
    and again         x_t ← α_{t|s} x_s + σ_{t|s} z, `resamplings` times in all

as in Algorithm 1. ȳ is the measurement in the coordinates of the operator's decomposition, see
measured_part.py: for a mask without noise these are the known pixels, as in the paper. `jump_length` steps
at once are gone back (Appendix B). Below the noise of ȳ each step is taken once: there only the state knows
of the measurement, and would forget it by going back.

Assumes what Replacement does, and repairs it: with many resamplings each level of noise comes to its own
equilibrium. Costs at most `resamplings` evaluations a step. With few steps samples are too concentrated:
DDPM's β̃ is too small a variance for long steps, and going back and forth adds that up.

Reference:
    RePaint: Inpainting using Denoising Diffusion Probabilistic Models (Lugmayr et al., 2022),
        https://arxiv.org/abs/2201.09865.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from score_diffusion.samplers.base import CountedScore
from score_diffusion.samplers.grids import Grid
from score_diffusion.samplers.inverse.measured_part import MeasuredPartSampler
from score_diffusion.samplers.inverse.operators import Operator
from score_diffusion.sde_lib import SDE, InputError, SampleNoise


class RePaintSampler(MeasuredPartSampler):
    """RePaint, for operators with a decomposition. It takes the score of the prior.

    Args:
        sde, times, operator, y, sigma_y, denoise: As for `MeasuredPartSampler`.
        resamplings: How often each step is taken, r in the paper, which has 10 at 250 steps; 1 is plain
            replacement.
        jump_length: Steps to go back at once, j in the paper.

    Raises:
        InputError: If the operator has no decomposition, y or sigma_y do not fit, or resamplings or
            jump_length are not positive.
    """

    def __init__(
        self,
        sde: SDE,
        times: Tensor | Grid = Grid("clock", 25),
        *,
        operator: Operator,
        y: Tensor,
        sigma_y: float = 0.0,
        denoise: bool = True,
        resamplings: int = 3,
        jump_length: int = 1,
    ) -> None:
        super().__init__(sde, times, operator, y, sigma_y, denoise)
        if resamplings < 1 or jump_length < 1:
            raise InputError(
                f"resamplings and jump_length must be positive, got {resamplings} and {jump_length}"
            )
        self.resamplings, self.jump_length = resamplings, jump_length

    def step(
        self, score: CountedScore, x: Tensor, k: int, noise: SampleNoise, state: None
    ) -> tuple[Tensor, None]:
        """One step of denoising, the measured part drawn anew."""
        alpha, level, next_alpha, next_level = (*self._at(k), *self._at(k + 1))
        x_0 = x / alpha + alpha * level**2 * score(x, self.times[k].item())
        z = noise.normal()
        rest = _denoised(x / alpha, x_0, level, next_level, z)
        (known, known_std), c_0, c_z = self._known(x), self._svd.Vt(x_0), self._svd.Vt(z)
        drawn = known + (next_level**2 - known_std.square()).clamp_min(0).sqrt() * c_z
        crossing = _denoised(known, c_0, known_std.clamp_min(next_level), next_level, c_z)
        rest_c = self._svd.Vt(rest)
        measured = torch.where(known_std < level, crossing, rest_c)
        measured = torch.where(known_std <= next_level, drawn, measured)
        return next_alpha * (rest + self._svd.V(measured - rest_c)), None

    def _at(self, k: int) -> tuple[float, float]:
        return self._alpha[k], self._level[k]

    def _back(self, x: Tensor, k: int, steps: int, noise: SampleNoise) -> Tensor:
        """The diffusion from times[k + steps] back to times[k]."""
        alpha, var = self.sde.transition(self.times[k + steps], self.times[k])
        return alpha.item() * x + var.sqrt().item() * noise.normal()

    def integrate(
        self,
        score: CountedScore,
        x: Tensor,
        noise: SampleNoise,
        record: Callable[[Tensor], None] | None,
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        steps, noise_of_y = len(self.times) - 1, self._known(x)[1].amax().item()
        for first in range(0, steps, self.jump_length):
            block = range(first, min(first + self.jump_length, steps))
            resamplings = self.resamplings if self._level[block.stop] >= noise_of_y else 1
            for repeat in range(resamplings):
                last = repeat == resamplings - 1
                for k in block:
                    x = self.step(score, x, k, noise, None)[0]
                    if last and record is not None:
                        record(x)
                if not last:
                    x = self._back(x, first, len(block), noise)
            on_step(block[-1] + 1, steps)
        return self._finished(score, x, noise)


def _denoised(x: Tensor, x_0: Tensor, level: Tensor | float, next_level: float, z: Tensor) -> Tensor:
    """DDPM's step from noise level σ̃_t to σ̃_s, of states over their signal scale."""
    share = torch.as_tensor(next_level / level).square().nan_to_num(nan=1.0)  # 0/0 without noise at either
    return share * x + (1 - share) * x_0 + next_level * (1 - share).clamp_min(0).sqrt() * z
