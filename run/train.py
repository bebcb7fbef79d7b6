"""Training.

Everything random in step k is a function of (seed, k), and its batch one of (seed, epoch, position); times
drawn by importance depend on the losses before, too, which are part of a checkpoint. A run that was stopped
and resumed is bit for bit the run that was not. Loss and gradient norm are summed on the
device and read only when they are logged, so that no step waits for the one before it.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from run import checkpoint, plots
from run.auto import resolve_levels, take_levels
from run.build import build_model, build_sde
from run.checkpoint import Checkpoint
from run.config import CONFIG_FILE, config_text, differing_keys, flatten, read_config, save_config
from run.data import Dataset, load_dataset, samples_to_raw, to_continuous, to_raw
from run.errors import UserError
from run.objectives import build_objective, build_times
from run.recorder import LOG_FILE, LOSS_CURVE, Recorder
from run.report import format_duration, print_result
from run.rundir import DataInfo, read_data_info, write_data_info
from run.samples import batch_feed
from samplers import make_sampler
from sde_lib import generator_for

# Keys that may change when a run goes on: they do not enter the steps already done.
FREE_KEYS = ("steps", "max_minutes", "log_every", "sample_every", "checkpoint_every", "keep")
PREVIEW_IMAGES, PREVIEW_POINTS, PREVIEW_NFE = 64, 1000, 15


class EMA(AveragedModel):
    """Exponential moving average of a model's weights, with decay min(decay, (1 + n)/(10 + n)) at update n.

    The short memory at first lets the average forget the initial weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, multi_avg_fn=self._average)
        self.decay = decay
        self.eval()

    @torch.no_grad()
    def _average(self, averages: list[Tensor], weights: list[Tensor], _: Tensor) -> None:
        # This buffer is on the CPU. The last argument is its copy on the device, which would be waited for.
        n = int(self.n_averaged)
        torch._foreach_lerp_(averages, weights, 1 - min(self.decay, (1 + n) / (10 + n)))


class BatchOrder:
    """Batch k of an endless sequence of epochs, each a permutation of its own; no sample is dropped."""

    def __init__(self, n: int, batch_size: int, seed: int, device: torch.device) -> None:
        self.n, self.batch_size, self.seed, self.device = n, batch_size, seed, device
        self._epoch, self._order = -1, torch.empty(0)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = generator_for(self.seed, "epoch", epoch)
            self._epoch, self._order = epoch, torch.randperm(self.n, generator=generator).to(self.device)
        return self._order

    def __call__(self, step: int) -> Tensor:
        """Indices of the batch of a step, shape (batch_size,)."""
        parts, position, end = [], step * self.batch_size, (step + 1) * self.batch_size
        while position < end:
            epoch, offset = divmod(position, self.n)
            take = min(self.n - offset, end - position)
            parts.append(self._permutation(epoch)[offset : offset + take])
            position += take
        return torch.cat(parts)


def learning_rate(step: int, section: ConfigDict) -> float:
    """Linear warm-up, then a cosine that reaches 0 after the last step."""
    warmup = min(1.0, (step + 1) / max(1, section.warmup_steps))
    progress = min(1.0, max(0, step - section.warmup_steps) / max(1, section.steps - section.warmup_steps))
    return section.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * progress))


class Trainer:
    """Model, average and optimizer, and how one step changes them."""

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
        self.shape = dataset.shape
        order = BatchOrder(len(dataset.train), config.training.batch_size, config.seed, torch.device("cpu"))
        self.batches = batch_feed(dataset.train, order, device)
        self.step = 0
        self._reset_sums()

    def _reset_sums(self) -> None:
        self._sums, self._count = torch.zeros(2, device=self.device), 0

    def loss(self, step: int) -> Tensor:
        """The mean loss of the batch of a step."""
        generator = generator_for(self.config.seed, "step", step, device=self.device)
        batch = self._flipped(self.batches(step), step)
        u = torch.rand(batch.shape, generator=generator, device=self.device)
        x_0 = to_raw(batch, self.levels) if self.raw else to_continuous(batch, self.levels, u)
        drawn = self.times.draw(len(x_0), generator)
        noise = torch.randn(x_0.shape, generator=generator, device=self.device)
        losses = self.objective(x_0, drawn, noise)
        self.times.update(drawn, losses.detach())
        return (drawn.weights.to(losses) * losses).mean()

    def _flipped(self, batch: Tensor, step: int) -> Tensor:
        if not self.config.data.flip:
            return batch
        generator = generator_for(self.config.seed, "flip", step, device=self.device)
        mirrored = torch.rand(len(batch), generator=generator, device=self.device) < 0.5
        return torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)

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
        checkpoint.load_weights(self.model, saved.model, workdir)
        checkpoint.load_weights(self.ema.module, saved.ema, workdir)
        checkpoint.load_weights(self.times, saved.times, workdir)
        self.optimizer.load_state_dict(saved.optimizer)
        self.ema.n_averaged.fill_(saved.ema_updates)
        self.step = saved.step

    def save_preview(self, path: Path) -> None:
        """A picture of samples from the average and one fixed noise, by a short probability-flow ODE."""
        count = PREVIEW_IMAGES if self.levels else PREVIEW_POINTS
        sampler = make_sampler("eabm", self.sde, PREVIEW_NFE, denoise=True)
        samples = sampler(self.ema.module, (count, *self.shape), device=self.device).samples
        plots.save_samples(path, samples_to_raw(samples, self.levels).cpu().numpy())


