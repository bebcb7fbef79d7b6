"""What training meets beside bad settings: signals, a full disk, losses that are not finite."""

from __future__ import annotations

import errno
import io
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np

from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.distributed import processes
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import write_atomic
from score_diffusion.run.training.statistics import Means
from score_diffusion.run.training.trainer import Trainer

FOLDER = "skipped"


class StopRequest:
    """Makes the first Ctrl-C or SIGTERM a request to stop after the current step; the second acts at once.

    Of several processes any one may get it, and the first one's clock counts; `agree` makes it known to all.
    """

    def __init__(self) -> None:
        self.signal = 0
        """The signal that was agreed on; 0 for none."""
        self.expired = False
        """Whether the time was agreed to be over."""
        self._received = 0
        self._agreement = processes.Agreement()

    def agree(self, expired: bool) -> None:
        """Called by every process after every step; `expired` says whether its time is over."""
        agreed = self._agreement(self._received or int(expired and processes.is_first()))
        self.signal, self.expired = (agreed if agreed > 1 else 0), agreed == 1  # signal 1 is not caught

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


@contextmanager
def full_disk_explained(workdir: Path) -> Iterator[None]:
    """Turns the error of a full disk into a sentence that says what is left and how to go on."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        done = checkpoint.steps(workdir)
        left = f"its checkpoint of step {done[-1]:,} is intact" if done else "it has no checkpoint yet"
        raise UserError(
            f"the disk of {workdir} is full, training stopped; {left}: "
            "free some space and give the same command again"
        ) from error


def stop_if_all_are_skipped(trainer: Trainer, means: Means, workdir: Path) -> None:
    """Ends training that skips one step after the other, and leaves the last of them in a file.

    The file holds step, indices, x_0 (what the model saw, without noise), noise, times t, noise_levels
    log(σ/α) and losses, one row for each sample.

    Raises:
        UserError: If `training.max_skipped` steps or more in a row were skipped.
    """
    if means.longest < trainer.config.training.max_skipped:
        return
    running = trainer.running
    step, (t, losses) = int(running.bad_step), running.bad
    draw = trainer.draw(step)
    arrays = dict(
        indices=trainer.feed.order.at(draw.places),
        x_0=trainer.read(draw).x_0,
        noise=draw.noise,
        t=t,
        noise_levels=trainer.sde.noise_level(t),
        losses=losses,
    )
    path = workdir / FOLDER / f"step_{step:08d}.npz"
    buffer = io.BytesIO()
    np.savez_compressed(buffer, step=step, **{name: array.cpu().numpy() for name, array in arrays.items()})
    if processes.is_first():
        write_atomic(path, buffer.getvalue())
    raise UserError(
        f"training diverged: {means.longest} steps in a row by step {trainer.step} had a loss or gradient "
        f"that is not finite and were skipped; the batch and the noise levels of step {step} are in {path}, "
        "earlier checkpoints are intact: lower training.learning_rate or training.grad_clip and train in "
        "another --workdir"
    )
