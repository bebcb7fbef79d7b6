"""Drawing samples with a trained model."""

from __future__ import annotations

import io
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict

from run import distributed, plots
from run.build import build_sampler, build_sde
from run.config import AUTO
from run.data import samples_to_raw
from run.files import unused_stem, write_atomic
from run.fitted_grid import build_trained_sampler
from run.report import format_duration, print_result, progress_bar
from run.rundir import TrainedModel, load_trained
from samplers import FixedBatches, Sampler, find_sampler

SAMPLES = "samples"
NETWORK_BATCH = {"cpu": 32, "cuda": 256}  # samples in one evaluation of the network
PICTURED = 400  # images in the grid at most


@dataclass(frozen=True)
class SampleFiles:
    """What `draw_and_save` wrote."""

    samples: np.ndarray
    """Raw pixels in [-1, 1], float32 (n, C, H, W), or points (n, D)."""
    nfe: int
    picture: Path
    array: Path


def sample(config: ConfigDict, workdir: Path, device: torch.device) -> int:
    """Draws samples from the newest checkpoint of a run directory; returns the exit code."""
    section = config.sampling
    build_sampler(section, build_sde(config.sde))  # for its checks, before the model is read
    trained = load_trained(workdir, config, device)
    sampler = build_trained_sampler(section, trained, workdir)
    start = time.perf_counter()
    files = draw_and_save(trained, sampler, section, workdir)
    if files is None:
        return 0
    step_size = getattr(sampler, "step_size", None)  # NCSNv2's rule may have chosen it
    rows = [
        ("samples", f"{section.num_samples:,} of shape {trained.data.shape}, seed {section.seed}"),
        ("model", f"{trained.weights} after {trained.step:,} training steps"),
        ("nfe", f"{files.nfe:,} network evaluations per sample"),
        ("grid", grid_text(section, sampler)),
        *([] if step_size is None else [("step size", f"{step_size:.4g}")]),
        ("time", format_duration(time.perf_counter() - start)),
        ("picture", files.picture),
        ("array", files.array),
    ]
    print_result(f"Samples by {section.sampler}", rows)
    return 0


def draw_and_save(
    trained: TrainedModel, sampler: Sampler, section: ConfigDict, workdir: Path
) -> SampleFiles | None:
    """Draws `num_samples` samples and writes them as picture and .npz, under names that are not yet taken.

    Of several processes each draws a share and the first writes; the others return None.
    """
    drawn = distributed.gather(draw(trained, sampler, section, distributed.share(section.num_samples)))
    if drawn is None:
        return None
    samples, nfe = np.concatenate([samples for samples, _ in drawn]), max(nfe for _, nfe in drawn)
    stem = unused_stem(workdir / SAMPLES, section.sampler, ".npz", ".png")
    picture, array = stem.with_suffix(".png"), stem.with_suffix(".npz")
    plots.save_samples(picture, samples[:PICTURED] if samples.ndim == 4 else samples)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        samples=samples,
        seed=section.seed,
        sampler=section.sampler,
        nfe=nfe,
        training_steps=trained.step,
        settings=settings(section),
    )
    write_atomic(array, buffer.getvalue())
    return SampleFiles(samples, nfe, picture, array)


def grid_text(section: ConfigDict, sampler: Sampler) -> str:
    """The grid in words."""
    name = find_sampler(section.sampler).grid if section.grid == AUTO else section.grid
    return f"{name}, {len(sampler.times) - 1:,} steps from {sampler.times[0]:g} to {sampler.times[-1]:g}"


def settings(section: ConfigDict) -> str:
    """What decides a sample file beside the model: the `sampling` section less what decides speed alone."""
    return json.dumps({k: v for k, v in section.to_dict().items() if k != "batch_size"}, sort_keys=True)


def draw(
    trained: TrainedModel, sampler: Sampler, section: ConfigDict, indices: range
) -> list[tuple[np.ndarray, int]]:
    """The samples with these indices, batch by batch: raw pixels, and network evaluations per sample (of the
    one that took most).

    Sample k depends on (seed, k) alone, bit for bit: batch size, memory and the number of processes decide
    the speed, not the samples.
    """
    score = FixedBatches(trained.score, NETWORK_BATCH[trained.score.device.type])
    starts = range(indices.start, indices.stop, section.batch_size)
    batches = []
    with progress_bar(None, "sampling", "step") as bar:

        def on_step(i: int, n: int) -> None:
            bar.total = n * len(starts)
            bar.update()

        for first in starts:
            shape = (min(section.batch_size, indices.stop - first), *trained.data.shape)
            result = sampler(score, shape, section.seed, first=first, on_step=on_step)
            samples = samples_to_raw(result.samples, trained.data.levels).cpu().numpy()
            batches.append((samples, result.nfe))
    return batches