class StopRequest:
    """Makes the first Ctrl-C or SIGTERM a request to stop after the current step; the second acts at once."""

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> StopRequest:
        self._previous = {
            number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.__exit__()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def train(config: ConfigDict, workdir: Path, device: torch.device) -> int:
    """Trains, or goes on training, in a run directory.

    Args:
        config: The configuration.
        workdir: The run directory, created if need be.
        device: Where to train.

    Returns:
        The exit code: 0, or 128 + n when signal n stopped the training.

    Raises:
        UserError: If the directory holds another run, the data cannot be used, or training diverges.
    """
    if checkpoint.exists(workdir) and (workdir / CONFIG_FILE).exists():
        config = take_levels(config, read_config(workdir))
    _check_same_run(config, workdir)
    dataset = load_dataset(config.data)
    _check_same_data(dataset, workdir)
    config = resolve_levels(config, dataset)
    trainer = Trainer(config, dataset, device)
    seconds = 0.0
    if checkpoint.exists(workdir):
        saved = checkpoint.latest(workdir)
        trainer.restore(saved, workdir)
        seconds = saved.seconds
        print(f"resuming {workdir} at step {saved.step}")
    print(config_text(config))
    save_config(config, workdir)
    write_data_info(workdir, DataInfo.of(dataset))
    with StopRequest() as stop, Recorder(workdir, trainer.step, config.training.steps) as recorder:
        clock = _clock(seconds)
        last_means = _loop(trainer, recorder, workdir, stop, clock)
    return _report(trainer, workdir, stop, clock(), last_means)


def _clock(seconds: float) -> Callable[[], float]:
    start = time.perf_counter() - seconds
    return lambda: time.perf_counter() - start


def _loop(
    trainer: Trainer, recorder: Recorder, workdir: Path, stop: StopRequest, clock: Callable[[], float]
) -> tuple[float, float] | None:
    """Steps until the end, the time limit or a signal; returns the last logged means, None without a step."""
    section, means = trainer.config.training, None
    limit = 60 * section.max_minutes or math.inf
    last = trainer.step >= section.steps or clock() >= limit
    while not last:
        trainer.advance()
        recorder.advance()
        step = trainer.step
        last = bool(step == section.steps or clock() >= limit or stop.signal)
        save = last or step % section.checkpoint_every == 0
        if save or step % section.log_every == 0:
            means = trainer.means()
            recorder.log(step, *means, learning_rate(step - 1, section), clock())
        if save:
            checkpoint.save(workdir, trainer.checkpoint(clock()), section.keep)
            recorder.save_loss_curve()
        if step % section.sample_every == 0 or (last and not stop.signal):
            trainer.save_preview(_preview_path(workdir, step))
            recorder.show_picture(_preview_path(workdir, step), step)
    return means


def _preview_path(workdir: Path, step: int) -> Path:
    return workdir / "samples" / f"step_{step:08d}.png"


def _check_same_run(config: ConfigDict, workdir: Path) -> None:
    """Going on with other settings would be neither the old run nor the new one."""
    if not (workdir / CONFIG_FILE).exists():
        if workdir.exists() and any(not path.name.startswith(".") for path in workdir.iterdir()):
            raise UserError(
                f"{workdir} is not empty and holds no {CONFIG_FILE} of a run: give another --workdir"
            )
        return
    saved = read_config(workdir)
    fixed = [key for key in differing_keys(saved, config) if not _is_free(key)]
    if fixed and checkpoint.exists(workdir):
        before, now = flatten(saved), flatten(config)
        changes = ", ".join(f"{key} is {before.get(key)!r} there and {now.get(key)!r} here" for key in fixed)
        raise UserError(f"{workdir} holds a run with other settings ({changes}): give another --workdir")


def _is_free(key: str) -> bool:
    section, _, name = key.partition(".")
    return section in ("sampling", "likelihood") or (section == "training" and name in FREE_KEYS)


def _check_same_data(dataset: Dataset, workdir: Path) -> None:
    if checkpoint.exists(workdir) and read_data_info(workdir) != DataInfo.of(dataset):
        raise UserError(
            f"the data have changed since {workdir} was trained on {read_data_info(workdir)}, "
            f"now they are {DataInfo.of(dataset)}: give another --workdir"
        )


def _report(
    trainer: Trainer, workdir: Path, stop: StopRequest, seconds: float, means: tuple[float, float] | None
) -> int:
    total = trainer.config.training.steps
    rows: list[tuple[str, object]] = [
        ("steps", f"{trainer.step:,} of {total:,}"),
        ("time", format_duration(seconds)),
    ]
    if means is not None:
        rows.append(("loss", f"{means[0]:.4f}"))
    rows += [
        ("checkpoint", workdir / checkpoint.FOLDER / f"{trainer.step:08d}"),
        ("samples", _preview_path(workdir, trainer.step)),
        ("loss curve", workdir / LOSS_CURVE),
        ("log", workdir / LOG_FILE),
    ]
    rows = [(name, value) for name, value in rows if not isinstance(value, Path) or value.exists()]
    if stop.signal:
        rows.append(("to go on", "give the same command again"))
        title = f"Training stopped by {signal.Signals(stop.signal).name}"
    elif trainer.step < total:
        rows.append(("to go on", "give the same command again with a larger --config.training.max_minutes"))
        title = "Training stopped at its time limit"
    else:
        title = "Training finished"
    print_result(title, rows)
    return 128 + stop.signal if stop.signal else 0
