"""The times at which training takes its losses: one class for each way to draw them.

    UniformTimes       t uniform in [ε, T]
    LogNormalTimes     log(σ/α) ~ N(P_mean, P_std²)                  (Karras et al., 2022, Table 1)
    ChainTimes         the noisy times t_1 < ... < t_N of the SDE's chain, all equally likely
    ImportanceTimes    those times, p(t_k) ∝ √E[L_k²]                (Nichol & Dhariwal, 2021, Section 3.3)
    LikelihoodTimes    p(t) ∝ g²/σ²                                  (Song et al., 2021, Section 5.1)

Each draws a batch at once, `times.draw(batch_size, generator)`. All but ImportanceTimes are stratified: one
time in each of `batch_size` cells of equal probability, all with one offset (Kingma et al., 2021, Appendix
I.1), so that the mean loss over a batch varies less than with independent times. Where times are not drawn by
the law that the loss is meant for, weights 1/(N p(t_k)) restore its mean.

References:
    Maximum Likelihood Training of Score-Based Diffusion Models (Song et al., 2021),
        https://arxiv.org/abs/2101.09258.
    Variational Diffusion Models (Kingma et al., 2021), https://arxiv.org/abs/2107.00630.
    Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021),
        https://arxiv.org/abs/2102.09672.
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
        https://arxiv.org/abs/2206.00364.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from score_diffusion.sde_lib.errors import InputError
from score_diffusion.sde_lib.sde import SDE

FIRST_TIME = 1e-5  # at t = 0 the score of VP and sub-VP is not defined


def stratified_uniform(
    batch_size: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Ascending numbers, one in each of `batch_size` equal cells of [0, 1], each uniform on its own.

    All cells share one offset (Kingma et al., 2021, Appendix I.1).

    Args:
        batch_size: Number of cells.
        generator: Source of the randomness; the numbers are made on its device.
        dtype: Their floating-point type.

    Returns:
        The numbers, shape (batch_size,).
    """
    device = generator.device if generator is not None else None
    offset = torch.rand(1, generator=generator, device=device, dtype=dtype)
    return (torch.arange(batch_size, device=device) + offset) / batch_size


def sample_times(
    sde: SDE, batch_size: int, generator: torch.Generator | None = None, eps: float = FIRST_TIME
) -> Tensor:
    """Stratified times, one in each of `batch_size` equal cells of [eps, T].

    Args:
        sde: The SDE, for its end time T.
        batch_size: Number of times.
        generator: Source of the randomness; the times are made on its device.
        eps: The smallest time.

    Returns:
        Times, ascending, shape (batch_size,), float32.
    """
    return eps + (sde.T - eps) * stratified_uniform(batch_size, generator)


def noisy_times(sde: SDE) -> Tensor:
    """The times of the SDE's chain at which there is noise, ascending, float64, on the CPU."""
    times = sde.discrete_times()
    return times[sde.sigma(times) > 0]


@dataclass(frozen=True)
class DrawnTimes:
    """The times of a batch."""

    t: Tensor
    """Times, shape (B,)."""
    weights: Tensor
    """Weights of the losses there, shape (B,), with mean 1."""
    k: Tensor | None = None
    """Indices of the times among `noisy_times`, shape (B,); None for times that are not the chain's."""


class TrainingTimes(nn.Module, ABC):
    """Base class: where the times of a batch come from. What it learned from losses is in its state_dict.

    Args:
        first: The earliest time that is drawn.
    """

    in_chain = False
    """Whether the times are those of the SDE's chain, drawn with their indices."""

    def __init__(self, first: float) -> None:
        super().__init__()
        self.first = first

    @abstractmethod
    def draw(self, batch_size: int, generator: torch.Generator | None = None) -> DrawnTimes:
        """The times of a batch, on the generator's device."""

    def update(self, drawn: DrawnTimes, losses: Tensor) -> None:
        """Learns from the losses (B,), without weights, at drawn times."""


