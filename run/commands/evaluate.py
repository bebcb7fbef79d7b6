"""Distances between samples and held-out data, beside those of real training data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict

from score_diffusion.run.build import build_sampler, build_sde, data_options
from score_diffusion.run.console import print_result
from score_diffusion.run.data.info import load_data
from score_diffusion.run.data.sources import subset_in_memory
from score_diffusion.run.distributed import processes
from score_diffusion.run.errors import UserError
from score_diffusion.run.evaluation import metrics
from score_diffusion.run.files import write_numbered_json
from score_diffusion.run.inference.fitted_grid import build_trained_sampler
from score_diffusion.run.inference.sample_files import draw_and_save, matching_file, read_sample_file
from score_diffusion.run.inference.trained_model import load_trained


def evaluate(config: ConfigDict, workdir: Path, device: torch.device) -> int:
    """Measures samples of the newest checkpoint; returns the exit code.

    They are drawn first, unless a sample file of this checkpoint and these settings is there.
    """
    section = config.sampling
    build_sampler(section, build_sde(config.sde))  # for its checks, before the data are read
    trained = load_trained(workdir, config, device)
    dataset = load_data(data_options(config.data), trained.data)
    fewest = min(len(dataset.train), len(dataset.test), section.num_samples)
    if fewest < 2:
        raise UserError(f"evaluate compares two samples or more of each kind, and there is {fewest} of one")
    path = processes.from_first(lambda: matching_file(workdir, section, trained.step))
    if path is None:
        sampler = build_trained_sampler(section, trained, workdir)
        files = draw_and_save(trained, sampler, section, workdir)
        path = None if files is None else files.array
    if not processes.is_first():
        return 0
    file = read_sample_file(path)
    if file.samples.shape[1:] != dataset.shape:
        raise UserError(
            f"the samples of {file.path} have shape {file.samples.shape[1:]}, the data {dataset.shape}"
        )
    train, held_out = (
        dataset.scaling.stored_to_user(subset_in_memory(part)).numpy()
        for part in (dataset.train, dataset.test)
    )
    of_samples, of_train = _distances(file.samples, held_out), _distances(train, held_out)
    # New data are as far from the training data as held-out data are: samples that are nearer are copies.
    of_samples["nearest_training_sample"] = _median_distance(file.samples, train)
    of_train["nearest_training_sample"] = _median_distance(held_out, train)
    record = {"file": file.path.name, "num_samples": len(file.samples), "training_steps": file.training_steps}
    record |= {**trained.record(section), "samples": of_samples, "real": of_train}
    result = write_numbered_json(workdir / "evaluation", record).with_suffix(".json")
    rows = [
        ("", f"{'samples':>10}  {'real':>10}"),
        *(
            (name.replace("_", " "), f"{of_samples[name]:10.4f}  {of_train[name]:10.4f}")
            for name in of_samples
        ),
        ("samples", f"{len(file.samples):,} of {file.path}, after {file.training_steps:,} training steps"),
        ("real", f"{len(train):,} training samples in their place; nearest: {len(held_out):,} held-out ones"),
        ("result", result),
    ]
    print_result("Distances to held-out data", rows)
    return 0


def _distances(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    return {
        "frechet_distance": metrics.frechet_distance(a, b),
        "sliced_wasserstein": metrics.sliced_wasserstein(a, b),
    }


def _median_distance(samples: np.ndarray, reference: np.ndarray) -> float:
    return float(np.median(metrics.nearest_neighbour_distances(samples, reference)))
