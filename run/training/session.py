"""A training in its run directory, from the newest checkpoint there to its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.console import warn
from score_diffusion.run.distributed import processes
from score_diffusion.run.training.interruptions import StopRequest
from score_diffusion.run.training.log import NullRecorder, Recorder
from score_diffusion.run.training.log_targets import LogSettings
from score_diffusion.run.training.loop import LoopSettings, TrainingLoop
from score_diffusion.run.training.previews import Preview, ReconstructionPreview
from score_diffusion.run.training.run_directory import move_leftovers_aside, record_progress
from score_diffusion.run.training.trainer import Trainer


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    ended: str
    """What ended it: "steps", "max_minutes" or "signal"."""
    signal: int
    """The signal; 0 for none."""
    seconds: float
    """Seconds of training, all starts together."""
    loss: float | None
    """The last logged loss; None if none was logged."""
    accuracy: float | None = None
    """The last logged accuracy on held-out samples; None if there is none."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """The last logged figures of held-out samples besides."""


def train_in_directory(
    trainer: Trainer,
    settings: LoopSettings,
    preview: Preview | ReconstructionPreview,
    workdir: Path,
    write_description: Callable[[], None],
    log: LogSettings = LogSettings(),
) -> Outcome:
    """Trains from the newest checkpoint of a run directory, or from step 0. Every rank calls it.

    Args:
        trainer: The trainer, at step 0.
        settings: When to do what.
        preview: Draws pictures of samples or of reconstructions.
        workdir: The run directory, which is locked.
        write_description: Writes there what the run is; called on rank 0 before the first step.
        log: What is shown besides the course of the training, and where.

    Raises:
        UserError: If no checkpoint is intact, or training diverges.
    """
    seconds = _restore(trainer, workdir)
    processes.barrier()  # until every rank has seen the directory as it was
    recorder: Recorder | NullRecorder = NullRecorder()
    if processes.is_rank_0():
        _clear_way(trainer.step, workdir)
        write_description()
        recorder = Recorder(workdir, trainer.step, settings.total_steps, log)
    with StopRequest() as stop, recorder:
        loop = TrainingLoop(trainer, settings, preview, workdir, recorder, stop, seconds)
        ended = loop.run()
    number = stop.signal if ended == "signal" else 0
    return Outcome(ended, number, loop.seconds, recorder.loss, recorder.accuracy, recorder.figures)


def _restore(trainer: Trainer, workdir: Path) -> float:
    """Restores the newest checkpoint, if there is any; returns the seconds of training so far."""
    if not checkpoint.exists(workdir):
        return 0.0
    saved = checkpoint.latest(workdir, trainer.state_to_read_into())
    trainer.restore(saved, workdir)
    print(f"resuming {workdir} at step {saved.step}")
    return saved.seconds


def _clear_way(step: int, workdir: Path) -> None:
    """Leaves in a run directory what belongs to a training at this step."""
    if step:
        checkpoint.set_aside_damaged(workdir, step)
        record_progress(workdir, step)
        return
    folder = move_leftovers_aside(workdir)
    if folder is not None:
        warn(f"an earlier start ended before its first checkpoint: its files are now in {folder}")
