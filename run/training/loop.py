"""The loop over training steps: when to log, save, draw and stop."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.checkpoints.checkpoint import Checkpoint
from score_diffusion.run.console import warn
from score_diffusion.run.distributed import processes
from score_diffusion.run.machine import warn_of_days
from score_diffusion.run.training.interruptions import StopRequest, stop_if_diverged
from score_diffusion.run.training.log import NullRecorder, Recorder
from score_diffusion.run.training.post_hoc_averages import save_snapshot
from score_diffusion.run.training.previews import Preview, ReconstructionPreview
from score_diffusion.run.training.run_directory import preview_path, record_progress
from score_diffusion.run.training.trainer import Trainer

LIMITS = "lower training.steps, or set training.max_minutes"  # if training would take days
SIGNAL, TIME = "signal", "max_minutes"


@dataclass(frozen=True)
class LoopSettings:
    """When the loop ends, and what it does after how many steps."""

    total_steps: int
    max_seconds: float
    """Time limit, of earlier parts of the training too; infinity for none."""
    max_skipped: int
    """Steps in a row that may be skipped before training ends as diverged."""
    log_every: int
    checkpoint_every: int
    snapshot_every: int
    preview_every: int
    keep: int
    """Newest checkpoints to keep, besides the best."""


class _PreviewInterrupted(Exception):
    """A signal, or the end of the time, came while a preview was drawn."""


class TrainingLoop:
    """Takes steps until training is done, the time is over or a signal comes.

    Args:
        trainer: Takes the steps.
        settings: When to do what.
        preview: Draws pictures of samples or of reconstructions.
        workdir: The run directory.
        recorder: The log of the run.
        stop: Receives signals.
        seconds: Seconds of training before this start.
    """

    def __init__(
        self,
        trainer: Trainer,
        settings: LoopSettings,
        preview: Preview | ReconstructionPreview,
        workdir: Path,
        recorder: Recorder | NullRecorder,
        stop: StopRequest,
        seconds: float = 0.0,
    ) -> None:
        self.trainer, self.settings, self.preview = trainer, settings, preview
        self.workdir, self.recorder, self.stop = workdir, recorder, stop
        self._start = time.perf_counter() - seconds
        self._first_step, self._begun = trainer.step, time.perf_counter()
        self._has_announced = False

    @property
    def seconds(self) -> float:
        """Seconds of training so far, all starts together."""
        return time.perf_counter() - self._start

    def run(self) -> str:
        """Takes the steps; returns what ended them: "steps", "max_minutes" or "signal"."""
        self._agree()
        ended = self._ended()
        while ended is None:
            self.trainer.advance()
            self.recorder.advance()
            self._agree()
            ended = self._ended()
            saved = self._record(ended)
            if ended == "steps" or (ended is None and self._is_due(self.settings.preview_every)):
                self._draw_preview()
                ended = ended or self._ended()  # what interrupted the preview, if anything
                if ended and not saved:
                    self._save(self.trainer.checkpoint(self.seconds))
        return ended

    def _agree(self) -> None:
        """Exchanges signals and the time between ranks; each calls it equally often."""
        self.stop.agree(time_is_over=self.seconds >= self.settings.max_seconds)

    def _ended(self) -> str | None:
        """What ends training now, None if nothing does: the same on every rank."""
        if self.stop.signal:
            return SIGNAL
        if self.trainer.step >= self.settings.total_steps:
            return "steps"
        return TIME if self.stop.time_is_over else None

    def _is_due(self, every: int) -> bool:
        return self.trainer.step % every == 0

    def _record(self, ended: str | None) -> bool:
        """Logs and saves what is due after a step; returns whether a checkpoint was saved.

        Points of the log are at fixed steps only, so that a run that is stopped in between and resumed logs
        what it would have logged.
        """
        trainer, settings = self.trainer, self.settings
        scheduled = self._is_due(settings.checkpoint_every) or trainer.step >= settings.total_steps
        log, save = scheduled or self._is_due(settings.log_every), scheduled or ended is not None
        if log or save:
            summary = trainer.statistics.summary()
            stop_if_diverged(trainer, summary, settings.max_skipped, self.workdir)
        if log:
            trainer.statistics.reset()
        state = trainer.checkpoint(self.seconds) if save else None
        if log:
            rate = trainer.settings.learning_rate(trainer.step - 1)
            held_out_loss = state.held_out_loss if state else None
            accuracy = trainer.held_out_accuracy() if state else None
            figures = trainer.held_out_figures() if state else {}
            self.recorder.log(trainer.step, summary, rate, self.seconds, held_out_loss, accuracy, figures)
            self._announce_days()
        if trainer.averages.power and self._is_due(settings.snapshot_every):
            # before the checkpoint: a run resumed from it would not make the snapshot again
            save_snapshot(self.workdir, trainer.step, trainer.averages)
        if state:
            self._save(state)
        return save

    def _announce_days(self) -> None:
        """Says once how long training will take, if that is more than a day and it has no time limit."""
        if not self._has_announced and self.settings.max_seconds == math.inf:
            each = (time.perf_counter() - self._begun) / (self.trainer.step - self._first_step)
            left = self.settings.total_steps - self.trainer.step
            warn_of_days(left * each, f"training to step {self.settings.total_steps:,}", LIMITS)
        self._has_announced = True

    def _save(self, state: Checkpoint) -> None:
        checkpoint.save(self.workdir, state, self.settings.keep)
        if processes.is_rank_0():
            record_progress(self.workdir, state.step)
        self.recorder.save_summary()

    def _draw_preview(self) -> None:
        """Draws a preview, unless a signal or the end of the time interrupts it, or it is not finite."""
        step, path = self.trainer.step, preview_path(self.workdir, self.trainer.step)
        if not self.preview.count:
            return
        try:
            self.preview.save(path, self.trainer.average, self.trainer.device, self._poll)
            self.recorder.show_picture(path, step)
        except _PreviewInterrupted:
            pass
        except ValueError as error:
            warn(f"no preview at step {step:,}: {error}")
        processes.barrier()  # here rather than in the next step, where ranks wait less long for each other

    def _poll(self) -> None:
        self._agree()
        if self.stop.signal or self.stop.time_is_over:
            raise _PreviewInterrupted
