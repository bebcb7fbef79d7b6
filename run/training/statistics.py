"""Statistics of the steps since the last point of the log: summed on the device, read when they are logged.

Losses of objectives with times are summed in ten bins of log(σ/α) as well, of equal width except for the
first and the last, which are open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BINS = 10


@dataclass(frozen=True)
class StatisticsSummary:
    """Means over the steps that were not skipped, NaN where there is none."""

    loss: float
    grad_norm: float
    level_edges: list[float]
    """The values of log(σ/α) between the bins; empty for objectives without times."""
    level_losses: list[float]
    """Mean loss in each bin, without weights of importance; one more than edges, or none."""
    skipped: int
    """Steps skipped."""
    longest_skipped_streak: int
    """The most steps skipped in a row; a streak may have begun before the last point of the log."""


class TrainingStatistics(nn.Module):
    """Sums on the device. They are part of a checkpoint, so that a resumed run logs what it would have.

    Args:
        batch_size: Losses in a step.
        log_noise_level: log(σ/α) as a function of the time; None for objectives without times.
        interval: The earliest and the latest time, which the bins cover.
    """

    edges: Tensor
    sums: Tensor
    level_sums: Tensor
    skips: Tensor
    skipped_step: Tensor
    skipped_batch: Tensor

    def __init__(
        self,
        batch_size: int,
        log_noise_level: Callable[[Tensor], Tensor] | None = None,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        self.log_noise_level = log_noise_level
        edges = torch.empty(0)
        if log_noise_level is not None:
            low, high = log_noise_level(torch.tensor(interval, dtype=torch.float64)).tolist()
            edges = torch.linspace(low, high, BINS + 1)[1:-1]
        self.register_buffer("edges", edges, persistent=False)
        self.register_buffer("sums", torch.zeros(3, dtype=torch.float64))  # loss, gradient norm, steps
        self.register_buffer("level_sums", torch.zeros(2, BINS, dtype=torch.float64))  # losses, their number
        self.register_buffer(
            "skips", torch.zeros(3, dtype=torch.int64)
        )  # in all, in a row now, in a row at most
        self.register_buffer("skipped_step", torch.tensor(-1))
        self.register_buffer("skipped_batch", torch.zeros(2, batch_size))  # times and losses of that step

    @torch.no_grad()
    def add(
        self, step: int, ok: Tensor, loss: Tensor, norm: Tensor, losses: Tensor, t: Tensor | None
    ) -> None:
        """Adds a step, without waiting for the device.

        Args:
            step: Number of the step.
            ok: Whether it counts, a boolean on the device; a step that does not was skipped.
            loss: Its mean loss, ().
            norm: Norm of its gradient, ().
            losses: The losses of its samples, shape (B,).
            t: Their times, shape (B,); None for objectives without times.
        """
        values = torch.stack([loss.double(), norm.double(), torch.ones_like(loss, dtype=torch.float64)])
        self.sums += torch.where(ok, values, 0.0)
        if self.log_noise_level is not None and t is not None:
            inside = self.bins_of(t)  # a fixed order of sums
            both = torch.stack([torch.where(inside, losses.double(), 0.0).sum(1), inside.double().sum(1)])
            self.level_sums += torch.where(ok, both, 0.0)
        skipped = (~ok).long()
        streak = (self.skips[1] + skipped) * skipped
        self.skips.copy_(torch.stack([self.skips[0] + skipped, streak, torch.maximum(self.skips[2], streak)]))
        self.skipped_step.copy_(torch.where(ok, self.skipped_step, step))
        times = torch.zeros_like(losses) if t is None else t.to(losses)
        self.skipped_batch.copy_(torch.where(ok, self.skipped_batch, torch.stack([times, losses])))

    def bins_of(self, t: Tensor) -> Tensor:
        """Whether times (B,) lie in each bin, bool (BINS, B)."""
        assert self.log_noise_level is not None
        bins = torch.bucketize(self.log_noise_level(t).to(self.edges), self.edges)
        return bins == torch.arange(BINS, device=bins.device)[:, None]

    def summary(self) -> StatisticsSummary:
        """The means; waits for the device."""
        numbers = torch.cat([self.sums, self.level_sums.flatten(), self.skips.double()]).cpu()
        (loss, norm, steps), rest = numbers[:3], numbers[3:]
        level_losses = rest[:BINS] / rest[BINS : 2 * BINS]
        skipped, _, longest = rest[2 * BINS :].long().tolist()
        return StatisticsSummary(
            loss=float(loss / steps),
            grad_norm=float(norm / steps),
            level_edges=self.edges.tolist(),
            level_losses=[] if self.log_noise_level is None else level_losses.tolist(),
            skipped=skipped,
            longest_skipped_streak=longest,
        )

    def reset(self) -> None:
        """Starts new sums, and keeps counting the steps skipped in a row."""
        self.sums.zero_()
        self.level_sums.zero_()
        self.skips.mul_(torch.tensor([0, 1, 0], device=self.skips.device))
