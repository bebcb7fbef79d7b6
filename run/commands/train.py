"""Training in a run directory: starting or going on, the loop, what it writes, signals and the report."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from ml_collections import ConfigDict

from score_diffusion.run import plots
from score_diffusion.run.build import data_options
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.config import (
    CONFIG_FILE,
    changed_text,
    differing_keys,
    flatten,
    read_config,
    save_config,
)
from score_diffusion.run.console import format_duration, print_result, warn
from score_diffusion.run.constructor_keys import declared_keys
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.info import (
    DataInfo,
    is_data_picture,
    load_data,
    read_data_info,
    write_data_info,
)
from score_diffusion.run.distributed import processes
from score_diffusion.run.errors import UserError
from score_diffusion.run.training.interruptions import (
    StopRequest,
    full_disk_explained,
    stop_if_all_are_skipped,
)
from score_diffusion.run.training.log import LOG_FILE, LOSS_CURVE, Recorder, Silence
from score_diffusion.run.training.post_hoc_averages import clear_snapshots, save_snapshot
from score_diffusion.run.training.resolve_auto import resolve_levels, resolve_precision, take_resolved
from score_diffusion.run.training.trainer import Trainer, learning_rate, total_steps
from score_diffusion.samplers import make_sampler

PREVIEW_IMAGES, PREVIEW_POINTS, PREVIEW_NFE = 64, 1000, 15


def save_preview(trainer: Trainer, path: Path) -> None:
    """A picture of samples from the average and one fixed noise, by a short probability-flow ODE."""
    count = PREVIEW_POINTS if len(trainer.shape) == 1 else PREVIEW_IMAGES
    sampler = make_sampler("eabm", trainer.sde, PREVIEW_NFE, denoise=True)
    samples = sampler(trainer.ema.module, (count, *trainer.shape), device=trainer.device).samples
    if processes.is_first():  # all have drawn them: weights in pieces need all processes
        values = trainer.scaling.model_to_user(samples).cpu().numpy()
        plots.save_samples(path, values, trainer.scaling.limits)


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
        config = take_resolved(config, read_config(workdir))
    _check_same_run(config, workdir)
    dataset = _load_data(config, workdir)
    config = resolve_precision(resolve_levels(config, dataset), device, dataset.shape)
    trainer = Trainer(config, dataset, device)
    seconds = 0.0
    if checkpoint.exists(workdir):
        saved = checkpoint.latest(workdir, trainer.pieces())
        trainer.restore(saved, workdir)
        seconds = saved.seconds
        print(f"resuming {workdir} at step {saved.step}")
    print(changed_text(config))
    if getattr(trainer.model.net, "condition_sizes", {}).get("label"):
        warn("the network has classes, and training does not tell them: it learns to draw without one")
    processes.wait()  # until every process has seen the directory as it was
    with full_disk_explained(workdir):
        recorder = Silence()
        if processes.is_first():
            if trainer.step:
                checkpoint.set_aside_damaged(workdir, trainer.step)
            else:
                _clear_leftovers(workdir)
            save_config(config, workdir)
            write_data_info(workdir, DataInfo.of(dataset))
            recorder = Recorder(workdir, trainer.step, total_steps(config.training))
        with StopRequest() as stop, recorder:
            clock = _clock(seconds)
            ended = _loop(trainer, recorder, workdir, stop, clock)
    return _report(trainer, workdir, ended, clock(), recorder.loss, stop)


def _clock(seconds: float) -> Callable[[], float]:
    start = time.perf_counter() - seconds
    return lambda: time.perf_counter() - start


def _ending(trainer: Trainer, seconds: float, stop: StopRequest) -> str | None:
    """What ends training now: "signal", or the key of `training` whose limit is reached; None to go on.

    Every process asks after every step, and gets the same answer.
    """
    section = trainer.config.training
    stop.agree(expired=bool(section.max_minutes) and seconds >= 60 * section.max_minutes)
    if stop.signal:
        return "signal"
    if trainer.step >= total_steps(section):
        return "steps" if trainer.step >= section.steps else "images"
    return "max_minutes" if stop.expired else None


def _loop(
    trainer: Trainer, recorder: Recorder, workdir: Path, stop: StopRequest, clock: Callable[[], float]
) -> str:
    """Steps until the end; returns what ended it.

    The log has points at fixed steps alone: a run that was stopped in between goes on to log what it would
    have.
    """
    section = trainer.config.training
    ended = _ending(trainer, clock(), stop)
    while ended is None:
        trainer.advance()
        recorder.advance()
        step, ended = trainer.step, _ending(trainer, clock(), stop)
        scheduled = step % section.checkpoint_every == 0 or ended in ("steps", "images")
        log, save = scheduled or step % section.log_every == 0, scheduled or ended is not None
        if log or save:
            means = trainer.running.means()
            stop_if_all_are_skipped(trainer, means, workdir)
        if log:
            trainer.running.reset()
        saved = trainer.checkpoint(clock()) if save else None
        if log:
            rate = learning_rate(step - 1, section)
            recorder.log(step, means, rate, clock(), saved.held_out_loss if saved else None)
        if section.ema_sigma_rels and step % section.snapshot_every == 0:
            # before a checkpoint: a run that goes on from it would make none
            save_snapshot(workdir, step, trainer.averages)
        if saved:
            checkpoint.save(workdir, saved, section.keep)
            recorder.save_loss_curve()
        if step % section.sample_every == 0 or ended not in (None, "signal"):
            save_preview(trainer, _preview_path(workdir, step))
            recorder.show_picture(_preview_path(workdir, step), step)
            processes.wait()  # here and not in the next step, where patience is short
    return ended


def _preview_path(workdir: Path, step: int) -> Path:
    return workdir / "samples" / f"step_{step:08d}.png"


def _clear_leftovers(workdir: Path) -> None:
    """Removes what a start that did not reach its first checkpoint left."""
    clear_snapshots(workdir)
    for picture in _preview_path(workdir, 0).parent.glob("step_*.png"):
        picture.unlink()


def _check_same_run(config: ConfigDict, workdir: Path) -> None:
    """Going on with other settings would be neither the old run nor the new one."""
    if not (workdir / CONFIG_FILE).exists():
        if workdir.exists() and any(not _is_no_part_of_a_run(path) for path in workdir.iterdir()):
            raise UserError(
                f"{workdir} is not empty and holds no {CONFIG_FILE} of a run: give another --workdir"
            )
        return
    if not checkpoint.exists(workdir):
        return
    saved = read_config(workdir)
    keys = declared_keys(saved) | declared_keys(config)
    if read_data_info(workdir).num_train:
        fixed = [key for key in differing_keys(saved, config) if not keys[key].may_change]
    else:  # weights from another library: only what they are is fixed
        fixed = [key for key in differing_keys(saved, config) if key.startswith(("sde.", "model."))]
    if fixed:
        before, now = flatten(saved), flatten(config)
        changes = ", ".join(f"{key} is {before.get(key)!r} there and {now.get(key)!r} here" for key in fixed)
        raise UserError(f"{workdir} holds a run with other settings ({changes}): give another --workdir")


def _is_no_part_of_a_run(path: Path) -> bool:
    """Hidden files, and what `--mode data` drew before the training."""
    return path.name.startswith(".") or is_data_picture(path)


def _load_data(config: ConfigDict, workdir: Path) -> Dataset:
    """The data, which are those of a run that goes on."""
    info = read_data_info(workdir) if checkpoint.exists(workdir) else None
    return load_data(data_options(config.data), info)


def _report(
    trainer: Trainer, workdir: Path, ended: str, seconds: float, loss: float | None, stop: StopRequest
) -> int:
    section = trainer.config.training
    rows: list[tuple[str, object]] = [
        ("steps", f"{trainer.step:,} of {total_steps(section):,}"),
        ("images", f"{trainer.step * section.batch_size:,}"),
        ("time", format_duration(seconds)),
        *([] if loss is None else [("loss", f"{loss:.4f}")]),
        ("checkpoint", workdir / checkpoint.FOLDER / f"{trainer.step:08d}"),
        ("samples", _preview_path(workdir, trainer.step)),
        ("loss curve", workdir / LOSS_CURVE),
        ("log", workdir / LOG_FILE),
    ]
    rows = [(name, value) for name, value in rows if not isinstance(value, Path) or value.exists()]
    if ended == "signal":
        title = f"Training stopped by {signal.Signals(stop.signal).name}"
        rows.append(("to go on", "give the same command again"))
    elif ended == "max_minutes":
        title = f"Training stopped at its time limit, training.max_minutes={section.max_minutes:g}"
        rows.append(("to go on", "give the same command again with a larger --config.training.max_minutes"))
    else:
        title = f"Training finished, training.{ended}={section[ended]:,}"
    print_result(title, rows)
    return 128 + stop.signal if ended == "signal" else 0
