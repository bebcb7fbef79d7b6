"""The files of restored samples: a labelled picture and an .npz, in the folder `restored` of the run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from score_diffusion.run import plots
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.files import write_numbered
from score_diffusion.run.inference.judging import Quality
from score_diffusion.run.inference.measurements import Measurements, shown, to_user
from score_diffusion.run.inference.restoring import Restored, RestoreRequest
from score_diffusion.run.inference.trained_model import TrainedModel

RESTORED = "restored"
PICTURED_INPUTS, PICTURED_SAMPLES = 8, 4


def save(
    restored: Restored,
    measurements: Measurements,
    quality: Quality | None,
    request: RestoreRequest,
    trained: TrainedModel,
    workdir: Path,
) -> Path:
    """Writes a picture and an .npz under names that are not yet taken; returns them without their suffix."""
    scaling, known = trained.data.scaling, measurements.task.known
    arrays: dict[str, Any] = {
        "measurement": to_user(measurements, scaling),
        "samples": restored.samples,
        "mean": restored.mean,
        "deviation": restored.deviation,
        "names": np.array(measurements.names),
        **({} if known is None else {"known": known.numpy()}),
        **({} if measurements.truth is None else {"truth": measurements.truth}),
        **({} if quality is None else _figures(quality)),
    }
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        **arrays,
        task=request.task,
        method=request.method,
        noise=request.noise,
        seed=request.seed,
        nfe=restored.nfe,
        training_steps=trained.step,
        settings=request.settings,
    )
    stem = workdir / RESTORED / f"{request.task}-{request.method}"
    stem = write_numbered(stem, ".npz", buffer.getvalue(), ".png")
    _save_picture(stem.with_suffix(".png"), restored, measurements, quality, request, scaling)
    return stem


def _figures(quality: Quality) -> dict[str, np.ndarray]:
    figures = {"psnr": quality.psnr, "psnr_of_samples": quality.psnr_of_samples, "ssim": quality.ssim}
    figures["coverage"] = quality.coverage
    return {name: values for name, values in figures.items() if values is not None}


def _save_picture(
    path: Path,
    restored: Restored,
    measurements: Measurements,
    quality: Quality | None,
    request: RestoreRequest,
    scaling: Scaling,
) -> None:
    rows = slice(PICTURED_INPUTS)
    guided = measurements.task.is_guide
    title = f"{request.task} by {request.method}{'' if guided else f', noise {request.noise:g}'}"
    truth = {} if measurements.truth is None else {"truth": measurements.truth[rows]}
    if restored.mean.ndim <= 3:
        plots.save_bands(path, title, restored.mean[rows], restored.deviation[rows], truth.get("truth"))
        return
    pictured = min(PICTURED_SAMPLES, restored.samples.shape[1])
    columns = {
        **truth,
        "guide" if guided else "measurement": shown(measurements, scaling)[rows],
        "mean": restored.mean[rows],
        "deviation": restored.deviation[rows],
        **{f"sample {j + 1}": restored.samples[rows, j] for j in range(pictured)},
    }
    notes = {} if quality is None else {"mean": [f"{value:.1f} dB" for value in quality.psnr[rows]]}
    plots.save_image_table(path, title, columns, notes, scaling.limits)
