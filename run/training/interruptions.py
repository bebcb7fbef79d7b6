"""What may interrupt training: signals, time limits, a full disk, losses that are not finite."""

from __future__ import annotations

import errno
import io
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.distributed import processes
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import write_atomic
from score_diffusion.run.training.statistics import StatisticsSummary
from score_diffusion.run.training.trainer import Trainer

SKIPPED_FOLDER = "skipped"
FULL = {
    errno.ENOSPC: ("the disk of {} is full", "free some space"),
    errno.EDQUOT: ("the quota of the disk of {} is used up", "free some space"),
    errno.EFBIG: ("a file in {} would exceed the limit on the size of files", "raise it (ulimit -f)"),
}
SIGNALS = (signal.SIGINT, signal.SIGTERM)
_TIME_IS_OVER = 1  # shares a number with signals on the way between ranks; signal 1 is not caught


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the current step; the second one acts at
    once.

    Any rank may receive a signal, and the clock of rank 0 decides when time is over; `agree` tells all ranks.
    Python allows signal handlers in the main thread only: in another one, only the time stops training.
    """

    def __init__(self) -> None:
        self.signal = 0
        """The signal that all ranks have agreed on; 0 for none."""
        self.time_is_over = False
        """Whether all ranks have agreed that the time is over."""
        self._received = 0
        self._over_ranks = processes.DelayedMaximum()
        self._previous_handlers: dict[int, Any] = {}

    def agree(self, time_is_over: bool) -> None:
        """Called by every rank after every step, with what its clock says."""
        agreed = self._over_ranks(self._received or _TIME_IS_OVER * (time_is_over and processes.is_rank_0()))
        self.signal, self.time_is_over = (0 if agreed == _TIME_IS_OVER else agreed), agreed == _TIME_IS_OVER

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        self.__exit__()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)


@contextmanager
def full_disk_explained(workdir: Path) -> Iterator[None]:
    """Turns the error of a full disk into a sentence that says what is intact and how to resume."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        problem, remedy = FULL[error.errno]
        steps = checkpoint.steps(workdir)
        intact = f"the checkpoint of step {steps[-1]:,} is intact" if steps else "there is no checkpoint yet"
        raise UserError(
            f"{problem.format(workdir)}, training stopped; {intact}: {remedy} and give the same command again"
        ) from error


def stop_if_diverged(trainer: Trainer, summary: StatisticsSummary, max_skipped: int, workdir: Path) -> None:
    """Ends training that skips one step after the other, and saves the batch of the last of them.

    The file holds step, indices, x_0 (in the units of the model), noise, times t, log_noise_levels
    log(σ/α) and losses, one row for each sample; without times no noise, t and log_noise_levels.

    Raises:
        UserError: If `max_skipped` steps or more in a row were skipped.
    """
    if summary.longest_skipped_streak < max_skipped:
        return
    statistics, batches = trainer.statistics, trainer.batches
    step, (t, losses) = int(statistics.skipped_step), statistics.skipped_batch
    batch = batches.read(batches.draw(step))
    arrays = {"step": torch.tensor(step), "indices": batches.order.indices(batches.order.positions(step))}
    arrays |= {"x_0": batch.x_0, "losses": losses}
    if batch.noise is not None and statistics.log_noise_level is not None:
        arrays |= {"noise": batch.noise, "t": t, "log_noise_levels": statistics.log_noise_level(t)}
    path = workdir / SKIPPED_FOLDER / f"step_{step:08d}.npz"
    buffer = io.BytesIO()
    numpy_arrays: dict[str, Any] = {name: array.cpu().numpy() for name, array in arrays.items()}
    np.savez_compressed(buffer, **numpy_arrays)
    if processes.is_rank_0():
        write_atomic(path, buffer.getvalue())
    raise UserError(
        f"training diverged: {summary.longest_skipped_streak} steps in a row, by step {trainer.step}, were "
        f"skipped because their loss or gradient was not finite; {path} holds the batch of step {step}, and "
        "earlier checkpoints are intact: lower training.learning_rate or training.grad_clip and train in "
        "another --workdir"
    )
