"""Sample files: drawing them with a trained model, and finding one that was drawn with given settings."""

from __future__ import annotations

import contextlib
import functools
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from score_diffusion.run import plots
from score_diffusion.run.console import advance_to, progress_bar
from score_diffusion.run.data.condition_files import name_of
from score_diffusion.run.distributed import processes
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import write_numbered
from score_diffusion.run.inference.costs import announce_duration, refuse_too_many_samples
from score_diffusion.run.inference.sample_exports import ENDINGS, check_exports, draw_frames, export
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.run.json_files import LARGEST_FILE, check_fields
from score_diffusion.run.key_types import Values
from score_diffusion.samplers import Cost, Sampler

SAMPLES = "samples"
PICTURED = 400  # the most images in a picture
FACTS = {  # arrays of a sample file that hold one number or text
    "sampler": Values(kind=str),
    "nfe": Values(kind=int, least=0),
    "seed": Values(kind=int),
    "training_steps": Values(kind=int, least=0),
    "settings": Values(kind=str),
}
SECONDS = {"seconds_per_sample": Values(kind=float, least=0)}  # where the file says how long drawing took


@dataclass(frozen=True)
class SampleRequest:
    """Which samples to draw."""

    sampler: str
    """The name of the sampler, after which the files are named."""
    num_samples: int
    seed: int
    batch_size: int
    """Samples drawn at a time, which decides the speed only."""
    settings: str
    """All settings that decide the samples, as JSON."""
    cost: Cost
    """How often the sampler evaluates the network."""
    save: tuple[str, ...] = ("npz", "grid")
    """What is written: the array in any case, a picture of all for "grid", and what sample_exports.py has."""


@dataclass(frozen=True)
class SampleFiles:
    """What `draw_and_save` wrote."""

    samples: np.ndarray
    """Raw pixels in [-1, 1], float32 (n, C, H, W), or points (n, D)."""
    labels: np.ndarray | None
    """Class indices, int64 (n,), -1 for none; None without classes."""
    nfe: int
    array: Path
    others: list[tuple[str, Path]]
    """Everything else that was asked for, with what it is."""


@dataclass(frozen=True)
class SampleFile:
    """A sample file of `--mode sample`."""

    path: Path
    samples: np.ndarray
    """Raw pixels in [-1, 1], (n, C, H, W), or points (n, D)."""
    training_steps: int
    settings: str
    """The `settings` of the request that it was drawn for."""
    sampler: str
    nfe: int
    seed: int
    seconds_per_sample: float | None = None
    """That drawing took; None where the file does not say."""
    labels: np.ndarray | None = None
    """Class indices, int64 (n,), -1 for none; None without classes."""


def draw_and_save(
    trained: TrainedModel, sampler: Sampler, request: SampleRequest, workdir: Path
) -> SampleFiles | None:
    """Draws the samples of a request and writes a picture and an .npz, under names that are not yet taken.

    Each rank draws a share, and rank 0 writes; the others return None.
    """
    refuse_too_many_samples(trained, request.num_samples)
    check_exports(request.save, trained.shown.shape)
    share = processes.own_share(request.num_samples)
    if request.cost.per_step is not None:
        nfe = request.cost.per_step * (len(sampler.times) - 1) + request.cost.extra
        what = f"drawing {request.num_samples:,} samples"
        announce_duration(trained, nfe * len(share), what, "lower sampling.num_samples or sampling.nfe")
    start = time.perf_counter()
    batches = draw(trained, sampler, share, request.seed, request.batch_size)
    seconds = max(processes.gather([time.perf_counter() - start]) or [0.0])  # of the slowest rank
    drawn = processes.gather(batches)
    if drawn is None:
        return None
    samples, nfe = np.concatenate([samples for samples, _ in drawn]), max(nfe for _, nfe in drawn)
    cond = trained.conditions.chosen(range(len(samples)))
    arrays: dict[str, Any] = {"samples": samples} | {
        name_of(kind): rows.numpy() for kind, rows in cond.items()
    }
    if "text" in cond:
        arrays["captions"] = np.array(trained.conditions.names(len(samples)), str)
    if "label" in cond:
        arrays["classes"] = np.array(trained.data.classes, str)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        **arrays,
        seed=request.seed,
        sampler=request.sampler,
        nfe=nfe,
        seconds_per_sample=seconds / request.num_samples,
        training_steps=trained.step,
        settings=request.settings,
    )
    folder = workdir / SAMPLES
    stem = write_numbered(folder / request.sampler, ".npz", buffer.getvalue(), ".png", *ENDINGS)
    others = _write_others(trained, sampler, request, samples, stem)
    return SampleFiles(samples, arrays.get("label"), nfe, stem.with_suffix(".npz"), others)


