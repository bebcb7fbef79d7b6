"""The files of interpolations, in the folder `interpolated` of the run: an .npz, and a row for each pair."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from score_diffusion.run import plots
from score_diffusion.run.data.condition_files import name_of
from score_diffusion.run.files import write_numbered
from score_diffusion.run.inference.trained_model import TrainedModel

INTERPOLATED = "interpolated"
PICTURED = 16  # pairs


@dataclass(frozen=True)
class DrawnPaths:
    """Paths between n pairs, in the units of the model."""

    ends: Tensor
    """The pairs themselves, (n, 2, *shape)."""
    names: list[tuple[str, str]]
    samples: Tensor
    """(n, points, *shape), each path from its first end to its second."""
    codes: Tensor
    """Of the ends, (n, 2, *shape)."""
    nfe: int
    """Network evaluations that decoded the sample that took most."""

    @property
    def errors(self) -> Tensor:
        """By how much the ends of the paths differ from the pairs, (n, 2, *shape)."""
        return self.samples[:, [0, -1]].double() - self.ends.double()

    @property
    def rms_error(self) -> float:
        return self.errors.square().mean().sqrt().item()

    @property
    def largest_error(self) -> float:
        return self.errors.abs().max().item()


def save_paths(drawn: DrawnPaths, trained: TrainedModel, settings: dict, workdir: Path) -> Path:
    """Writes a picture and an .npz under names that are not yet taken; returns them without their suffix."""
    cond = trained.conditions.chosen(range(len(drawn.ends)))

    def to_user(x: Tensor) -> np.ndarray:
        return trained.to_user(x.flatten(0, 1)).unflatten(0, x.shape[:2]).cpu().numpy()

    samples = to_user(drawn.samples)
    arrays: dict[str, Any] = {
        "samples": samples,
        "ends": to_user(drawn.ends),
        "codes": drawn.codes.numpy(),
        "errors": drawn.errors.flatten(2).square().mean(2).sqrt().numpy(),
        "names": np.array(drawn.names),
        **{name_of(kind): rows.numpy() for kind, rows in cond.items()},
    }
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, **arrays, nfe=drawn.nfe, training_steps=trained.step, settings=json.dumps(settings)
    )
    stem = write_numbered(workdir / INTERPOLATED / "paths", ".npz", buffer.getvalue(), ".png")
    plots.save_paths(
        stem.with_suffix(".png"),
        samples[:PICTURED],
        trained.shown.scaling.limits,
        _row_names(drawn, trained)[:PICTURED],
    )
    return stem


def _row_names(drawn: DrawnPaths, trained: TrainedModel) -> list[str]:
    """What each path leads between, and under which class or prompt."""
    conditions = trained.conditions.names(len(drawn.ends))
    between = [f"{a} – {b}" for a, b in drawn.names]
    if conditions is None:
        return between
    return [f"{condition}: {names}" for condition, names in zip(conditions, between, strict=True)]