class UniformTimes(TrainingTimes):
    """Times uniform in [eps, T], stratified.

    Args:
        sde: The SDE, for its end time T.
        eps: The smallest time.
    """

    def __init__(self, sde: SDE, eps: float = FIRST_TIME) -> None:
        super().__init__(eps)
        self.sde = sde

    def draw(self, batch_size: int, generator: torch.Generator | None = None) -> DrawnTimes:
        t = sample_times(self.sde, batch_size, generator, self.first)
        return DrawnTimes(t, torch.ones_like(t))


class NoiseLevelTimes(TrainingTimes):
    """Base class of times in [eps, T] that are drawn by log(σ/α), for any SDE.

    Times are interpolated in a table over log(σ/α), with steps so small (about 1e-3) that the error is below
    one part in a million (a few at the kinks of DDPM's chain). `SDE.time_at_log_noise_level` takes a thousand
    small operations for its bisection, too slow for every training step.

    Args:
        sde: The SDE.
        eps: The smallest time.
    """

    _times: Tensor

    def __init__(self, sde: SDE, eps: float = FIRST_TIME) -> None:
        super().__init__(eps)
        ends = torch.tensor([eps, sde.T], dtype=torch.float64)
        self._lowest, self._highest = sde.log_noise_level(ends).tolist()
        log_levels = torch.linspace(self._lowest, self._highest, 2**14 + 1, dtype=torch.float64)
        times = sde.time_at_log_noise_level(log_levels).clamp(eps, sde.T)
        self.register_buffer("_times", times, persistent=False)

    def _at(self, log_noise_level: Tensor) -> Tensor:
        """The times of values of log(σ/α), float64; values outside [eps, T] are clamped to it."""
        last = len(self._times) - 1
        position = (log_noise_level - self._lowest) * (last / (self._highest - self._lowest))
        position = position.clamp(0, last)
        k = position.long().clamp(0, last - 1)
        return torch.lerp(self._times[k], self._times[k + 1], position - k)


class LogNormalTimes(NoiseLevelTimes):
    """Times with log(σ/α) ~ N(P_mean, P_std²) (Karras et al., 2022, Table 1), for any SDE, stratified.

    Draws outside [eps, T] are clamped to it: with EDM's numbers 2 in a million above σ/α = 80, and 2 in a
    thousand below VE's σ_min = 0.01.

    Args:
        sde: The SDE.
        p_mean: P_mean, the mean of log(σ/α).
        p_std: P_std, its standard deviation, above 0.
        eps: The smallest time.

    Raises:
        InputError: If p_std is not positive.
    """

    def __init__(self, sde: SDE, p_mean: float = -1.2, p_std: float = 1.2, eps: float = FIRST_TIME) -> None:
        super().__init__(sde, eps)
        if not p_std > 0:
            raise InputError(f"p_std must be above 0, got {p_std}")
        self.p_mean, self.p_std = p_mean, p_std

    def draw(self, batch_size: int, generator: torch.Generator | None = None) -> DrawnTimes:
        z = torch.special.ndtri(stratified_uniform(batch_size, generator, torch.float64))
        t = self._at(self.p_mean + self.p_std * z).float()
        return DrawnTimes(t, torch.ones_like(t))


