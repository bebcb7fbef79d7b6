"""The log of a training: a progress bar, log.jsonl, TensorBoard and the loss curve."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from score_diffusion.run import plots
from score_diffusion.run.console import progress_bar
from score_diffusion.run.json_files import parse_json
from score_diffusion.run.key_types import Values
from score_diffusion.run.training.statistics import StatisticsSummary

LOG_FILE = "log.jsonl"
LOSS_CURVE = "loss_curve.png"
STEP = {"step": Values(kind=int, least=0)}
NUMBER = Values(kind=float | None)
FIELDS = {
    "loss": NUMBER,
    "grad_norm": NUMBER,
    "learning_rate": NUMBER,
    "skipped": Values(kind=int, least=0),
    "steps_per_second": NUMBER,
    "seconds": Values(kind=float, least=0),
    "held_out_loss": NUMBER,
    "level_edges": Values(kind=tuple[float, ...]),
    "level_losses": Values(kind=tuple[float | None, ...]),
    "held_out_accuracy": NUMBER,
    "level_accuracies": Values(kind=tuple[float | None, ...]),
}


class Recorder:
    """Appends to the logs of a run; `loss` is the last logged loss, `accuracy` the last accuracy on
    held-out samples, if there is one.

    Args:
        workdir: The run directory.
        step: Steps done so far.
        total: Steps to do in all.
    """

    def __init__(self, workdir: Path, step: int, total: int) -> None:
        self._workdir = workdir
        log = workdir / LOG_FILE
        if log.exists() and not log.read_bytes().endswith(b"\n"):  # torn by a crash or a full disk
            with open(log, "a") as file:
                file.write("\n")
        self._total, self._last = total, (step, time.perf_counter())
        self.loss: float | None = None
        self.accuracy: float | None = None

    def __enter__(self) -> Recorder:
        self._previous_hook = threading.excepthook
        threading.excepthook = self._on_thread_error
        self._writer = SummaryWriter(str(self._workdir / "tensorboard"), purge_step=self._last[0] + 1)
        self._bar = progress_bar(self._total, "training", "step", initial=self._last[0])
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._bar.close()
            self._writer.close()
        finally:
            threading.excepthook = self._previous_hook

    def _on_thread_error(self, error: threading.ExceptHookArgs) -> None:
        """Prints no traceback of TensorBoard's thread, of a full disk say: its next call raises the error."""
        if not isinstance(error.exc_value, OSError):
            self._previous_hook(error)

    def advance(self) -> None:
        """Moves the progress bar by a step."""
        self._bar.update()

    def log(
        self,
        step: int,
        summary: StatisticsSummary,
        learning_rate: float,
        seconds: float,
        held_out_loss: float | None,
        accuracy: tuple[float, list[float]] | None = None,
    ) -> None:
        """Adds one point to every log.

        `level_losses` are the mean losses between the values `level_edges` of log(σ/α); the first and the
        last bin are open. `level_accuracies` are those of held-out samples in the same bins, where the
        objective has an accuracy.
        """
        now = time.perf_counter()
        rate = (step - self._last[0]) / max(1e-9, now - self._last[1])
        self._last, self.loss = (step, now), summary.loss
        row = dict(
            loss=summary.loss,
            grad_norm=summary.grad_norm,
            learning_rate=learning_rate,
            skipped=summary.skipped,
            steps_per_second=rate,
            seconds=seconds,
            held_out_loss=held_out_loss,
        )
        levels = dict(level_edges=summary.level_edges, level_losses=summary.level_losses)
        if accuracy is not None:
            self.accuracy, levels["level_accuracies"] = accuracy
            row["held_out_accuracy"] = self.accuracy
        with open(self._workdir / LOG_FILE, "a") as file:
            file.write(json.dumps(_null_for_nan(dict(step=step, **row, **levels))) + "\n")
        scalars = row | {f"level_loss/{k}": value for k, value in enumerate(summary.level_losses)}
        for name, value in scalars.items():
            if value is not None and math.isfinite(value):
                self._writer.add_scalar(name, value, step)
        self._bar.set_postfix(loss=f"{summary.loss:.4f}", refresh=False)

    def show_picture(self, path: Path, step: int) -> None:
        """Adds a picture of samples to TensorBoard."""
        with Image.open(path) as picture:
            self._writer.add_image("samples", np.asarray(picture), step, dataformats="HWC")

    def save_loss_curve(self) -> None:
        """Draws the loss curve of the whole log."""
        steps, losses = finite_values(read_log(self._workdir), "loss")
        if steps:
            plots.save_loss_curve(self._workdir / LOSS_CURVE, steps, losses)


class NullRecorder:
    """Records nothing: for all ranks but rank 0."""

    loss: float | None = None
    accuracy: float | None = None

    def __enter__(self) -> NullRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self) -> None:
        """Does nothing."""

    def log(
        self,
        step: int,
        summary: StatisticsSummary,
        learning_rate: float,
        seconds: float,
        held_out_loss: float | None,
        accuracy: tuple[float, list[float]] | None = None,
    ) -> None:
        """Does nothing."""

    def show_picture(self, path: Path, step: int) -> None:
        """Does nothing."""

    def save_loss_curve(self) -> None:
        """Does nothing."""


def read_log(workdir: Path) -> list[dict[str, Any]]:
    """The rows of log.jsonl by ascending step; none if there is no log.

    Lines that are no row, torn by a crash or written by something else, are passed over, and so are values of
    another type than those that we write.
    """
    rows = {}  # by step: steps done again after a crash replace those that were lost
    path = workdir / LOG_FILE
    text = path.read_text(errors="replace") if path.exists() else ""
    for line in text.split("\n"):
        with contextlib.suppress(ValueError):
            row = parse_json(line, STEP)
            wrong = [name for name, values in FIELDS.items() if name in row and not values.take(row[name])]
            rows[row["step"]] = {name: value for name, value in row.items() if name not in wrong}
    return [rows[step] for step in sorted(rows)]


def finite_values(rows: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """The steps at which a key of the log is a finite number, and the numbers."""
    points = {row["step"]: row[key] for row in rows if Values(kind=float).take(row.get(key))}
    return list(points), list(points.values())


def _null_for_nan(value: object) -> object:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, dict):
        return {key: _null_for_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_null_for_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
