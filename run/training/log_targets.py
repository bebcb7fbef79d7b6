"""Where the log of a training is shown: TensorBoard, and Weights & Biases if it is asked for."""

from __future__ import annotations

import contextlib
import importlib.util
import secrets
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from score_diffusion.run.errors import UserError
from score_diffusion.run.files import write_json
from score_diffusion.run.json_files import read_json
from score_diffusion.run.key_types import Values

TENSORBOARD = "tensorboard"
WANDB_FILE = "wandb.json"
WANDB_FIELDS = {"id": Values(kind=str)}
METRICS = ("loss", "held_out_loss")  # that hyper-parameters are compared by


@dataclass(frozen=True)
class LogSettings:
    """What is shown besides the course of the training, and where."""

    hyper_parameters: Mapping[str, object] = field(default_factory=dict)
    """The settings that decide the training, by their names."""
    wandb: str = ""
    """The project of Weights & Biases; empty for none."""

    def __post_init__(self) -> None:
        if self.wandb and importlib.util.find_spec("wandb") is None:
            raise UserError(
                f"training.wandb={self.wandb} needs the package wandb: pip install score-diffusion[wandb], "
                "or leave training.wandb empty"
            )


class LogTarget(Protocol):
    """Shows points of the log and pictures."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point."""

    def picture(self, path: Path, step: int) -> None:
        """Adds a picture of samples."""

    def close(self) -> None:
        """Writes what is left."""


class TensorBoardLog:
    """Event files in the run directory.

    Args:
        workdir: The run directory.
        step: Steps done so far; what an earlier start logged after it is replaced.
        settings: What is shown besides.
    """

    def __init__(self, workdir: Path, step: int, settings: LogSettings) -> None:
        self._writer = SummaryWriter(str(workdir / TENSORBOARD), purge_step=step + 1)
        shown = settings.hyper_parameters
        if shown:
            lines = "\n".join(f"| `{key}` | `{value}` |" for key, value in shown.items())
            self._writer.add_text("configuration", f"| key | value |\n|---|---|\n{lines}", step)
        if shown and not step:
            plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in shown.items()}
            for summary in hparams(plain, dict.fromkeys(METRICS, 0.0)):  # add_hparams makes a run of its own
                self._writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, path: Path, step: int) -> None:
        with Image.open(path) as picture:
            self._writer.add_image("samples", np.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WandbLog:
    """A run of Weights & Biases, which a resumed training continues. Where it is sent, or whether it is only
    kept in the run directory, is up to wandb: WANDB_MODE=offline.

    Args:
        workdir: The run directory.
        settings: The project, and what is shown besides.

    Raises:
        UserError: If it cannot be started.
    """

    def __init__(self, workdir: Path, settings: LogSettings) -> None:
        import wandb  # here: it is an extra, and slow

        path = workdir / WANDB_FILE
        if not path.exists():
            write_json(path, {"id": secrets.token_hex(4)})
        saved = read_json(path, WANDB_FIELDS, "remove it, and a new run of Weights & Biases begins")
        self._wandb = wandb
        try:
            self._run: Any = wandb.init(
                project=settings.wandb,
                name=workdir.resolve().name,
                id=saved["id"],
                resume="allow",
                dir=str(workdir),
                config=dict(settings.hyper_parameters),
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"Weights & Biases does not start ({error}): log in with `wandb login`, set "
                "WANDB_MODE=offline, or leave training.wandb empty"
            ) from error

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        # Steps done again after a crash have the values that they had, and wandb leaves them out.
        self._run.log(dict(values), step=step)

    def picture(self, path: Path, step: int) -> None:
        self._run.log({"samples": self._wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        self._run.finish()


@contextlib.contextmanager
def opened_targets(workdir: Path, step: int, settings: LogSettings) -> Iterator[list[LogTarget]]:
    """The targets of a training that has done so many steps.

    TensorBoard writes from a thread, which prints a traceback when a disk is full, say. It is left out: the
    next call raises the error.
    """
    previous_hook = threading.excepthook

    def on_thread_error(error: threading.ExceptHookArgs) -> None:
        if not isinstance(error.exc_value, OSError):
            previous_hook(error)

    threading.excepthook = on_thread_error
    targets: list[LogTarget] = []
    try:
        with contextlib.ExitStack() as stack:
            targets.append(TensorBoardLog(workdir, step, settings))
            stack.callback(targets[0].close)
            if settings.wandb:
                targets.append(WandbLog(workdir, settings))
                stack.callback(targets[1].close)
            yield targets
    finally:
        threading.excepthook = previous_hook