def _write_others(
    trained: TrainedModel, sampler: Sampler, request: SampleRequest, samples: np.ndarray, stem: Path
) -> list[tuple[str, Path]]:
    """Writes what a request asks for besides the array; returns the paths with what they are."""
    written = []
    if "grid" in request.save:
        picture = stem.with_suffix(".png")
        written.append(("picture", picture))
        shown = samples if samples.ndim == 2 else samples[:PICTURED]
        names, given = trained.conditions.names(len(shown)), trained.conditions.images(len(shown))
        plots.save_samples(picture, shown, trained.shown.scaling.limits, names, given)
    frames = functools.partial(draw_frames, trained, sampler, request.seed)
    return written + export(request.save, stem, trained, samples, frames)


def draw(
    trained: TrainedModel, sampler: Sampler, indices: range, seed: int, batch_size: int
) -> list[tuple[np.ndarray, int]]:
    """Draws the samples with these indices, batch by batch.

    Sample k depends on (seed, k) and its condition only, bit for bit: batch size, memory and number of
    processes decide the speed, not the samples.

    Returns:
        For each batch its raw pixels or points, and the network evaluations of the sample that took most.
    """
    score = trained.sampling_score()
    starts = range(indices.start, indices.stop, batch_size)
    batches = []
    with progress_bar(None, "sampling", "step") as bar:
        for batch, first in enumerate(starts):

            def on_step(i: int, n: int, batch: int = batch) -> None:
                advance_to(bar, batch * n + i, len(starts) * n)

            size = min(batch_size, indices.stop - first)
            shape = (size, *trained.data.shape)
            cond = trained.conditions.of(range(first, first + size), trained.device)
            result = sampler(score, shape, seed, cond=cond, first=first, on_step=on_step)
            samples = trained.to_user(result.samples).cpu().numpy()
            batches.append((samples, result.nfe))
    return batches


def matching_file(workdir: Path, sampler: str, settings: str, training_steps: int) -> Path | None:
    """The sample file of a sampler with these settings and after so many training steps, if there is one."""
    for path in sorted((workdir / SAMPLES).glob(f"{sampler}*.npz")):
        facts = read_facts(path)
        if (facts["settings"], facts["training_steps"]) == (settings, training_steps):
            return path
    return None


def read_sample_file(path: Path) -> SampleFile:
    """Reads a sample file.

    Raises:
        UserError: If it is damaged.
    """
    facts = read_facts(path)
    with _naming_damage(path), np.load(path, allow_pickle=False) as arrays:
        samples = arrays["samples"]
        if samples.dtype.kind != "f" or samples.ndim < 2 or not np.isfinite(samples).all():
            raise ValueError(f"samples must be finite numbers, got {samples.dtype} {samples.shape}")
        labels = arrays.get("label")
        if labels is not None and (labels.dtype != np.int64 or labels.shape != samples.shape[:1]):
            raise ValueError(f"label must hold an int64 for each sample, got {labels.dtype} {labels.shape}")
    return SampleFile(path, samples, labels=labels, **facts)


def read_facts(path: Path) -> dict[str, Any]:
    """What a sample file says about its samples: the values of `FACTS`, and of `SECONDS` if it has them.

    Raises:
        UserError: If it is damaged.
    """
    with _naming_damage(path), np.load(path, allow_pickle=False) as arrays:
        fields = FACTS | {name: values for name, values in SECONDS.items() if name in arrays}
        sizes = {info.filename.removesuffix(".npy"): info.file_size for info in arrays.zip.infolist()}
        large = [name for name in fields if sizes.get(name, 0) > LARGEST_FILE]
        if large:
            raise ValueError(f"{large[0]} has {sizes[large[0]]:,} bytes")
        facts = {name: arrays[name].item() for name in fields if name in arrays}
        check_fields(facts, fields)
    return facts


@contextlib.contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    """Turns whatever NumPy's reader raises into one sentence."""
    try:
        yield
    except Exception as error:  # of zip, of the headers of arrays, of memory that they ask for
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"sample file {path} is damaged ({reason}): remove it and run --mode sample again"
        ) from error
