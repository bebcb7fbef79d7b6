"""Samples in further forms: a picture of each, the way from noise to sample, tensors."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from score_diffusion.run import film
from score_diffusion.run.console import advance_to, progress_bar
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import write_atomic
from score_diffusion.run.image_grids import png_bytes, rgb, shortened, slices
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.samplers import Sampler
from score_diffusion.sde_lib import SDE, expand

FILMED = 16  # samples, 500 points
FILMED_POINTS = 500
DELAY = 2.0  # seconds after which a bar is shown
PARTS = {"png": "", "gif": ".gif", "safetensors": ".safetensors"}
STRIP = "-path.png"
ENDINGS = (*PARTS.values(), STRIP)
"""What follows the stem in the names of the files and of the folder."""


def check_exports(save: tuple[str, ...], shape: tuple[int, ...]) -> None:
    """Refuses pictures of each sample of data that are no images.

    Raises:
        UserError: If the samples are points or signals.
    """
    if "png" in save and len(shape) < 3:
        kind = "points" if len(shape) == 1 else "signals"
        raise UserError(f"sampling.save=png writes a file for each image, and the samples are {kind}")


def export(
    save: tuple[str, ...],
    stem: Path,
    trained: TrainedModel,
    samples: np.ndarray,
    trajectory: Callable[[int], np.ndarray],
) -> list[tuple[str, Path]]:
    """Writes samples in the forms of `PARTS` that are asked for; returns the paths with what they are.

    Args:
        save: The forms.
        stem: Beginning of the names.
        trained: The model that the samples are of.
        samples: The samples in the user's units, (n, *shape).
        trajectory: Draws the first so many samples again, and returns their frames.
    """
    limits = trained.shown.scaling.limits
    written: list[tuple[str, Path]] = []
    if "png" in save:
        folder = stem.with_name(stem.name + PARTS["png"])
        _save_each(folder, samples, limits, file_names(trained, len(samples)))
        written.append(("pictures", folder))
    if "gif" in save:
        frames = trajectory(min(len(samples), FILMED_POINTS if samples.ndim == 2 else FILMED))
        gif, strip = (stem.with_name(stem.name + ending) for ending in (PARTS["gif"], STRIP))
        film.save_film(gif, frames, limits)
        film.save_strip(strip, frames, limits)
        written += [("film", gif), ("film strip", strip)]
    if "safetensors" in save:
        path = stem.with_name(stem.name + PARTS["safetensors"])
        tensors = {"samples": torch.from_numpy(samples)} | trained.conditions.chosen(range(len(samples)))
        write_atomic(path, safetensors.torch.save({key: x.contiguous() for key, x in tensors.items()}))
        written.append(("tensors", path))
    return written


def _save_each(
    folder: Path, samples: np.ndarray, limits: tuple[float, float] | None, names: list[str]
) -> None:
    """Images (n, C, H, W), or middle slices of fields, as files of a new folder, pixel by pixel."""
    folder.mkdir()
    for levels, name in zip(rgb(slices(samples), limits), names, strict=True):
        write_atomic(folder / f"{name}.png", png_bytes(Image.fromarray(levels.transpose(1, 2, 0))))


def file_names(trained: TrainedModel, count: int) -> list[str]:
    """A name for each sample: its index, and its class if it has one."""
    names, width = trained.conditions.names(count), max(3, len(str(count - 1)))
    indices = [f"{k:0{width}d}" for k in range(count)]
    if names is None:
        return indices
    plain = [re.sub(r"[^\w.-]+", "_", shortened(name)) for name in names]
    return [f"{index}-{name}" for index, name in zip(indices, plain, strict=True)]


def draw_frames(trained: TrainedModel, sampler: Sampler, seed: int, count: int) -> np.ndarray:
    """The states x_t of the first samples at the times of the grid, as `shown_states` has them, then the
    samples, in the user's units.

    Returns:
        Shape (steps + 2, count, *shape).
    """
    cond = trained.conditions.of(range(count))
    score, shape = trained.sampling_score(), (count, *trained.data.shape)
    with progress_bar(None, "filming", "step", delay=DELAY) as bar:

        def on_step(i: int, n: int) -> None:
            advance_to(bar, i, n)

        result = sampler(score, shape, seed, cond=cond, trajectory=True, on_step=on_step)
    assert result.trajectory is not None
    path, times = result.trajectory, result.times.repeat_interleave(count)
    states = shown_states(trained.sde, trained.data.scaling, path.flatten(0, 1), times)
    if trained.latent_space is not None:
        states = trained.latent_space.decode(states)
    states = states.unflatten(0, path.shape[:2])
    last = trained.to_user(result.samples)[None]
    return torch.cat([states.to(last.dtype), last]).cpu().numpy()


def shown_states(sde: SDE, scaling: Scaling, states: Tensor, times: Tensor) -> Tensor:
    """States x_t as they are shown: over √(α² + σ²), the deviation of data of unit variance with their noise.

    Args:
        sde: The SDE.
        scaling: Of the data.
        states: The states, shape (n, *shape).
        times: Their times, shape (n,).

    Returns:
        In the units of the data, shape (n, *shape); images are not rounded to grey levels.
    """
    times = times.to(states.device)
    scale = (sde.alpha(times).square() + sde.sigma(times).square()).rsqrt()
    scaled = (states * expand(scale, states)).to(states.dtype)
    return scaled if scaling.levels else scaling.model_to_user(scaled)
