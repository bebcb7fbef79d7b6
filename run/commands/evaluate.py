"""`--mode evaluate`: measures samples against held-out data, next to real data in their place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict

from score_diffusion.models import AUTOENCODERS
from score_diffusion.run import plots
from score_diffusion.run.build import build_sampler, build_sde
from score_diffusion.run.builders.autoencoders import load_autoencoder
from score_diffusion.run.builders.data import load_shown_data
from score_diffusion.run.builders.evaluation import build_evaluator, find_or_draw, result_record
from score_diffusion.run.builders.guidance import load_guided
from score_diffusion.run.builders.inference import output_folder
from score_diffusion.run.console import print_result, progress_bar, warn
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.info import read_data_info
from score_diffusion.run.data.sample_conditions import class_name
from score_diffusion.run.distributed import processes
from score_diffusion.run.encoded_data.latent_space import LatentSpace
from score_diffusion.run.evaluation.class_scores import differing_class
from score_diffusion.run.evaluation.evaluator import Copies, Evaluator
from score_diffusion.run.evaluation.feature_set import FeatureSet
from score_diffusion.run.evaluation.resampling import Estimate
from score_diffusion.run.evaluation.results import figures_record, in_words, name_in_words
from score_diffusion.run.files import write_numbered_json
from score_diffusion.run.inference.image_quality import psnr
from score_diffusion.run.inference.sample_files import SampleFile
from score_diffusion.run.inference.trained_model import TrainedModel

PAIRS = 36  # in the picture of samples next to their nearest training samples
COPIES_PICTURE = "-copies.png"
ALIKE = 0.95  # ratio of numbers of samples from which on they count as equal
Figures = dict[str, Estimate]


def evaluate(config: ConfigDict, workdir: Path, device: torch.device) -> int:
    """Measures samples of a trained model; returns the exit code.

    They are drawn first, unless a sample file of this checkpoint and these settings is there.
    """
    build_sampler(config.sampling, build_sde(config.sde))  # for its checks, before the data are read
    output = output_folder(config.sampling, workdir)
    if config.model.name in AUTOENCODERS:
        return _evaluate_autoencoder(config, workdir, output, device)
    trained = load_guided(workdir, config, device)
    dataset = load_shown_data(config.data, trained.data)
    evaluator = build_evaluator(config.evaluation, dataset, output, device)
    file = find_or_draw(config.sampling, trained, output)
    if file is not None:  # on rank 0
        compare_with_data(file, trained, evaluator, dataset, output)
    return 0


def _evaluate_autoencoder(config: ConfigDict, workdir: Path, output: Path, device: torch.device) -> int:
    """Measures reconstructions of held-out images; returns the exit code."""
    autoencoder, step = load_autoencoder(workdir)
    dataset = load_shown_data(config.data, read_data_info(workdir))
    evaluator = build_evaluator(config.evaluation, dataset, output, device)
    if not processes.is_rank_0():
        return 0  # there is little to share
    space = LatentSpace(autoencoder.to(device), dataset.scaling, config.sampling.tile)
    stored = dataset.test[: max(2, config.sampling.num_samples)]
    with progress_bar(len(stored), "reconstructing", "image", delay=1.0, leave=False) as bar:
        parts = []
        for batch in stored.split(256):
            parts.append(space.decode(space.encode(dataset.scaling.stored_to_model(batch))).cpu())
            bar.update(len(batch))
    decoded = torch.cat(parts)
    ratios = psnr(decoded.numpy(), dataset.scaling.stored_to_user(stored).numpy(), value_range=2)
    figures = evaluator.measure(evaluator.features_of(decoded.numpy()), "reconstructions")
    real = evaluator.measure(evaluator.real(len(decoded)), "real data")
    real = {name: figure for name, figure in real.items() if name in figures}
    found = Estimate(ratios.mean().item(), ratios.std(ddof=1).item() / len(ratios) ** 0.5)
    record = {
        "psnr": found.value,
        "psnr_standard_error": found.standard_error,
        "num_samples": len(decoded),
        "training_steps": step,
        "measured_on": evaluator.extractor.words,
        **figures_record(figures),
        **figures_record(real, "real"),
    }
    stem = write_numbered_json(output / "evaluation", record, COPIES_PICTURE)
    rows = [
        ("PSNR, dB", in_words(found)),
        *_figure_rows(figures, real),
        ("measured on", evaluator.extractor.words + _not_fid(evaluator)),
        ("reconstructions", f"of {len(decoded):,} held-out images, after {step:,} training steps"),
        ("latents", " x ".join(map(str, autoencoder.latent_shape(dataset.shape)))),
        ("result", stem.with_suffix(".json")),
    ]
    print_result(f"Reconstructions compared with {evaluator.reference_in_words}", rows)
    return 0


def compare_with_data(
    file: SampleFile, trained: TrainedModel, evaluator: Evaluator, dataset: Dataset, output: Path
) -> None:
    """Measures a file of samples, prints the figures and writes them to a folder.

    Args:
        file: The samples.
        trained: The model that drew them.
        evaluator: Measures them.
        dataset: The data that they are to be like.
        output: The folder.
    """
    features = evaluator.features_of(file.samples, file.labels)
    figures, real = evaluator.measure(features), evaluator.real(len(file.samples))
    _warn_of_other_classes(features, real, dataset.classes)
    of_real = evaluator.measure(real, "real data")
    real_figures = {name: figure for name, figure in of_real.items() if name in figures}
    copies = evaluator.check_for_copies(file.samples)
    record = {
        **result_record(file, trained, evaluator),
        **figures_record(figures),
        **figures_record(real_figures, "real"),
        "num_real": real.count,
        "copies": {words: _copies_record(x) for words, x in copies.items()},
    }
    stem = write_numbered_json(output / "evaluation", record, COPIES_PICTURE)
    picture = stem.with_name(stem.name + COPIES_PICTURE)
    if len(dataset.shape) == 3:
        _save_pairs(picture, copies[evaluator.extractor.words], file.samples, dataset)
    rows = [
        *_figure_rows(figures, real_figures),
        *_copies_rows(copies),
        *_remarks(file, evaluator, real.count),
        *([("closest pairs", picture)] if picture.exists() else []),
        ("result", stem.with_suffix(".json")),
    ]
    print_result(f"Samples compared with {evaluator.reference_in_words}", rows)


def _warn_of_other_classes(samples: FeatureSet, real: FeatureSet, classes: Sequence[str]) -> None:
    """Says that samples have their classes in other shares than real data, which distances measure, too."""
    if samples.labels is None or real.labels is None:
        return
    differing = differing_class(samples.labels, real.labels)
    if differing is not None:
        k, share, wanted = differing
        warn(
            f"class {class_name(k, classes)} is {share:.0%} of the samples and {wanted:.0%} of the real "
            "data, which distances include: --label A,A,B draws two of A for one of B"
        )


def _figure_rows(figures: Figures, real: Figures) -> list[tuple[str, object]]:
    """The figures of the samples, what they would change by for half as many, and those of real data."""
    rows: list[tuple[str, object]] = [("", f"{'samples':<20} {'half as many':<16} real data")]
    for name, figure in figures.items():
        change = figure.change_on_halving
        changed = "" if change is None else f"{change:+.2g}"
        row = f"{in_words(figure):<20} {changed:<16} {in_words(real[name]) if name in real else ''}"
        rows.append((name_in_words(name), row.rstrip()))
    return rows


def _copies_rows(copies: dict[str, Copies]) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for words, found in copies.items():
        medians = f"{found.median:.4g}, of held-out data {found.median_of_new_data:.4g}, by {words}"
        meaning = "1/2: as new data, 1: copies of training data"
        rows.append(("nearest training data", f"at a median distance of {medians}"))
        rows.append(("nearer than new data", f"with probability {in_words(found.probability)} ({meaning})"))
    return rows


def _remarks(file: SampleFile, evaluator: Evaluator, num_real: int) -> list[tuple[str, object]]:
    """What was measured on what, and what the numbers of samples do."""
    n, m = len(file.samples), evaluator.reference.count
    rows: list[tuple[str, object]] = [("measured on", evaluator.extractor.words + _not_fid(evaluator))]
    numbers = f"{n:,} of {file.path}, after {file.training_steps:,} training steps"
    rows += [("samples", numbers), ("real data", f"{num_real:,} in their place")]
    if m:
        unequal = "" if n >= ALIKE * m else f": set --config.sampling.num_samples={m} for as many samples"
        rows.append(("reference", f"{m:,} samples{unequal}"))
    if n < ALIKE * m or num_real < ALIKE * n:
        rows.append(
            (
                "note",
                "Fréchet and Wasserstein distances fall with the number of samples: compare equal ones",
            )
        )
    return rows


def _not_fid(evaluator: Evaluator) -> str:
    return "" if evaluator.extractor.is_standard else ", not comparable with a published FID"


def _copies_record(found: Copies) -> dict[str, object]:
    return {
        "nearer_than_new_data": found.probability.value,
        "standard_error": found.probability.standard_error,
        "median_distance": found.median,
        "median_distance_of_new_data": found.median_of_new_data,
        "nearest_samples": found.samples[:PAIRS].tolist(),
        "their_neighbours": found.neighbours[:PAIRS].tolist(),
    }


def _save_pairs(path: Path, found: Copies, samples: np.ndarray, dataset: Dataset) -> None:
    """The samples nearest to training samples, each with its neighbour to the right of it."""
    neighbours = dataset.train[torch.from_numpy(found.neighbours[:PAIRS])]
    right = dataset.scaling.stored_to_user(neighbours).numpy()
    pairs = np.concatenate([samples[found.samples[:PAIRS]], right], axis=-1)
    plots.save_samples(path, pairs, dataset.scaling.limits)
