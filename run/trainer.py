"""One training step, and the state that it changes.

Everything random in step k is a function of (seed, k), and its batch one of (seed, epoch, position); times
drawn by importance depend on the losses before, too, which are part of a checkpoint. A run that was stopped
and resumed is bit for bit the run that was not. Loss and gradient norm are summed on the
device and read only when they are logged, so that no step waits for the one before it.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from run import checkpoint
from run.batches import BatchOrder, Draw
from run.build import build_model, build_sde
from run.checkpoint import Checkpoint
from run.data import Dataset, to_continuous, to_raw
from run.ema import EMA
from run.errors import UserError
from run.objectives import build_objective, build_times
from sde_lib import generator_for


def learning_rate(step: int, section: ConfigDict) -> float:
    """Linear warm-up, then a cosine that reaches 0 after the last step."""
    warmup = min(1.0, (step + 1) / max(1, section.warmup_steps))
    progress = min(1.0, max(0, step - section.warmup_steps) / max(1, section.steps - section.warmup_steps))
    return section.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * progress))


class Trainer:
    """Model, average and optimizer, and how one step changes them.

    `draw(step)` is the whole batch of a step: indices, noise and times. Process r of W would read and work on
    `draw(step).part(r, W)`, and the mean of their gradients is that of one process, which has all of it.
    """

    def __init__(self, config: ConfigDict, dataset: Dataset, device: torch.device) -> None:
        torch.manual_seed(generator_for(config.seed, "weights").initial_seed())
        self.config, self.device, self.levels = config, device, dataset.levels
        self.sde = build_sde(config.sde)
        self.model = build_model(config.model, self.sde, dataset.shape).to(device)
        self.times = build_times(config.training, self.sde).to(device)
        self.raw = not (config.data.dequantize and dataset.levels)
        levels = dataset.levels if self.raw else None
        self.objective = build_objective(config.training, self.model, self.times, levels)
        self.ema = EMA(self.model, config.training.ema_decay)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=config.training.learning_rate, fused=True
        )
        self.data, self.shape = dataset.train.to(device), dataset.shape
        self.batches = BatchOrder(len(self.data), config.training.batch_size, config.seed, device)
        self.step = 0
        self._reset_sums()

    def _reset_sums(self) -> None:
        self._sums, self._count = torch.zeros(2, device=self.device), 0

    def draw(self, step: int) -> Draw:
        """The whole batch of a step: its samples' indices, its noise and its times."""
        generator = generator_for(self.config.seed, "step", step, device=self.device)
        indices = self.batches(step)
        shape = (len(indices), *self.shape)
        u = torch.rand(shape, generator=generator, device=self.device)
        times = self.times.draw(len(indices), generator)
        noise = torch.randn(shape, generator=generator, device=self.device)
        return Draw(indices, self._mirrored(step, len(indices)), u, times, noise)

    def _mirrored(self, step: int, batch_size: int) -> Tensor | None:
        if not self.config.data.flip:
            return None
        generator = generator_for(self.config.seed, "flip", step, device=self.device)
        return torch.rand(batch_size, generator=generator, device=self.device) < 0.5

    def read(self, draw: Draw) -> Tensor:
        """The samples of a batch as the model sees them without noise, shape (B, *shape)."""
        batch = self.data[draw.indices]
        if draw.mirrored is not None:
            batch = torch.where(draw.mirrored[:, None, None, None], batch.flip(-1), batch)
        return to_raw(batch, self.levels) if self.raw else to_continuous(batch, self.levels, draw.u)

    def loss(self, step: int) -> Tensor:
        """The mean loss of the batch of a step."""
        draw = self.draw(step)
        losses = self.objective(self.read(draw), draw.times, draw.noise)
        self.times.update(draw.times, losses.detach())
        return (draw.times.weights.to(losses) * losses).mean()

    def advance(self) -> None:
        """One optimizer step."""
        section = self.config.training
        torch.manual_seed(generator_for(self.config.seed, "dropout", self.step).initial_seed())
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, section)
        loss = self.loss(self.step)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), section.grad_clip or math.inf)
        self.optimizer.step()
        self.ema.update_parameters(self.model)
        self._sums += torch.stack([loss.detach(), norm])
        self._count += 1
        self.step += 1

    def means(self) -> tuple[float, float]:
        """Mean loss and gradient norm since the last call; waits for the device.

        Raises:
            UserError: If they are not finite, before anything of it could reach a checkpoint.
        """
        loss, norm = (self._sums / max(1, self._count)).tolist()
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise UserError(
                f"training diverged by step {self.step} (loss {loss}, gradient norm {norm}), earlier "
                "checkpoints are intact: lower training.learning_rate or training.grad_clip and train in "
                "another --workdir"
            )
        self._reset_sums()
        return loss, norm

    def checkpoint(self, seconds: float) -> Checkpoint:
        """The whole state, after so many seconds of training."""
        return Checkpoint(
            step=self.step,
            model=self.model.state_dict(),
            ema=self.ema.module.state_dict(),
            optimizer=self.optimizer.state_dict(),
            seconds=seconds,
            ema_updates=int(self.ema.n_averaged),
            times=self.times.state_dict(),
        )

    def restore(self, saved: Checkpoint, workdir: Path) -> None:
        """Takes the state of a checkpoint, read from a run directory that an error can name."""
        checkpoint.load_weights(self.model, saved.model, workdir)
        checkpoint.load_weights(self.ema.module, saved.ema, workdir)
        checkpoint.load_weights(self.times, saved.times, workdir)
        self.optimizer.load_state_dict(saved.optimizer)
        self.ema.n_averaged.fill_(saved.ema_updates)
        self.step = saved.step
