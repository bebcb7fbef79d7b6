"""One training step, and the state that it changes.

Everything random in step k is a function of (seed, k), and its batch of (seed, epoch, position); times drawn
by importance also depend on earlier losses, which are part of a checkpoint. A run that was stopped and
resumed is bit for bit the run that was not.

No step waits for the one before it: losses and norms are summed on the device (see statistics.py) and read
when they are logged. A step whose loss or gradient is not finite is skipped on the device as well: weights,
averages and optimizer stay as they were, by the fused optimizer's `found_inf`, as torch.amp.GradScaler skips.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.checkpoints.checkpoint import Checkpoint
from score_diffusion.run.checkpoints.contents import check_optimizer, renumber_parameters
from score_diffusion.run.distributed import processes
from score_diffusion.run.distributed.model import full_tensor, replicate, shard
from score_diffusion.run.training.averages import Averages, named_weights
from score_diffusion.run.training.batches import Batch, BatchDraw, BatchSource, weighted_mean
from score_diffusion.run.training.objectives import Objective
from score_diffusion.run.training.precision import TrainingNetwork, with_network
from score_diffusion.run.training.statistics import TrainingStatistics
from score_diffusion.sde_lib import generator_for


@dataclass(frozen=True)
class StepSettings:
    """How a step changes the weights."""

    learning_rate: Callable[[int], float]
    """Adam's learning rate as a function of the step."""
    micro_batches: int = 1
    """Equal shares of a rank's batch that are worked on one after the other, to save memory."""
    grad_clip: float = math.inf
    """Largest norm of the gradient."""
    dtype: torch.dtype = torch.float32
    """Type of the network's convolutions and matrix products."""
    channels_last: bool = False
    """Whether images are in channels-last order."""
    compiled: bool = False
    """Whether the network is compiled."""


@dataclass(frozen=True)
class Ranks:
    """How several processes share the work of a step."""

    group: ProcessGroup
    sharded: bool
    """Whether each has a shard of the weights (fsdp), or all of them (ddp)."""


