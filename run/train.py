"""Training in a run directory: starting or going on, the loop, what it writes, signals and the report."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
from ml_collections import ConfigDict

from run import checkpoint, distributed, plots
from run.auto import resolve_levels, take_levels
from run.config import CONFIG_FILE, config_text, differing_keys, flatten, read_config, save_config
from run.data import Dataset, load_dataset, samples_to_raw
from run.errors import UserError
from run.recorder import LOG_FILE, LOSS_CURVE, Recorder, Silence
from run.report import format_duration, print_result
from run.rundir import DataInfo, read_data_info, write_data_info
from run.trainer import Trainer, learning_rate
from samplers import make_sampler

# Keys that may change when a run goes on: they do not enter the steps already done.
FREE_KEYS = ("steps", "max_minutes", "log_every", "sample_every", "checkpoint_every", "keep")
FREE_KEYS += ("parallel", "patience")
PREVIEW_IMAGES, PREVIEW_POINTS, PREVIEW_NFE = 64, 1000, 15


def save_preview(trainer: Trainer, path: Path) -> None:
    """A picture of samples from the average and one fixed noise, by a short probability-flow ODE."""
    count = PREVIEW_IMAGES if trainer.levels else PREVIEW_POINTS
    sampler = make_sampler("eabm", trainer.sde, PREVIEW_NFE, denoise=True)
    samples = sampler(trainer.ema.module, (count, *trainer.shape), device=trainer.device).samples
    if distributed.is_first():  # where weights are in pieces, every process must evaluate the network
        plots.save_samples(path, samples_to_raw(samples, trainer.levels).cpu().numpy())


class StopRequest:
    """Makes the first Ctrl-C or SIGTERM a request to stop after the current step; the second acts at once.

    Of several processes any one may get it; all of them stop, after the same step.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._received = 0
        self._agreement = distributed.Agreement()

    def now(self, expired: bool) -> bool:
        """Whether to stop after this step: for a signal, or because the first process's time has expired."""
        agreed = self._agreement(self._received or int(expired and distributed.is_first()))
        self.signal = agreed if agreed > 1 else 0  # there is no signal 1 among those that are caught
        return agreed > 0

    def __enter__(self) -> StopRequest:
        self._previous = {
            number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._received = number
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
        seconds = trainer.restore(workdir)
        print(f"resuming {workdir} at step {trainer.step}")
    distributed.wait()  # until every process has seen the directory as it was
    print(config_text(config))
    if distributed.is_first():
        save_config(config, workdir)
        write_data_info(workdir, DataInfo.of(dataset))
    recorder = Silence()
    if distributed.is_first():
        recorder = Recorder(workdir, trainer.step, config.training.steps)
    with StopRequest() as stop, recorder:
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
    last = trainer.step >= section.steps or distributed.from_first(lambda: clock() >= limit)
    while not last:
        trainer.advance()
        recorder.advance()
        step = trainer.step
        last = stop.now(expired=clock() >= limit) or step == section.steps
        save = last or step % section.checkpoint_every == 0
        if save or step % section.log_every == 0:
            means = trainer.means()
            recorder.log(step, *means, learning_rate(step - 1, section), clock())
        if save:
            checkpoint.save(workdir, trainer.checkpoint(clock()), section.keep)
            recorder.save_loss_curve()
        if step % section.sample_every == 0 or (last and not stop.signal):
            save_preview(trainer, _preview_path(workdir, step))
        if save or step % section.sample_every == 0:
            distributed.wait()  # for the first process, outside of a step, whose patience is short
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
