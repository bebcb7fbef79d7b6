"""Annealed Langevin dynamics (Song & Ermon, 2019, Algorithm 1), Langevin steps at each of a decreasing
sequence of noise levels, and consistent annealed sampling (Jolicoeur-Martineau et al., 2021), one step from
each level to the next.

The algorithms are defined where the signal has scale 1, x̃ = x/α with noise of standard deviation σ̃ = σ/α,
and so they serve every SDE: the score there is α ∇log p_t(α x̃). At level i annealed Langevin dynamics takes
n steps of size a_i = ε (σ̃_i/σ̃_L)²,

    x̃ ← x̃ + a_i/2 score(x̃, σ̃_i) + √a_i z.

Here the ratio r = ε/σ̃_L² is the parameter, a_i = r σ̃_i²: it has no units, and the signal-to-noise ratio
of a step, √r/2 per dimension, does not change when data or levels are rescaled. NCSN's ε = 2e-5 at σ̃_L =
0.01 is r = 0.2. NCSNv2 writes a step without the half, x̃ + a_i score + √(2 a_i) z: its ε is half of
NCSN's, r = 2ε/σ̃_L², and `sde_lib.relative_step_size` chooses it.

Langevin steps do not keep the noise at the level that the score is evaluated at. On a single data point,
where σ̃_i² score = x_0 - x̃, a step with η = r/2 shrinks noise of deviation σ̃_i to (1 - η) σ̃_i; consistent
annealed sampling then adds as much noise as makes it σ̃_{i+1}:

    x̃ ← x̃ + η σ̃_i² score(x̃, σ̃_i) + β_i σ̃_{i+1} z,    β_i² = 1 - ((1 - η) σ̃_i/σ̃_{i+1})².

η lies between 1 - γ, which adds no noise, and 1 + γ, with γ = σ̃_{i+1}/σ̃_i; at η = 1 each step denoises
fully and starts anew.

References:
    Generative Modeling by Estimating Gradients of the Data Distribution (Song & Ermon, 2019),
        https://arxiv.org/abs/1907.05600.
    Improved Techniques for Training Score-Based Generative Models (Song & Ermon, 2020),
        https://arxiv.org/abs/2006.09011: the step size by Technique 4, the final denoising step.
    Adversarial Score Matching and Improved Sampling for Image Generation (Jolicoeur-Martineau et al., 2021),
        https://arxiv.org/abs/2009.05475: Algorithm 2, consistent annealed sampling.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from score_diffusion.samplers.base import CountedScore, StepSampler
from score_diffusion.samplers.grids import Grid, times_of
from score_diffusion.samplers.linear import GridCoefficients
from score_diffusion.samplers.options import Names
from score_diffusion.sde_lib import SDE, InputError, SampleNoise, relative_step_size

AUTO = "auto"


class _AnnealedSampler(StepSampler):
    """The step along the score that both algorithms take at a noise level.

    The levels are those of a time grid. A last time without noise, that of `chain_grid` for most SDEs, is no
    level and is left out.
    """

    def __init__(self, sde: SDE, times: Tensor | Grid, denoise: bool, step_size: float | str) -> None:
        times = times_of(sde, times)
        if times.ndim == 1 and len(times) and sde.sigma(times[-1]) == 0:
            times = times[:-1]
        super().__init__(sde, times, denoise)
        if isinstance(step_size, str):
            if step_size != AUTO:
                raise InputError(f"step_size must be a number or {AUTO!r}, got {step_size!r}")
            step_size = self._step_size_by_rule()
        if not 0 < step_size < 4:
            raise InputError(f"step_size must lie in (0, 4), or the dynamics diverge, got {step_size}")
        self.step_size = step_size
        at = GridCoefficients(sde, self.times)
        self._t, self._alpha, self._sigma = (v.tolist() for v in (at.t, at.alpha, at.sigma))

    @abstractmethod
    def _step_size_by_rule(self) -> float:
        """The step size that `step_size="auto"` stands for."""

    def _step_along_score(self, score: CountedScore, x: Tensor, k: int) -> Tensor:
        # In the coordinates of x = α x̃ a step size a_i = r σ̃² becomes α² a_i = r σ².
        return torch.add(x, score(x, self._t[k]), alpha=self.step_size / 2 * self._sigma[k] ** 2)


class AnnealedLangevinSampler(_AnnealedSampler):
    """Annealed Langevin dynamics over the noise levels of a time grid (Song & Ermon, 2019, Algorithm 1).

    Args:
        sde, times, denoise: As for every `Sampler`.
        n_steps_each: Number of Langevin steps at each level.
        step_size: Size of a Langevin step relative to the variance of the noise, "auto" for NCSNv2's rule. It
            is r = ε/σ̃_L² in (0, 4), a step at level i has a_i = r σ̃_i²; the bias grows with r. The rule,
            Technique 4 for geometric levels, is `relative_step_size`.

    Raises:
        InputError: If n_steps_each is below 1 or the step size does not lie in (0, 4).
    """

    def __init__(
        self,
        sde: SDE,
        times: Tensor | Grid = Grid("log_snr", 200),
        *,
        denoise: bool = True,
        n_steps_each: int = 5,
        step_size: Annotated[float | str, Names(AUTO)] = 0.5,
    ) -> None:
        if n_steps_each < 1:
            raise InputError(f"n_steps_each must be at least 1, got {n_steps_each}")
        self.n_steps_each = n_steps_each
        super().__init__(sde, times, denoise, step_size)

    def _step_size_by_rule(self) -> float:
        log_levels = self.sde.log_noise_level(self.times)
        ratio = ((log_levels[0] - log_levels[-1]) / (len(self.times) - 1)).exp()
        return relative_step_size(ratio.item(), self.n_steps_each)

    def _langevin_steps(self, score: CountedScore, x: Tensor, k: int, noise: SampleNoise) -> Tensor:
        std = math.sqrt(self.step_size) * self._sigma[k]
        for _ in range(self.n_steps_each):
            x = self._step_along_score(score, x, k).add_(noise.normal(), alpha=std)
        return x

    def integrate(
        self,
        score: CountedScore,
        x: Tensor,
        noise: SampleNoise,
        record: Callable[[Tensor], None] | None,
        on_step: Callable[[int, int], None],
    ) -> Tensor:
        return super().integrate(score, self._langevin_steps(score, x, 0, noise), noise, record, on_step)

    def step(
        self, score: CountedScore, x: Tensor, k: int, noise: SampleNoise, state: None
    ) -> tuple[Tensor, None]:
        """Keeps x̃ from the k-th level as it is, then takes the Langevin steps at the next."""
        return self._langevin_steps(score, x * (self._alpha[k + 1] / self._alpha[k]), k + 1, noise), None


class ConsistentAnnealedSampler(_AnnealedSampler):
    """Consistent annealed sampling over the levels of a time grid (Jolicoeur-Martineau et al., 2021).

    One evaluation per level: more steps are more levels. The last level has only the final denoising.

    Args:
        sde, times, denoise: As for every `Sampler`.
        step_size: Size of a step relative to the variance of the noise, "auto" for a rule. It is r = 2η,
            2ε/σ̃_L² for the ε of the paper, and lies in [2 (1 - γ), 2 (1 + γ)] for the smallest ratio γ of a
            level to the one before. The rule is 1.1 times the lower bound, but at least 0.2 and at most 2, a
            full denoising in each step.

    Raises:
        InputError: If the step size does not lie between these bounds.
    """

    def __init__(
        self,
        sde: SDE,
        times: Tensor | Grid = Grid("log_snr", 200),
        *,
        denoise: bool = True,
        step_size: Annotated[float | str, Names(AUTO)] = AUTO,
    ) -> None:
        super().__init__(sde, times, denoise, step_size)
        gamma = self._smallest_ratio()
        low, high = 2 * (1 - gamma), 2 * (1 + gamma)
        if not low * (1 - 1e-9) <= self.step_size <= high * (1 + 1e-9):
            raise InputError(
                f"step_size must lie in [{low:.6g}, {high:.6g}] since a noise level is only {gamma:.6g} "
                f"times the one before, got {step_size}: choose such a step size, 'auto', or more levels"
            )

    def _smallest_ratio(self) -> float:
        """γ, the smallest ratio of a noise level to the one before."""
        return self.sde.log_noise_level(self.times).diff().exp().min().item()

    def _step_size_by_rule(self) -> float:
        return min(2.0, max(0.2, 1.1 * (2 * (1 - self._smallest_ratio()))))

    def step(
        self, score: CountedScore, x: Tensor, k: int, noise: SampleNoise, state: None
    ) -> tuple[Tensor, None]:
        """Takes a step along the score at the k-th level, then adds the noise that the next level lacks."""
        alpha_ts = self._alpha[k] / self._alpha[k + 1]
        kept = (1 - self.step_size / 2) * self._sigma[k] / (alpha_ts * self._sigma[k + 1])
        std = math.sqrt(max(0.0, 1 - kept**2)) * self._sigma[k + 1]
        return (self._step_along_score(score, x, k) / alpha_ts).add_(noise.normal(), alpha=std), None