class Trainer:
    """Model, averages and optimizer, and how one step changes them.

    Rank r of W reads and works on share r of a batch only: the mean of the ranks' gradients is that of one
    process with the whole batch, as the mean over micro-batches is that of the batch. Only `finish` needs the
    losses of all shares; every rank computes all that follows from them alike.

    Args:
        model: The model, on its device, with its initial weights.
        objective: What is minimized, on the same device.
        batches: The batches of the training set.
        averages: Averages of the model's weights.
        statistics: Statistics of the steps, on the same device.
        settings: How a step changes the weights.
        seed: Seed of dropout.
        held_out: Held-out samples with their times and noise; None for no held-out loss.
        ranks: How several processes share the work; None for one process.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective[Any],
        batches: BatchSource,
        averages: Averages,
        statistics: TrainingStatistics,
        settings: StepSettings,
        seed: int,
        held_out: Batch | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.model, self.objective, self.batches = model, objective, batches
        self.averages, self.statistics, self.settings = averages, statistics, settings
        self._seed, self.held_out = seed, held_out
        self._group = ranks.group if ranks else None
        self._sharded = ranks is not None and ranks.sharded
        if self._sharded:
            self._shard(model)
            averages.transform(self._shard)
        self._training_model = with_network(model, self._training_network)
        named = dict(model.named_parameters())
        own = {
            f"objective.{n}": weights for n, weights in objective.named_parameters() if weights.requires_grad
        }
        self._of_model, self._of_objective = [*named.values()], [*own.values()]
        self.device = self._of_model[0].device
        self.optimizer = torch.optim.Adam([*(named | own).items()], lr=settings.learning_rate(0), fused=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.dtype == torch.float16)
        self.step = 0

    def _shard(self, model: nn.Module) -> None:
        assert self._group is not None
        net = getattr(model, "net", model)
        shard(net, self._group)

    def _training_network(self, net: nn.Module) -> nn.Module:
        settings = self.settings
        running = TrainingNetwork(net, settings.dtype, settings.channels_last, settings.compiled)
        return running if self._group is None or self._sharded else replicate(running, self._group)

    @property
    def average(self) -> nn.Module:
        """The model with the averaged weights that samples are drawn with."""
        return self.averages.main.module

    def advance(self) -> None:
        """One optimizer step."""
        rank, ranks, micro_batches = processes.rank(), processes.world_size(), self.settings.micro_batches
        if self.objective.needs_whole_batch:
            rank, ranks = 0, 1  # the same on every rank
        stream = (rank,) if rank else ()  # ranks drop different numbers; rank 0 those of a single process
        torch.manual_seed(generator_for(self._seed, "dropout", self.step, *stream).initial_seed())
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate(self.step)
        self.objective.step = self.step
        draw = self.batches.draw(self.step)
        batch = self.batches.read(draw.share(rank, ranks))
        self.optimizer.zero_grad()
        losses = torch.cat([self.backward(batch.share(k, micro_batches)) for k in range(micro_batches)])
        own_gradients = [weights.grad for weights in self.objective.parameters() if weights.grad is not None]
        processes.average_over_ranks_(own_gradients, self._group)
        self.finish(draw, processes.concatenate_over_ranks(losses, self._group if ranks > 1 else None))
        self.objective.after_step([self.model, *self.averages.modules], self._group)

    def backward(self, batch: Batch) -> Tensor:
        """Adds a micro-batch's share of the gradient; returns its losses, (B,)."""
        losses = self.objective(self._training_model, batch)
        mean = weighted_mean(losses, batch.times) / self.settings.micro_batches
        self.scaler.scale(mean).backward()
        return losses.detach()

    def finish(self, batch: BatchDraw | Batch, losses: Tensor) -> None:
        """Updates everything by the gradients of a batch, unless something of them is not finite.

        Args:
            batch: The whole batch, for its times.
            losses: Its losses, shape (B,).
        """
        self.scaler.unscale_(self.optimizer)
        loss = weighted_mean(losses, batch.times)
        norm = self._clipped_norm(self._of_model)
        ok = loss.isfinite() & norm.isfinite()
        if self._of_objective:  # such as a discriminator, whose gradient says nothing about the model's
            ok = ok & self._clipped_norm(self._of_objective).isfinite()
        fused: Any = self.optimizer
        fused.grad_scale, fused.found_inf = None, (~ok).float()
        self.optimizer.step()
        self.scaler.update()
        self.averages.update(self.model, ok)
        self._update_times(batch, losses, ok)
        self.statistics.add(self.step, ok, loss, norm, losses, None if batch.times is None else batch.times.t)
        self.step += 1

    def _clipped_norm(self, parameters: list[nn.Parameter]) -> Tensor:
        """The norm of a gradient, shape (), which is then bounded."""
        return full_tensor(nn.utils.clip_grad_norm_(parameters, self.settings.grad_clip))

    def _update_times(self, batch: BatchDraw | Batch, losses: Tensor, ok: Tensor) -> None:
        """Lets the choice of times learn from the losses, or leaves it as it was where `ok` is false."""
        if self.batches.times is None or batch.times is None:
            return
        before = [buffer.clone() for buffer in self.batches.times.buffers()]
        self.batches.times.update(batch.times, losses)
        for buffer, old in zip(self.batches.times.buffers(), before, strict=True):
            buffer.copy_(torch.where(ok, buffer, old))

    @torch.no_grad()
    def held_out_loss(self) -> float | None:
        """The average's mean loss on the held-out samples, None without them. Waits for the device."""
        losses = [self.objective(self.average, batch) for batch in self._held_out_batches()]
        if self.held_out is None:
            return None
        return weighted_mean(torch.cat(losses).double(), self.held_out.times).item()

    def _held_out_batches(self) -> list[Batch]:
        """The held-out samples in batches of the training's size; none without them."""
        if self.held_out is None:
            return []
        size = self.batches.order.batch_size
        return [self.held_out[start : start + size] for start in range(0, len(self.held_out), size)]

    def held_out_figures(self) -> dict[str, float]:
        """The objective's figures of the held-out samples; empty without them. Waits for the device."""
        batches = self._held_out_batches()
        return self.objective.figures(self.average, batches) if batches else {}

    @torch.no_grad()
    def held_out_accuracy(self) -> tuple[float, list[float]] | None:
        """The share of held-out samples that the average recognizes, of all and in each bin of log(σ/α), NaN
        in an empty one, without times in none; None without them, or where it has no meaning. Waits for the
        device.
        """
        if self.held_out is None:
            return None
        found = []
        for batch in self._held_out_batches():
            recognized = self.objective.recognized(self.average, batch)
            if recognized is None:
                return None
            found.append(recognized.double())
        values = torch.cat(found)
        if self.held_out.times is None:
            return values.mean().item(), []
        inside = self.statistics.bins_of(self.held_out.times.t)
        return values.mean().item(), ((inside * values).sum(1) / inside.sum(1)).tolist()

    def checkpoint(self, seconds: float) -> Checkpoint:
        """The whole state, after so many seconds of training."""
        return Checkpoint(
            step=self.step,
            model=self.model.state_dict(),
            ema=self.average.state_dict(),
            optimizer=self.optimizer.state_dict(),
            seconds=seconds,
            ema_updates=int(self.averages.updates),
            averages=named_weights(self.averages.extra),
            times={} if self.batches.times is None else self.batches.times.state_dict(),
            objective=self.objective.state_dict(),
            scaler=self.scaler.state_dict(),
            running=self.statistics.state_dict(),
            held_out_loss=self.held_out_loss(),
        )

    def state_to_read_into(self) -> Checkpoint | None:
        """Where the state is sharded, the present one, into which a checkpoint is read before `restore`."""
        if not self._sharded:
            return None
        for weights in (*self._of_model, *self._of_objective):
            weights.grad = torch.zeros_like(weights)
        self.optimizer.step()  # makes the optimizer's state, and changes nothing where the gradient is 0
        return self.checkpoint(0.0)

    def restore(self, saved: Checkpoint, workdir: Path) -> None:
        """Takes over the state of a checkpoint. What a converted checkpoint lacks starts afresh.

        Args:
            saved: The checkpoint.
            workdir: The run directory it is from, for errors.
        """
        optimizer = renumber_parameters(saved.optimizer, self.optimizer)
        check_optimizer(optimizer, self.optimizer, workdir)
        checkpoint.load_weights(self.model, saved.model, workdir)
        checkpoint.load_weights(self.average, saved.ema, workdir)
        for name, average in self.averages.extra.items():
            checkpoint.load_weights(average.module, saved.average(name) or saved.ema, workdir)
        if self.batches.times is not None:
            checkpoint.load_weights(self.batches.times, saved.times, workdir, must_be_finite=False)
        if saved.running:
            checkpoint.load_weights(self.statistics, saved.running, workdir, must_be_finite=False)
        if saved.objective:
            checkpoint.load_weights(self.objective, saved.objective, workdir)
        self.optimizer.load_state_dict(optimizer)
        if saved.scaler:
            self.scaler.load_state_dict(saved.scaler)
        self.averages.updates.fill_(saved.ema_updates)
        self.step = saved.step
