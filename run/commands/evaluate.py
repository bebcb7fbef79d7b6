"""`--mode evaluate`: distances of samples to held-out data, next to those of real training data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from ml_collections import ConfigDict

from score_diffusion.run.build import build_sampler, build_sde, data_options
from score_diffusion.run.build_inference import build_trained_sampler, load_trained, sample_request
from score_diffusion.run.console import advance_to, print_result, progress_bar
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.info import load_data
from score_diffusion.run.data.sources import subset_in_memory
from score_diffusion.run.distributed import processes
from score_diffusion.run.errors import UserError
from score_diffusion.run.evaluation import metrics
from score_diffusion.run.files import write_numbered_json
from score_diffusion.run.inference.sample_files import (
    SampleFile,
    draw_and_save,
    matching_file,
    read_sample_file,
)
from score_diffusion.run.inference.trained_model import TrainedModel

T = TypeVar("T")
BIAS = "biased upwards, the more the fewer samples: compare only runs with as many"


def evaluate(config: ConfigDict, workdir: Path, device: torch.device) -> int:
    """Measures samples of a trained model; returns the exit code.

    They are drawn first, unless a sample file of this checkpoint and these settings is there.
    """
    section = config.sampling
    build_sampler(section, build_sde(config.sde))  # for its checks, before the data are read
    trained = load_trained(workdir, config, device)
    dataset = load_data(data_options(config.data), trained.data)
    fewest = min(len(dataset.train), len(dataset.test), section.num_samples)
    if fewest < 2:
        raise UserError(
            f"evaluate compares at least 2 samples, 2 training and 2 held-out ones, got {fewest} of one kind"
        )
    path = _sample_file(section, trained, workdir)
    if path is None:  # on all ranks except the first
        return 0
    file = read_sample_file(path)
    if file.samples.shape[1:] != dataset.shape:
        raise UserError(
            f"the samples of {file.path} have shape {file.samples.shape[1:]}, the data {dataset.shape}"
        )
    _compare(file, dataset, trained, workdir)
    return 0


def _sample_file(section: ConfigDict, trained: TrainedModel, workdir: Path) -> Path | None:
    """The sample file to measure, drawn now if it is not there; on rank 0, None on the others."""
    request = sample_request(section)
    path = processes.from_rank_0(lambda: matching_file(workdir, request, trained.step))
    if path is None:
        files = draw_and_save(trained, build_trained_sampler(section, trained, workdir), request, workdir)
        path = None if files is None else files.array
    return path if processes.is_rank_0() else None


def _compare(file: SampleFile, dataset: Dataset, trained: TrainedModel, workdir: Path) -> None:
    """Writes and prints the distances of a sample file and of training data to held-out data."""
    train, held_out = (
        dataset.scaling.stored_to_user(subset_in_memory(part)).numpy()
        for part in (dataset.train, dataset.test)
    )
    of_samples, of_train = _distances(file.samples, held_out), _distances(train, held_out)
    # New data are as far from the training data as held-out data are: samples that are nearer are copies.
    of_samples["nearest_training_sample"] = _median_distance(file.samples, train)
    of_train["nearest_training_sample"] = _median_distance(held_out, train)
    values = "raw pixels" if dataset.levels else "raw numbers"
    record = {"file": file.path.name, "num_samples": len(file.samples), "training_steps": file.training_steps}
    record |= {**trained.record(), "measured_on": values, "samples": of_samples, "real": of_train}
    result = write_numbered_json(workdir / "evaluation", record).with_suffix(".json")
    rows: list[tuple[str, object]] = [
        ("", f"{'samples':>10}  {'real':>10}"),
        *(
            (name.replace("_", " "), f"{of_samples[name]:10.4f}  {of_train[name]:10.4f}")
            for name in of_samples
        ),
        ("measured on", f"{values}, not features of a network: not comparable with a published FID"),
        ("frechet distance", f"of {len(file.samples):,} samples, {BIAS}"),
        ("samples", f"{len(file.samples):,} of {file.path}, after {file.training_steps:,} training steps"),
        ("real", f"{len(train):,} training samples in their place; nearest: {len(held_out):,} held-out ones"),
        ("result", result),
    ]
    print_result("Distances to held-out data", rows)


def _distances(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    return {name: _with_bar(name.replace("_", " "), metric, a, b) for name, metric in metrics.METRICS.items()}


def _median_distance(samples: np.ndarray, reference: np.ndarray) -> float:
    distances = _with_bar("nearest samples", metrics.nearest_neighbour_distances, samples, reference)
    return float(np.median(distances))


def _with_bar(title: str, metric: Callable[..., T], a: np.ndarray, b: np.ndarray) -> T:
    """A metric with a progress bar, which is shown after a second."""
    with progress_bar(None, title, "sample", delay=1.0) as bar:
        return metric(a, b, on_step=lambda i, n: advance_to(bar, i, n))
