"""`--mode restore`: restores what was measured, by samples of the posterior of a trained model."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict

from score_diffusion.run.builders.inference import output_folder
from score_diffusion.run.builders.restoration import (
    build_measurements,
    build_task,
    check_restorer,
    load_prior,
    refuse_latents,
    restore_request,
    restore_with,
)
from score_diffusion.run.console import format_duration, print_result
from score_diffusion.run.data.info import read_data_info
from score_diffusion.run.inference.judging import LEVELS, Quality, judge
from score_diffusion.run.inference.restored_files import save


def restore(config: ConfigDict, workdir: Path, device: torch.device) -> int:
    """Draws samples given measurements; returns the exit code."""
    section, data, request = config.restore, read_data_info(workdir), restore_request(config.restore)
    refuse_latents(data)
    task, noise = build_task(section, data.shape), section.noise
    measurements = build_measurements(config, task, data)
    check_restorer(config, measurements)  # before the model is read
    output = output_folder(config.sampling, workdir)
    trained = load_prior(workdir, config, device)
    start = time.perf_counter()
    restored = restore_with(trained, section, measurements)
    if restored is None:  # on all ranks except the first
        return 0
    quality = judge(restored, measurements, data.scaling, section.seed)
    stem = save(restored, measurements, quality, request, trained, output)
    particles = [] if restored.ess is None else [("effective particles", f"{restored.ess:.1f} at least")]
    rows = [
        ("inputs", f"{len(measurements.y):,} of {measurements.found:,} of {section.input}"),
        ("samples", f"{request.num_samples:,} of each, of shape {data.shape}, seed {request.seed}"),
        ("model", f"{trained.weights} after {trained.step:,} training steps"),
        ("nfe", f"{restored.nfe:,} network evaluations per sample"),
        *particles,
        *([] if quality is None else _quality_rows(quality)),
        ("time", format_duration(time.perf_counter() - start)),
        ("picture", stem.with_suffix(".png")),
        ("array", stem.with_suffix(".npz")),
    ]
    with_noise = "" if task.is_guide else f", noise {noise:g}"
    print_result(f"Restored: {request.task} by {request.method}{with_noise}", rows)
    return 0


def _quality_rows(quality: Quality) -> list[tuple[str, object]]:
    """The samples against the truth, in words."""
    rows: list[tuple[str, object]] = [
        (
            "PSNR",
            f"{quality.psnr.mean():.2f} dB of the mean, {quality.psnr_of_samples.mean():.2f} dB of samples",
        ),
    ]
    if quality.ssim is not None:
        rows.append(("SSIM", f"{quality.ssim.mean():.4f} of the mean"))
    if quality.coverage is not None:
        held = ", ".join(
            f"{level:.0%} intervals hold {share}"
            for level, share in zip(LEVELS, map(_share, quality.coverage), strict=True)
        )
        rows.append(("truth", f"{held}: {quality.verdict}"))
    rows.append(("error/deviation", f"{quality.error_over_deviation:.2f}, 1 if deviations are right"))
    return rows


def _share(each: np.ndarray) -> str:
    """The mean over inputs of a share, with its standard error where there are several."""
    error = f" ± {each.std(ddof=1) / len(each) ** 0.5:.1%}" if len(each) > 1 else ""
    return f"{each.mean():.1%}{error}"
