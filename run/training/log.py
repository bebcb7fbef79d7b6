"""What training tells while it runs: a progress bar, log.jsonl, TensorBoard and the loss curve."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from score_diffusion.run import plots
from score_diffusion.run.console import progress_bar
from score_diffusion.run.training.statistics import Means

LOG_FILE = "log.jsonl"
LOSS_CURVE = "loss_curve.png"


class Recorder:
    """The records of one run, appended to those of the same run before it was stopped; `loss` is the last.

    Args:
        workdir: The run directory.
        step: Steps done so far.
        total: Steps to do in all.
    """

    def __init__(self, workdir: Path, step: int, total: int) -> None:
        self._workdir = workdir
        log = workdir / LOG_FILE
        if step == 0:
            log.unlink(missing_ok=True)  # of a start that did not reach its first checkpoint
        elif log.exists() and not log.read_bytes().endswith(b"\n"):  # torn by a crash or a full disk
            with open(log, "a") as file:
                file.write("\n")
        self._writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
        self._bar = progress_bar(total, "training", "step", initial=step)
        self._last = (step, time.perf_counter())
        self.loss: float | None = None

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._writer.close()

    def advance(self) -> None:
        self._bar.update()

    def log(
        self, step: int, means: Means, learning_rate: float, seconds: float, held_out_loss: float | None
    ) -> None:
        """Adds one point to every record.

        `level_losses` are the mean losses between the noise levels `level_edges`; the first and the last bin
        are open.
        """
        now = time.perf_counter()
        rate = (step - self._last[0]) / max(1e-9, now - self._last[1])
        self._last, self.loss = (step, now), means.loss
        row = dict(
            loss=means.loss,
            grad_norm=means.grad_norm,
            learning_rate=learning_rate,
            skipped=means.skipped,
            steps_per_second=rate,
            seconds=seconds,
            held_out_loss=held_out_loss,
        )
        levels = dict(level_edges=means.level_edges, level_losses=means.level_losses)
        with open(self._workdir / LOG_FILE, "a") as file:
            file.write(json.dumps(_without_nan(dict(step=step, **row, **levels))) + "\n")
        scalars = row | {f"level_loss/{k}": value for k, value in enumerate(means.level_losses)}
        for name, value in scalars.items():
            if value is not None and math.isfinite(value):
                self._writer.add_scalar(name, value, step)
        self._bar.set_postfix(loss=f"{means.loss:.4f}", refresh=False)

    def show_picture(self, path: Path, step: int) -> None:
        """Shows a picture of samples, which lies at `path`, in TensorBoard too."""
        with Image.open(path) as picture:
            self._writer.add_image("samples", np.asarray(picture), step, dataformats="HWC")

    def save_loss_curve(self) -> None:
        steps, losses = logged(read_log(self._workdir), "loss")
        if steps:
            plots.save_loss_curve(self._workdir / LOSS_CURVE, steps, losses)


def read_log(workdir: Path) -> list[dict]:
    """The rows of log.jsonl by ascending step; none if there is no log."""
    rows = {}  # by step: steps done again after a crash replace those that were lost
    path = workdir / LOG_FILE
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # a line torn by a crash
            continue
        rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def logged(rows: list[dict], key: str) -> tuple[list[int], list[float]]:
    """The steps at which a key of the log is a finite number, and the numbers."""
    points = [(row["step"], row.get(key)) for row in rows]
    points = [(step, y) for step, y in points if isinstance(y, int | float) and math.isfinite(y)]
    return [step for step, _ in points], [y for _, y in points]


class Silence:
    """The recorder of the processes beside the first: it records nothing."""

    loss = None

    def __enter__(self) -> Silence:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self) -> None:
        pass

    def log(
        self, step: int, means: Means, learning_rate: float, seconds: float, held_out_loss: float | None
    ) -> None:
        pass

    def save_loss_curve(self) -> None:
        pass

    def show_picture(self, path: Path, step: int) -> None:
        pass


def _without_nan(value: object) -> object:
    """JSON has null where there is no number."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
