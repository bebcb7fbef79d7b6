"""What training tells while it runs: a progress bar, log.jsonl, TensorBoard and the loss curve."""

from __future__ import annotations

import json
import time
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from run import plots
from run.report import progress_bar

LOG_FILE = "log.jsonl"
LOSS_CURVE = "loss_curve.png"


class Recorder:
    """The records of one run, appended to those of the same run before it was stopped.

    Args:
        workdir: The run directory.
        step: Steps done so far.
        total: Steps to do in all.
    """

    def __init__(self, workdir: Path, step: int, total: int) -> None:
        self._workdir = workdir
        if step == 0:
            (workdir / LOG_FILE).unlink(missing_ok=True)  # of a start that did not reach its first checkpoint
        self._writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
        self._bar = progress_bar(total, "training", "step", initial=step)
        self._last = (step, time.perf_counter())

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._writer.close()

    def advance(self) -> None:
        self._bar.update()

    def log(self, step: int, loss: float, grad_norm: float, learning_rate: float, seconds: float) -> None:
        """Adds one point to every record."""
        now = time.perf_counter()
        rate = (step - self._last[0]) / max(1e-9, now - self._last[1])
        self._last = (step, now)
        row = dict(
            loss=loss,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            steps_per_second=rate,
            seconds=seconds,
        )
        with open(self._workdir / LOG_FILE, "a") as file:
            file.write(json.dumps(dict(step=step, **row)) + "\n")
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)
        self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

    def save_loss_curve(self) -> None:
        losses = {}  # by step: steps done again after a crash replace those that were lost
        for line in (self._workdir / LOG_FILE).read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # a line torn by a crash
                continue
            losses[row["step"]] = row["loss"]
        plots.save_loss_curve(
            self._workdir / LOSS_CURVE, sorted(losses), [losses[step] for step in sorted(losses)]
        )


class Silence:
    """The recorder of a process beside the first: it records nothing."""

    def __enter__(self) -> Silence:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self) -> None:
        pass

    def log(self, step: int, loss: float, grad_norm: float, learning_rate: float, seconds: float) -> None:
        pass

    def save_loss_curve(self) -> None:
        pass
