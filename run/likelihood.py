"""Scoring held-out data: bits/dim of images, nats of points, by the probability-flow ODE."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor

from run import plots
from run.data import Dataset, bin_width, load_dataset, to_continuous
from run.files import unused_stem, write_json
from run.report import format_duration, print_result, progress_bar
from run.rundir import TrainedModel, load_trained
from sde_lib import generator_for, log_likelihood


@dataclass(frozen=True)
class Scores:
    """One value per held-out sample."""

    values: np.ndarray
    """Bits/dim of images, negative log-likelihood in nats of points, shape (n,)."""
    nfe: int
    """Network evaluations per sample, of the batch that took most."""

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def standard_error(self) -> float | None:
        """Of the mean over samples, the spread of dequantization and probes included; None for one sample."""
        return float(self.values.std(ddof=1) / math.sqrt(len(self.values))) if len(self.values) > 1 else None


def likelihood(config: ConfigDict, workdir: Path, device: torch.device) -> int:
    """Scores held-out data with the newest checkpoint of a run directory; returns the exit code."""
    section = config.likelihood
    dataset = load_dataset(config.data)
    trained = load_trained(workdir, config, device)
    start = time.perf_counter()
    scores = score_held_out(trained, dataset, section, device)
    seconds = time.perf_counter() - start
    quantity, unit = ("bits_per_dim", "bits/dim") if dataset.levels else ("negative_log_likelihood", "nats")
    stem = unused_stem(workdir, "likelihood", ".json", ".png")
    result, histogram = stem.with_suffix(".json"), stem.with_suffix(".png")
    plots.save_histogram(histogram, scores.values, unit)
    record = {
        quantity: scores.mean,
        "standard_error": scores.standard_error,
        "nfe": scores.nfe,
        "seconds": seconds,
        "num_images": len(scores.values),
        "training_steps": trained.step,
        "settings": section.to_dict(),
    }
    write_json(result, record)
    error = "" if scores.standard_error is None else f" ± {scores.standard_error:.4f} (standard error)"
    rows = [
        (unit, f"{scores.mean:.4f}{error}"),
        ("held-out samples", f"{len(scores.values):,} of {len(dataset.test):,}"),
        ("model", f"averaged weights after {trained.step:,} training steps"),
        ("nfe", f"{scores.nfe:,} network evaluations per sample"),
        ("time", format_duration(seconds)),
        ("result", result),
        ("histogram", histogram),
    ]
    print_result("Likelihood of held-out data", rows)
    return 0


def score_held_out(
    trained: TrainedModel, dataset: Dataset, section: ConfigDict, device: torch.device
) -> Scores:
    """Scores the first `num_images` held-out samples; the noise of sample k depends on (seed, k) alone."""
    data = dataset.test[: section.num_images]
    values, nfe = [], 0
    with progress_bar(len(data), "likelihood", "sample") as bar:
        for first in range(0, len(data), section.batch_size):
            batch = data[first : first + section.batch_size]
            x = to_continuous(batch, dataset.levels, _uniform(section.seed, first, batch)).to(device)
            result = log_likelihood(
                trained.sde,
                trained.score,
                x,
                divergence=section.divergence,
                n_probes=section.n_probes,
                rtol=section.rtol,
                atol=section.atol,
                bin_width=bin_width(dataset.levels),
                seed=section.seed,
                first=first,
            )
            values.append(result.bits_per_dim if dataset.levels else -result.log_prob)
            nfe = max(nfe, result.nfe)
            bar.update(len(batch))
    return Scores(torch.cat(values).double().cpu().numpy(), nfe)


def _uniform(seed: int, first: int, batch: Tensor) -> Tensor:
    """Dequantization noise in [0, 1), of the batch's shape."""
    rows = [
        torch.rand(sample.shape, generator=generator_for(seed, "dequantization", first + k))
        for k, sample in enumerate(batch)
    ]
    return torch.stack(rows)
