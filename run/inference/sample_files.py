"""Sample files: drawing them with a trained model, and finding one that was drawn with given settings."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from score_diffusion.run import plots
from score_diffusion.run.console import progress_bar
from score_diffusion.run.distributed import processes
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import write_numbered
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.samplers import FixedBatches, Sampler

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


@dataclass(frozen=True)
class SampleFile:
    """A sample file of `--mode sample`."""

    path: Path
    samples: np.ndarray
    """Raw pixels in [-1, 1], (n, C, H, W), or points (n, D)."""
    training_steps: int
    settings: str
    """What `sample.settings` made of the section it was drawn with."""


def draw_and_save(
    trained: TrainedModel, sampler: Sampler, section: ConfigDict, workdir: Path
) -> SampleFiles | None:
    """Draws `num_samples` samples and writes them as picture and .npz, under names that are not yet taken.

    Of several processes each draws a share and the first writes; the others return None.
    """
    drawn = processes.gather(draw(trained, sampler, section, processes.share(section.num_samples)))
    if drawn is None:
        return None
    samples, nfe = np.concatenate([samples for samples, _ in drawn]), max(nfe for _, nfe in drawn)
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
    stem = write_numbered(workdir / SAMPLES / section.sampler, ".npz", buffer.getvalue(), ".png")
    picture, array = stem.with_suffix(".png"), stem.with_suffix(".npz")
    shown = samples if samples.ndim == 2 else samples[:PICTURED]
    plots.save_samples(picture, shown, trained.data.scaling.limits)
    return SampleFiles(samples, nfe, picture, array)


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
            samples = trained.data.scaling.model_to_user(result.samples).cpu().numpy()
            batches.append((samples, result.nfe))
    return batches


def matching_file(workdir: Path, section: ConfigDict, training_steps: int) -> Path | None:
    """The sample file that the settings would write again, if there is one."""
    for path in sorted((workdir / SAMPLES).glob(f"{section.sampler}*.npz")):
        file = read_sample_file(path)
        if (file.settings, file.training_steps) == (settings(section), training_steps):
            return path
    return None


def read_sample_file(path: Path) -> SampleFile:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return SampleFile(path, arrays["samples"], int(arrays["training_steps"]), str(arrays["settings"]))
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"sample file {path} is damaged: remove it and run --mode sample again") from error
