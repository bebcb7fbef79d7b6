"""What is known of the steps since the last point of the log, summed on the device and read when it is due.

The noise level of a sample at time t is log(σ(t)/α(t)); the losses are summed in ten bins of it,
of equal width but for the first and the last, which are open.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from score_diffusion.sde_lib import SDE

BINS = 10


@dataclass(frozen=True)
class Means:
    """Means over the steps that were not skipped; NaN where there is none."""

    loss: float
    grad_norm: float
    level_edges: list[float]
    """The noise levels between the bins."""
    level_losses: list[float]
    """Mean loss, without weights of importance, in each bin; one more than edges."""
    skipped: int
    """Steps skipped."""
    longest: int
    """The largest number of them in a row, counted from before the last point."""


class Running(nn.Module):
    """Sums on the device. They are part of a checkpoint, so that a resumed run logs what it would have.

    Args:
        sde: The SDE, for the noise levels.
        first: The earliest time in training.
        batch_size: Losses in a step.
    """

    def __init__(self, sde: SDE, first: float, batch_size: int) -> None:
        super().__init__()
        # At T itself rectified flow has no data left.
        ends = torch.tensor([first, 0.999 * sde.T], dtype=torch.float64)
        low, high = sde.noise_level(ends).tolist()
        self.sde = sde
        self.register_buffer("edges", torch.linspace(low, high, BINS + 1)[1:-1], persistent=False)
        self.register_buffer("sums", torch.zeros(3, dtype=torch.float64))  # loss, gradient norm, steps
        self.register_buffer("levels", torch.zeros(2, BINS, dtype=torch.float64))  # losses, their number
        self.register_buffer("skips", torch.zeros(3, dtype=torch.int64))  # in all, in a row now, at most
        self.register_buffer("bad_step", torch.tensor(-1))
        self.register_buffer("bad", torch.zeros(2, batch_size))  # times and losses of the last skipped step

    @torch.no_grad()
    def add(self, step: int, ok: Tensor, loss: Tensor, norm: Tensor, t: Tensor, losses: Tensor) -> None:
        """Takes note of a step; nothing of it is waited for.

        Args:
            step: Number of the step.
            ok: Whether it counts, a boolean on the device; a step that does not was skipped.
            loss: Its mean loss, ().
            norm: Norm of its gradient, ().
            t: Times, shape (B,).
            losses: Losses there, shape (B,).
        """
        values = torch.stack([loss.double(), norm.double(), torch.ones_like(loss, dtype=torch.float64)])
        self.sums += torch.where(ok, values, 0.0)
        bins = torch.bucketize(self.sde.noise_level(t).to(self.edges), self.edges)
        inside = bins == torch.arange(BINS, device=bins.device)[:, None]  # (BINS, B); sums in a fixed order
        both = torch.stack([torch.where(inside, losses.double(), 0.0).sum(1), inside.double().sum(1)])
        self.levels += torch.where(ok, both, 0.0)
        skipped = (~ok).long()
        in_a_row = (self.skips[1] + skipped) * skipped
        self.skips.copy_(
            torch.stack([self.skips[0] + skipped, in_a_row, torch.maximum(self.skips[2], in_a_row)])
        )
        self.bad_step.copy_(torch.where(ok, self.bad_step, step))
        self.bad.copy_(torch.where(ok, self.bad, torch.stack([t.to(losses), losses])))

    def means(self) -> Means:
        """What the sums say; waits for the device."""
        numbers = torch.cat([self.sums, self.levels.flatten(), self.skips.double()]).cpu()
        (loss, norm, steps), rest = numbers[:3], numbers[3:]
        level_losses = rest[:BINS] / rest[BINS : 2 * BINS]
        skipped, _, longest = rest[2 * BINS :].long().tolist()
        return Means(
            loss=float(loss / steps),
            grad_norm=float(norm / steps),
            level_edges=self.edges.tolist(),
            level_losses=level_losses.tolist(),
            skipped=skipped,
            longest=longest,
        )

    def reset(self) -> None:
        """Starts new sums, and goes on counting the steps skipped in a row."""
        self.sums.zero_()
        self.levels.zero_()
        self.skips.mul_(torch.tensor([0, 1, 0], device=self.skips.device))