class LikelihoodTimes(NoiseLevelTimes):
    """Times with p(t) ∝ g²/σ², for the weighting "likelihood" (Song et al., 2021, Section 5.1), stratified.

    Since g²/σ² = 2 d log(σ/α)/dt for every SDE, log(σ/α) is uniform. With the weights 1/((T - eps) p(t)) the
    weighted loss has one factor at all times, 2 log((σ_T/α_T)/(σ_eps/α_eps))/(T - eps). With times uniform
    in t its factors differ by several orders of magnitude.

    Args:
        sde: The SDE, with noise at eps and a signal at T.
        eps: The smallest time.

    Raises:
        InputError: If σ/α is 0 at eps or infinite at T.
    """

    def __init__(self, sde: SDE, eps: float = FIRST_TIME) -> None:
        ends = sde.log_noise_level(torch.tensor([eps, sde.T], dtype=torch.float64))
        if not ends.isfinite().all():
            raise InputError(f"times drawn for the likelihood need 0 < σ/α < ∞ from {eps} to T, unlike {sde}")
        super().__init__(sde, eps)
        self.sde = sde

    def draw(self, batch_size: int, generator: torch.Generator | None = None) -> DrawnTimes:
        u = stratified_uniform(batch_size, generator, torch.float64)
        t = self._at(torch.lerp(u.new_tensor(self._lowest), u.new_tensor(self._highest), u))
        density = self.sde.g2(t) / (2 * self.sde.sigma(t).square() * (self._highest - self._lowest))
        return DrawnTimes(t.float(), (1 / ((self.sde.T - self.first) * density)).float())


class ChainTimes(TrainingTimes):
    """The noisy times of the SDE's chain, all equally likely, stratified.

    Args:
        sde: The SDE.
    """

    in_chain = True
    times: Tensor

    def __init__(self, sde: SDE) -> None:
        times = noisy_times(sde)
        super().__init__(float(times[0]))
        self.register_buffer("times", times, persistent=False)

    def draw(self, batch_size: int, generator: torch.Generator | None = None) -> DrawnTimes:
        u = stratified_uniform(batch_size, generator, torch.float64)
        k = (u * len(self.times)).long().clamp_max(len(self.times) - 1)
        return DrawnTimes(self.times[k], torch.ones_like(u), k)


class ImportanceTimes(ChainTimes):
    """Times of the chain with p(t_k) ∝ √E[L_k²] (Nichol & Dhariwal, 2021, Section 3.3), uniform until each
    has been seen often enough. The losses that it has seen are in its state_dict.

    Args:
        sde: The SDE.
        history: How many of the last losses at each time are kept.
        uniform: Fraction of uniform draws, so that no time is forgotten.
    """

    losses: Tensor
    counts: Tensor

    def __init__(self, sde: SDE, history: int = 10, uniform: float = 0.001) -> None:
        super().__init__(sde)
        N = len(self.times)
        self.history, self.uniform = history, uniform
        self.register_buffer("losses", torch.zeros(N, history, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(N, dtype=torch.int64))

    def probabilities(self) -> Tensor:
        """The probability of each time, shape (N,), float64."""
        N = len(self.counts)
        rms = self.losses.square().mean(1).sqrt()
        learned = (1 - self.uniform) * rms / rms.sum().clamp_min(1e-300) + self.uniform / N
        ready = (self.counts >= self.history).all() & (rms.sum() > 0)
        return torch.where(ready, learned, 1 / N)

    def draw(self, batch_size: int, generator: torch.Generator | None = None) -> DrawnTimes:
        p = self.probabilities()
        k = torch.multinomial(p, batch_size, replacement=True, generator=generator)
        return DrawnTimes(self.times[k], 1 / (len(p) * p[k]), k)

    def update(self, drawn: DrawnTimes, losses: Tensor) -> None:
        k = drawn.k
        assert k is not None  # `draw` returns it
        same = k[:, None] == k  # (B, B)
        rank, total = same.tril(-1).sum(1), same.sum(1)  # a time may come more than once in a batch
        # Where a time comes more than `history` times, its oldest losses would collide: they go to a
        # spare slot.
        slot = torch.where(
            total - rank <= self.history,
            k * self.history + (self.counts[k] + rank) % self.history,
            self.losses.numel(),
        )
        flat = torch.cat([self.losses.flatten(), self.losses.new_zeros(1)])
        flat[slot] = losses.detach().to(flat)
        self.losses.copy_(flat[:-1].view_as(self.losses))
        self.counts.index_add_(0, k, torch.ones_like(k))
