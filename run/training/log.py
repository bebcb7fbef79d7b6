"""The log of a training: a progress bar, log.jsonl and what shows it; at checkpoints a table and a curve."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from score_diffusion.run import plots
from score_diffusion.run.console import progress_bar
from score_diffusion.run.files import write_atomic
from score_diffusion.run.json_files import parse_json
from score_diffusion.run.key_types import Values
from score_diffusion.run.training.log_targets import LogSettings, opened_targets
from score_diffusion.run.training.statistics import StatisticsSummary

LOG_FILE, CSV_FILE = "log.jsonl", "log.csv"
LOSS_CURVE = "loss_curve.png"
STEP = {"step": Values(kind=int, least=0)}
NUMBER = Values(kind=float | None)
LEVELS = {"level_loss": "level_losses", "level_accuracy": "level_accuracies"}
"""The keys of quantities that have a value in each bin of log(σ/α)."""
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
    held-out samples, if there is one, and `figures` the last other figures of them.

    Args:
        workdir: The run directory.
        step: Steps done so far.
        total: Steps to do in all.
        settings: What TensorBoard and others show besides.
    """

    def __init__(self, workdir: Path, step: int, total: int, settings: LogSettings = LogSettings()) -> None:
        self._workdir, self._settings = workdir, settings
        log = workdir / LOG_FILE
        if log.exists() and not log.read_bytes().endswith(b"\n"):  # torn by a crash or a full disk
            with open(log, "a") as file:
                file.write("\n")
        self._total, self._last = total, (step, time.perf_counter())
        self.loss: float | None = None
        self.accuracy: float | None = None
        self.figures: dict[str, float] = {}

    def __enter__(self) -> Recorder:
        with contextlib.ExitStack() as stack:
            self._targets = stack.enter_context(opened_targets(self._workdir, self._last[0], self._settings))
            self._bar = progress_bar(self._total, "training", "step", initial=self._last[0])
            stack.callback(self._bar.close)
            self._opened = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

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
        figures: Mapping[str, float] = {},
    ) -> None:
        """Adds one point to every log.

        `level_losses` are the mean losses between the values `level_edges` of log(σ/α); the first and the
        last bin are open. `level_accuracies` are those of held-out samples in the same bins, where the
        objective has an accuracy. Further figures of held-out samples are logged as `held_out_NAME`.
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
        self.figures = {**figures} or self.figures
        row |= {f"held_out_{name}": value for name, value in figures.items()}
        with open(self._workdir / LOG_FILE, "a") as file:
            file.write(json.dumps(_null_for_nan(dict(step=step, **row, **levels))) + "\n")
        names = level_names("level_loss", summary.level_edges)
        scalars = row | dict(zip(names, summary.level_losses, strict=True))
        finite = {name: x for name, x in scalars.items() if x is not None and math.isfinite(x)}
        for target in self._targets:
            target.scalars(finite, step)
        self._bar.set_postfix(loss=f"{summary.loss:.4f}", refresh=False)

    def show_picture(self, path: Path, step: int) -> None:
        """Adds a picture of samples to what shows the log."""
        for target in self._targets:
            target.picture(path, step)

    def save_summary(self) -> None:
        """Draws the loss curve of the whole log, and writes it as a table."""
        rows = read_log(self._workdir)
        steps, losses = finite_values(rows, "loss")
        if steps:
            plots.save_loss_curve(self._workdir / LOSS_CURVE, steps, losses)
        if rows:
            write_atomic(self._workdir / CSV_FILE, as_csv(rows).encode())


class NullRecorder:
    """Records nothing: for all ranks but rank 0."""

    loss: float | None = None
    accuracy: float | None = None
    figures: dict[str, float] = {}

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
        figures: Mapping[str, float] = {},
    ) -> None:
        """Does nothing."""

    def show_picture(self, path: Path, step: int) -> None:
        """Does nothing."""

    def save_summary(self) -> None:
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


def as_csv(rows: list[dict[str, Any]]) -> str:
    """Rows of the log as a table with a header; what a row lacks is empty."""
    flat = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return table.getvalue()


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a row, those of the noise levels under names of their own."""
    values = {name: row[name] for name in ("step", *FIELDS) if name in row and not name.startswith("level_")}
    for quantity, key in LEVELS.items():
        names = level_names(quantity, row.get("level_edges", ()))
        values |= dict(zip(names, row.get(key, ()), strict=False))
    return values


def level_names(quantity: str, edges: Sequence[float]) -> list[str]:
    """Names of a quantity in the bins between values of log(σ/α): "level_loss/3 sigma over alpha 0.1 to 0.3".

    Args:
        quantity: What is measured.
        edges: The values of log(σ/α), ascending; without any there are no bins.
    """
    if not edges:
        return []
    ratios = [f"{math.exp(min(edge, 700.0)):.3g}" for edge in edges]  # beyond it overflows
    ranges = [f"below {ratios[0]}", *map("{} to {}".format, ratios, ratios[1:]), f"above {ratios[-1]}"]
    return [f"{quantity}/{k} sigma over alpha {words}" for k, words in enumerate(ranges)]


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
