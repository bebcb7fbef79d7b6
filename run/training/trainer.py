"""One training step, and the state that it changes.

Everything random in step k is a function of (seed, k), and its batch one of (seed, epoch, position); times
drawn by importance depend on the losses before, too, which are part of a checkpoint. A run that was stopped
and resumed is bit for bit the run that was not.

No step waits for the one before it: losses and norms are summed on the device (see statistics.py) and read
when they are logged. A step whose loss or gradient is not finite is skipped there, too: weights, averages and
optimizer stay as they were, through the fused optimizer's `found_inf`, with which torch.amp.GradScaler skips.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from score_diffusion.run.build import build_model, build_sde, choose
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.checkpoints.checkpoint import Checkpoint
from score_diffusion.run.checkpoints.contents import check_optimizer
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.distributed import processes
from score_diffusion.run.distributed.model import PARALLEL, full, shard
from score_diffusion.run.errors import UserError
from score_diffusion.run.training.averages import Average, Averages, named_weights
from score_diffusion.run.training.batches import Batch, Draw
from score_diffusion.run.training.loaders import make_feed
from score_diffusion.run.training.objectives import build_objective, build_times
from score_diffusion.run.training.precision import for_training
from score_diffusion.run.training.statistics import Running
from score_diffusion.sde_lib import generator_for


def total_steps(section: ConfigDict) -> int:
    """The steps of the whole training: `steps`, or as many as `images` need if they are fewer."""
    return min(section.steps, -(-section.images // section.batch_size) or section.steps)


# The part of the learning rate that is left after a part of the steps behind the warm-up, both in [0, 1].
SCHEDULES = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "constant": lambda progress: 1.0,
}


def learning_rate(step: int, section: ConfigDict) -> float:
    """Linear warm-up, then the schedule; the cosine reaches 0 after the last step."""
    warmup = min(1.0, (step + 1) / max(1, section.warmup_steps))
    length = max(1, total_steps(section) - section.warmup_steps)
    progress = min(1.0, max(0, step - section.warmup_steps) / length)
    return section.learning_rate * warmup * SCHEDULES[section.schedule](progress)


class Trainer:
    """Model, averages and optimizer, and how one step changes them.

    `draw(step)` is the whole batch of a step: places, noise and times. Process r of W reads and works on
    `draw(step).part(r, W)` alone: the mean of their gradients is that of one process, which has all of it, as
    the mean over micro-batches is that of the batch. Only `finish` wants the losses of all parts; all that
    follows from them is computed by every process alike.

    Args:
        config: The configuration, without "auto".
        dataset: The data.
        device: Where to train.

    Raises:
        UserError: If a setting is unknown or does not fit the others.
    """

    def __init__(self, config: ConfigDict, dataset: Dataset, device: torch.device) -> None:
        section = config.training
        check(section)
        torch.manual_seed(generator_for(config.seed, "weights").initial_seed())
        self.config, self.device, self.scaling, self.shape = config, device, dataset.scaling, dataset.shape
        self.sde = build_sde(config.sde)
        self.model = build_model(config.model, self.sde, dataset.shape).to(device)
        self.group = processes.step_group(device, section.patience)
        self.in_pieces = self.group is not None and section.parallel == "fsdp"
        if section.channels_last and not self.in_pieces:  # weights in pieces keep the usual order
            self.model.to(memory_format=torch.channels_last)
        self.times = build_times(section, self.sde).to(device)
        self.raw = not (config.data.dequantize and dataset.levels)
        self.averages = Averages(self.model, section, device)
        if self.in_pieces:
            self._cut(self.model)
            self.averages.replace(self._cut)
        levels = dataset.levels if self.raw else None
        self.objective = build_objective(section, self.model, self.times, levels).to(device)
        self.training_model = for_training(self.model, section, device, self.shape, self.group)
        self.parameters = [*self.model.parameters(), *self.objective.parameters()]
        if self.in_pieces and any(True for _ in self.objective.parameters()):
            raise UserError(f"objective {section.objective!r} has its own weights: set training.parallel=ddp")
        self.optimizer = torch.optim.Adam(self.parameters, lr=section.learning_rate, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=section.precision == "fp16")
        self.feed = make_feed(dataset.train, section.batch_size, config.seed, device)
        self.running = Running(self.sde, self.times.first, section.batch_size).to(device)
        self.step = 0
        self._held_out = self._draw_held_out(dataset.held_out[: section.held_out].to(device))

    @property
    def ema(self) -> Average:
        """The average that samples are drawn with; `.module` is a model."""
        return self.averages.main

    def _cut(self, model: nn.Module) -> None:
        shard(model.net, self.group)

    def draw(self, step: int) -> Draw:
        """The whole batch of a step: its samples' places, its noise and its times."""
        generator = generator_for(self.config.seed, "step", step, device=self.device)
        places = self.feed.order.places(step)
        shape = (len(places), *self.shape)
        u = torch.rand(shape, generator=generator, device=self.device)
        times = self.times.draw(len(places), generator)
        noise = torch.randn(shape, generator=generator, device=self.device)
        return Draw(places, self._mirrored(step, len(places)), u, times, noise)

    def _mirrored(self, step: int, batch_size: int) -> Tensor | None:
        if not self.config.data.flip:
            return None
        generator = generator_for(self.config.seed, "flip", step, device=self.device)
        return torch.rand(batch_size, generator=generator, device=self.device) < 0.5

    def read(self, draw: Draw) -> Batch:
        """A draw with its samples as the model sees them without noise."""
        samples = self.feed.read(draw.places)
        if draw.mirrored is not None:
            samples = torch.where(draw.mirrored[:, None, None, None], samples.flip(-1), samples)
        return Batch(self._seen(samples, draw.u), draw.times, draw.noise)

    def _seen(self, samples: Tensor, u: Tensor) -> Tensor:
        return self.scaling.stored_to_model(samples, None if self.raw else u)

    def advance(self) -> None:
        """One optimizer step."""
        section = self.config.training
        rank, ranks = processes.rank(), processes.world_size()
        stream = (rank,) if rank else ()  # each process drops other numbers, the first those of one alone
        torch.manual_seed(generator_for(self.config.seed, "dropout", self.step, *stream).initial_seed())
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, section)
        draw = self.draw(self.step)
        batch = self.read(draw.part(rank, ranks))
        self.optimizer.zero_grad()
        losses = torch.cat(
            [self.backward(batch.part(r, section.accumulate)) for r in range(section.accumulate)]
        )
        processes.average_([weights.grad for weights in self.objective.parameters()], self.group)
        self.finish(draw, processes.concatenate(losses, self.group))

    def backward(self, batch: Batch) -> Tensor:
        """Adds a micro-batch's share of the gradient; returns its losses, (B,)."""
        losses = self.objective(self.training_model, batch.x_0, batch.times, batch.noise)
        mean = (batch.times.weights.to(losses) * losses).mean() / self.config.training.accumulate
        self.scaler.scale(mean).backward()
        return losses.detach()

    def finish(self, batch: Draw | Batch, losses: Tensor) -> None:
        """Updates everything by the gradients of a batch, unless something of them is not finite.

        Args:
            batch: The whole batch, for its times.
            losses: Its losses, shape (B,).
        """
        self.scaler.unscale_(self.optimizer)
        loss = (batch.times.weights.to(losses) * losses).mean()
        norm = full(nn.utils.clip_grad_norm_(self.parameters, self.config.training.grad_clip or math.inf))
        ok = loss.isfinite() & norm.isfinite()
        self.optimizer.grad_scale, self.optimizer.found_inf = None, (~ok).float()
        self.optimizer.step()
        self.scaler.update()
        self.averages.update(self.model, ok)
        before = [buffer.clone() for buffer in self.times.buffers()]
        self.times.update(batch.times, losses)
        for buffer, old in zip(self.times.buffers(), before, strict=True):
            buffer.copy_(torch.where(ok, buffer, old))
        self.running.add(self.step, ok, loss, norm, batch.times.t, losses)
        self.step += 1

    def _draw_held_out(self, samples: Tensor) -> Batch | None:
        if not len(samples):
            return None
        generator = generator_for(self.config.seed, "held-out", device=self.device)
        u = torch.rand(samples.shape, generator=generator, device=self.device)
        times = build_times(self.config.training, self.sde).to(self.device).draw(len(samples), generator)
        noise = torch.randn(samples.shape, generator=generator, device=self.device)
        return Batch(self._seen(samples, u), times, noise)

    @torch.no_grad()
    def held_out_loss(self) -> float | None:
        """The average's mean loss on held-out samples, the same with the same times and noise each time.

        None where `training.held_out` is 0. Waits for the device.
        """
        if self._held_out is None:
            return None
        size, losses = self.config.training.batch_size, []
        for start in range(0, len(self._held_out), size):
            batch = self._held_out.rows(slice(start, start + size))
            losses.append(self.objective(self.ema.module, batch.x_0, batch.times, batch.noise))
        return torch.cat(losses).double().mean().item()

    def checkpoint(self, seconds: float) -> Checkpoint:
        """The whole state, after so many seconds of training."""
        return Checkpoint(
            step=self.step,
            model=self.model.state_dict(),
            ema=self.ema.module.state_dict(),
            optimizer=self.optimizer.state_dict(),
            seconds=seconds,
            ema_updates=int(self.averages.updates),
            averages=named_weights(self.averages.beside_main),
            times=self.times.state_dict(),
            objective=self.objective.state_dict(),
            scaler=self.scaler.state_dict(),
            running=self.running.state_dict(),
            held_out_loss=self.held_out_loss(),
        )

    def pieces(self) -> Checkpoint | None:
        """The present state, where it is in pieces: what a checkpoint is read into, to be restored."""
        if not self.in_pieces:
            return None
        for weights in self.parameters:
            weights.grad = torch.zeros_like(weights)
        self.optimizer.step()  # makes the optimizer's state; nothing else changes without a gradient
        return self.checkpoint(0.0)

    def restore(self, saved: Checkpoint, workdir: Path) -> None:
        """Takes the state of a checkpoint, read from a run directory that an error can name.

        What checkpoints of other libraries lack begins anew.
        """
        check_optimizer(saved.optimizer, self.optimizer, workdir)
        checkpoint.load_weights(self.model, saved.model, workdir)
        checkpoint.load_weights(self.ema.module, saved.ema, workdir)
        for name, average in self.averages.beside_main.items():
            checkpoint.load_weights(average.module, saved.average(name) or saved.ema, workdir)
        checkpoint.load_weights(self.times, saved.times, workdir, must_be_finite=False)
        if saved.running:
            checkpoint.load_weights(self.running, saved.running, workdir, must_be_finite=False)
        if saved.objective:
            checkpoint.load_weights(self.objective, saved.objective, workdir)
        self.optimizer.load_state_dict(saved.optimizer)
        if saved.scaler:
            self.scaler.load_state_dict(saved.scaler)
        self.averages.updates.fill_(saved.ema_updates)
        self.step = saved.step


def check(section: ConfigDict) -> None:
    """Refuses a section `training` with unknown names, or batches that cannot be shared out."""
    choose(SCHEDULES, section.schedule, "training.schedule")
    choose(dict.fromkeys(PARALLEL), section.parallel, "training.parallel")
    ranks = processes.world_size()
    if section.batch_size % (ranks * section.accumulate) and ranks > 1:
        raise UserError(
            f"training.batch_size={section.batch_size} cannot be shared out evenly: set it to a multiple of "
            f"{ranks * section.accumulate}, processes times training.accumulate"
        )
    if section.batch_size % section.accumulate:
        raise UserError(
            f"training.accumulate={section.accumulate} must divide training.batch_size={section.batch_size}"
        )
