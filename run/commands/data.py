"""What a data section finds: size, range, classes, a picture, and the noise levels that suit the data."""

from __future__ import annotations

from pathlib import Path

import torch
from ml_collections import ConfigDict
from torch import Tensor

from score_diffusion.run import plots
from score_diffusion.run.builders.data import load_latent_space, load_run_data
from score_diffusion.run.console import print_result
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.info import DATA_PICTURE, DataInfo
from score_diffusion.run.data.sample_conditions import class_name
from score_diffusion.run.data.sources import subset_in_memory
from score_diffusion.run.distributed import processes
from score_diffusion.run.files import write_numbered
from score_diffusion.sde_lib import SMALLEST_DIMENSION, largest_distance, number_of_levels, relative_step_size

PICTURED_IMAGES, PICTURED_POINTS = 100, 2000
STEPS_EACH = 5  # Langevin steps at each level that the suggested step size is for


def data(config: ConfigDict, workdir: Path, device: torch.device) -> int:
    """Prints what the data are, and draws some; returns the exit code."""
    dataset = load_run_data(config.data, device=device)
    if not processes.is_rank_0():
        return 0  # there is nothing more to share
    stored = subset_in_memory(dataset.train)
    picture = write_numbered(workdir / DATA_PICTURE, ".png", b"").with_suffix(".png")  # takes the name
    count = PICTURED_POINTS if len(dataset.shape) == 1 else PICTURED_IMAGES
    shown = torch.randperm(len(stored), generator=torch.Generator().manual_seed(0))[:count]
    names = None
    if dataset.labels is not None and stored is dataset.train:
        shown = shown[dataset.labels[shown].argsort(stable=True)]
        names = [class_name(label, dataset.classes) for label in dataset.labels[shown].tolist()]
    values = dataset.scaling.stored_to_user(stored[shown])
    space = load_latent_space(config.data, DataInfo.of(dataset), device)
    if space is not None:
        values = _next_to_originals(space.decode(values).cpu(), dataset, stored, shown)
    if dataset.vocabulary is not None and stored is dataset.train:
        names = [dataset.vocabulary.decode(ids) for ids in dataset.conditions["text"][shown]]
    plots.save_samples(picture, values.numpy(), (dataset.decoded or dataset).scaling.limits, names)
    rows: list[tuple[str, object]] = [
        ("training", f"{len(dataset.train):,} samples of shape {dataset.shape}, {DataInfo.of(dataset).kind}"),
        *_held_out(dataset),
        ("classes", _classes(dataset)),
        *_captions(dataset),
        *_conditions(dataset),
        *_memory(dataset, stored),
        *_range(dataset, stored),
        *_suggestions(dataset.scaling.stored_to_model(stored)),
        ("picture", picture),
    ]
    print_result(f"Data: {dataset.name}", rows)
    return 0


def _next_to_originals(decoded: Tensor, dataset: Dataset, stored: Tensor, shown: Tensor) -> Tensor:
    """Decoded latents, to the right of the samples that they are of if those are known."""
    if dataset.decoded is None or stored is not dataset.train:
        return decoded
    originals = dataset.decoded.scaling.stored_to_user(dataset.decoded.train[shown])
    return torch.cat([originals, decoded], dim=-1)


def _held_out(dataset: Dataset) -> list[tuple[str, object]]:
    if dataset.validation is None:
        return [("held out", f"{len(dataset.test):,}")]
    return [
        ("validation", f"{len(dataset.validation):,}, for the loss during training"),
        ("test", f"{len(dataset.test):,}, for likelihoods and distances"),
    ]


def _memory(dataset: Dataset, stored: torch.Tensor) -> list[tuple[str, object]]:
    size = len(dataset.train) * stored[0].nbytes / 2**20
    if stored is dataset.train:
        return [("memory", f"{size:,.1f} MiB, held there")]
    which = "all" if len(stored) == len(dataset.train) else f"{len(stored):,} drawn at random"
    return [
        ("memory", f"would take {size:,.1f} MiB: read from the disk, see data.memory_gib"),
        ("looked at", f"{which} of the training samples, for what follows"),
    ]


def _range(dataset: Dataset, stored: torch.Tensor) -> list[tuple[str, object]]:
    """Of pixel values; of numbers in the user's units, and as the model sees them."""
    values, inputs = dataset.scaling.stored_to_user(stored), dataset.scaling.stored_to_model(stored)
    seen = f"{inputs.min():.4g} to {inputs.max():.4g} as the model sees them, mean {inputs.mean():.4g}"
    if not dataset.scaling.standardizes:
        return [("range", seen)]
    rows = [("range", f"{values.min():.6g} to {values.max():.6g}"), ("standardized", seen)]
    shift, scale = dataset.scaling.shift, dataset.scaling.scale
    listed = ", ".join(f"{m:.4g} ± {s:.4g}" for m, s in list(zip(shift, scale, strict=True))[:8])
    return [*rows, ("mean ± std", listed + (", ..." if len(shift) > 8 else ""))]


def _classes(dataset: Dataset) -> str:
    if dataset.labels is None:
        return "none"
    counts = torch.bincount(dataset.labels, minlength=len(dataset.classes)).tolist()
    shown = [f"{_printable(name)} {count:,}" for name, count in zip(dataset.classes, counts, strict=True)]
    return ", ".join(shown[:20]) + (f", and {len(shown) - 20} more" if len(shown) > 20 else "")


def _captions(dataset: Dataset) -> list[tuple[str, object]]:
    if dataset.vocabulary is None:
        return []
    example = _printable(dataset.vocabulary.decode(dataset.conditions["text"][0]))
    return [("captions", f"{dataset.vocabulary.summary}, such as: {example}")]


def _conditions(dataset: Dataset) -> list[tuple[str, object]]:
    own = {kind: values for kind, values in dataset.conditions.items() if kind not in ("label", "text")}
    return [
        (
            f"cond_{kind}",
            f"{' x '.join(map(str, values.shape[1:]))} for each sample, {values.min():.4g} to "
            f"{values.max():.4g}"
            if kind != "mask"
            else f"{100 * values.float().mean():.3g} % of the tokens are valid",
        )
        for kind, values in own.items()
    ]


def _printable(name: str) -> str:
    """The name of a class, which may be that of any folder."""
    return "".join(character if character.isprintable() else "?" for character in name)


def _suggestions(inputs: torch.Tensor) -> list[tuple[str, object]]:
    """σ_data (Karras et al., 2022), and σ_max, the number of levels and the step size of NCSNv2."""
    if len(inputs) < 2:
        return []
    sigma_max, sigma_min = largest_distance(inputs), 0.01
    rows: list[tuple[str, object]] = [
        ("sigma_data", f"{inputs.std():.4g}, the standard deviation (EDM)"),
        ("sigma_max", f"{sigma_max:.4g}, the largest distance of two samples (NCSNv2, technique 1)"),
    ]
    if inputs[0].numel() < SMALLEST_DIMENSION or sigma_max <= sigma_min:
        return rows  # technique 2 needs more dimensions, and samples that differ
    levels = number_of_levels(sigma_max, sigma_min, inputs[0].numel())
    gamma = (sigma_max / sigma_min) ** (1 / max(levels - 1, 1))
    step = relative_step_size(gamma, STEPS_EACH)
    return [
        *rows,
        ("levels", f"{levels} down to {sigma_min}, ratio {gamma:.4f} (technique 2)"),
        ("step size", f"{step:.4g} with {STEPS_EACH} steps at each level (technique 4)"),
    ]
