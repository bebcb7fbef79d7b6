"""What a data section finds: size, range, classes, a picture, and the noise levels that suit the data."""

from __future__ import annotations

from pathlib import Path

import torch
from ml_collections import ConfigDict

from score_diffusion.run import plots
from score_diffusion.run.build import data_options
from score_diffusion.run.console import print_result
from score_diffusion.run.data.dataset import Dataset, to_raw
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.data.sources import in_memory
from score_diffusion.run.distributed import processes
from score_diffusion.run.files import write_numbered
from score_diffusion.sde_lib import SMALLEST_DIMENSION, largest_distance, number_of_levels, relative_step_size

PICTURED_IMAGES, PICTURED_POINTS = 100, 2000
STEPS_EACH = 5  # Langevin steps at each level that the suggested step size is for


def data(config: ConfigDict, workdir: Path, device: torch.device) -> int:
    """Prints what the data are, and draws some; returns the exit code."""
    if not processes.is_first():
        return 0  # there is nothing to share
    dataset = load_dataset(data_options(config.data))
    looked_at = in_memory(dataset.train)
    raw = to_raw(looked_at, dataset.levels)
    count = PICTURED_IMAGES if dataset.levels else PICTURED_POINTS
    picture = write_numbered(workdir / "data", ".png", b"").with_suffix(".png")  # takes the name
    shown = torch.randperm(len(raw), generator=torch.Generator().manual_seed(0))[:count]
    plots.save_samples(picture, raw[shown].numpy())
    kind = f"{dataset.levels} grey levels" if dataset.levels else "points"
    size = len(dataset.train) * looked_at[0].nbytes / 2**20
    if looked_at is dataset.train:
        memory = [("memory", f"{size:,.1f} MiB, held there")]
    else:
        which = "all" if len(raw) == len(dataset.train) else f"{len(raw):,} drawn at random"
        memory = [
            ("memory", f"would take {size:,.1f} MiB: read from the disk, see data.memory_gib"),
            ("looked at", f"{which} of the training samples, for what follows"),
        ]
    rows: list[tuple[str, object]] = [
        ("training", f"{len(dataset.train):,} samples of shape {dataset.shape}, {kind}"),
        ("held out", f"{len(dataset.test):,}"),
        ("classes", _classes(dataset)),
        *memory,
        ("range", f"{raw.min():.4g} to {raw.max():.4g} as the model sees them, mean {raw.mean():.4g}"),
        *_suggestions(raw),
        ("picture", picture),
    ]
    print_result(f"Data: {dataset.name}", rows)
    return 0


def _classes(dataset: Dataset) -> str:
    if dataset.labels is None:
        return "none"
    counts = torch.bincount(dataset.labels, minlength=len(dataset.classes)).tolist()
    shown = [f"{name} {count:,}" for name, count in zip(dataset.classes, counts, strict=True)]
    return ", ".join(shown[:20]) + (f", and {len(shown) - 20} more" if len(shown) > 20 else "")


def _suggestions(raw: torch.Tensor) -> list[tuple[str, object]]:
    """σ_data (Karras et al., 2022), and σ_max, the number of levels and the step size of NCSNv2."""
    if len(raw) < 2:
        return []
    sigma_max, sigma_min = largest_distance(raw), 0.01
    rows: list[tuple[str, object]] = [
        ("sigma_data", f"{raw.std():.4g}, the standard deviation (EDM)"),
        ("sigma_max", f"{sigma_max:.4g}, the largest distance of two samples (NCSNv2, technique 1)"),
    ]
    if raw[0].numel() < SMALLEST_DIMENSION or sigma_max <= sigma_min:
        return rows  # technique 2 needs more dimensions, and samples that differ
    levels = number_of_levels(sigma_max, sigma_min, raw[0].numel())
    gamma = (sigma_max / sigma_min) ** (1 / max(levels - 1, 1))
    step = relative_step_size(gamma, STEPS_EACH)
    return [
        *rows,
        ("levels", f"{levels} down to {sigma_min}, ratio {gamma:.4f} (technique 2)"),
        ("step size", f"{step:.4g} with {STEPS_EACH} steps at each level (technique 4)"),
    ]
