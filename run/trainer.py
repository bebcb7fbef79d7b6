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

from run import checkpoint, distributed
from run.batches import BatchOrder, Draw
from run.build import build_model, build_sde, choose
from run.checkpoint import Checkpoint
from run.data import Dataset, to_continuous, to_raw
from run.ema import EMA
from run.errors import UserError
from run.objectives import build_objective, build_times
from run.parallel import PARALLEL, full
from sde_lib import ScoreModel, generator_for


def learning_rate(step: int, section: ConfigDict) -> float:
    """Linear warm-up, then a cosine that reaches 0 after the last step."""
    warmup = min(1.0, (step + 1) / max(1, section.warmup_steps))
    progress = min(1.0, max(0, step - section.warmup_steps) / max(1, section.steps - section.warmup_steps))
    return section.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * progress))


class Trainer:
    """Model, average and optimizer, and how one step changes them.

    `draw(step)` is the whole batch of a step: indices, noise and times. Process r of W reads and works on
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
        self.ema = EMA(self.model, config.training.ema_decay)
        self.group = distributed.step_group(device, config.training.patience)
        self.objective = build_objective(config.training, self._in_parallel(), self.times, levels)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=config.training.learning_rate, fused=True
        )
        self.data, self.shape = dataset.train.to(device), dataset.shape
        self.batches = BatchOrder(len(self.data), config.training.batch_size, config.seed, device)
        self.step = 0
        self._reset_sums()

    def _in_parallel(self) -> ScoreModel:
        """The model whose losses are minimized: with several processes one that they share."""
        section, ranks = self.config.training, distributed.world_size()
        wrap = choose(PARALLEL, section.parallel, "training.parallel")
        if section.batch_size % ranks:
            raise UserError(
                f"training.batch_size={section.batch_size} cannot be shared out evenly: set it to a multiple "
                f"of the number of processes, {ranks}"
            )
        return self.model if self.group is None else wrap(self.model, self.ema.module, self.group)

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

    def loss(self, step: int) -> tuple[Tensor, Tensor]:
        """The mean loss of the batch of a step: of this process's part, with gradients, and of all of it."""
        whole = self.draw(step)
        mine = whole.part(distributed.rank(), distributed.world_size())
        losses = self.objective(self.read(mine), mine.times, mine.noise)
        all_losses = distributed.concatenate(losses, self.group)
        self.times.update(whole.times, all_losses)
        mean, mean_of_all = (
            (draw.times.weights.to(values) * values).mean()
            for draw, values in ((mine, losses), (whole, all_losses))
        )
        return mean, mean_of_all

    def advance(self) -> None:
        """One optimizer step."""
        section = self.config.training
        stream = ("dropout", self.step, *([distributed.rank()] if distributed.rank() else []))
        torch.manual_seed(generator_for(self.config.seed, *stream).initial_seed())
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, section)
        loss, loss_of_all = self.loss(self.step)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), section.grad_clip or math.inf)
        self.optimizer.step()
        self.ema.update_parameters(self.model)
        self._sums += torch.stack([loss_of_all, full(norm)])
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

    def restore(self, workdir: Path) -> float:
        """Takes the state of the newest intact checkpoint of a run directory; returns its seconds."""
        saved = checkpoint.latest(workdir, self._pieces())
        checkpoint.load_weights(self.model, saved.model, workdir)
        checkpoint.load_weights(self.ema.module, saved.ema, workdir)
        checkpoint.load_weights(self.times, saved.times, workdir)
        self.optimizer.load_state_dict(saved.optimizer)
        self.ema.n_averaged.fill_(saved.ema_updates)
        self.step = saved.step
        return saved.seconds

    def _pieces(self) -> Checkpoint | None:
        """The present state, to be overwritten, where it is in pieces."""
        if self.group is None or self.config.training.parallel != "fsdp":
            return None
        for weights in self.model.parameters():
            weights.grad = torch.zeros_like(weights)
        self.optimizer.step()  # has a state from now on; without gradients the weights stay
        return self.checkpoint(0.0)
