"""From a configuration to what measures samples, and to the sample files that are measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor

from score_diffusion.run.builders.encoders import load_clean_classifier
from score_diffusion.run.builders.inference import build_trained_sampler, sample_request
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.user_function import names_function
from score_diffusion.run.distributed import processes
from score_diffusion.run.errors import UserError
from score_diffusion.run.evaluation.evaluator import HELD_OUT, TRAIN, Evaluator
from score_diffusion.run.evaluation.extractors import (
    ClassifierFeatures,
    Extractor,
    Inception,
    RawValues,
    UserFeatures,
)
from score_diffusion.run.files import expanded
from score_diffusion.run.inference.sample_files import (
    SampleFile,
    draw_and_save,
    matching_file,
    read_sample_file,
)
from score_diffusion.run.inference.trained_model import TrainedModel, tensors_digest
from score_diffusion.run.training.objectives import clean_data

PIXELS = "pixels"
CACHE = "reference"  # folder of a run directory


def build_evaluator(section: ConfigDict, dataset: Dataset, workdir: Path, device: torch.device) -> Evaluator:
    """What measures samples as a section `evaluation` says.

    Raises:
        UserError: If the features or the reference cannot be used, or the data are too few.
    """
    fewest = min(len(dataset.train), len(dataset.test))
    if fewest < 2:
        raise UserError(
            f"samples are compared with at least 2 training and 2 held-out ones, got {fewest} of one kind"
        )
    reference = section.reference
    if reference not in (HELD_OUT, TRAIN) and not reference.endswith(".npz"):
        raise UserError(
            f"evaluation.reference must be {HELD_OUT}, {TRAIN} or an .npz of statistics, got {reference!r}"
        )
    extractor = build_extractor(section.features, dataset, device)
    return Evaluator(dataset, extractor, reference, section.kept, workdir / CACHE)


def build_extractor(features: str, dataset: Dataset, device: torch.device) -> Extractor:
    """The features that `evaluation.features` names.

    Raises:
        UserError: If it names none, or they cannot be computed for these data.
    """
    if features == PIXELS:
        return RawValues(dataset.scaling)
    if names_function(features):
        return UserFeatures(features)
    path = expanded(features)
    if path.is_dir():
        return _classifier_features(path, dataset, device)
    if not path.is_file():
        raise UserError(
            f"evaluation.features must be {PIXELS}, the run directory of --config classifier_features, a "
            f"file of Inception-v3 weights or FILE.py:FUNCTION, got {features!r}, which does not exist"
        )
    return Inception(path, dataset.shape, device)


def _classifier_features(run: Path, dataset: Dataset, device: torch.device) -> Extractor:
    """The features of the classifier in a run directory.

    Raises:
        UserError: If it holds something else, or a classifier of other data.
    """
    model, step = load_clean_classifier(run, "evaluation.features", dataset, device)
    net: Any = model.net
    inputs: list[Tensor] = []  # of the last layer
    net.pool.project.register_forward_pre_hook(lambda layer, arguments: inputs.append(arguments[0]))

    def classify(x: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(*clean_data(model, x))
        return inputs.pop(), logits

    weights = tensors_digest(model.state_dict().items())
    words = f"features of the classifier {run}, after {step:,} training steps"
    return ClassifierFeatures(classify, dataset.scaling, device, words, weights)


def find_or_draw(section: ConfigDict, trained: TrainedModel, workdir: Path) -> SampleFile | None:
    """The sample file that a section `sampling` asks for, drawn now if it is not there.

    Every rank calls it; rank 0 has the file, the others None.

    Raises:
        UserError: If fewer than 2 samples are asked for, or the file holds samples of another shape.
    """
    if section.num_samples < 2:
        raise UserError(f"at least 2 samples can be compared, got sampling.num_samples={section.num_samples}")
    request = sample_request(section, trained.guided_by)
    path = processes.from_rank_0(
        lambda: matching_file(workdir, request.sampler, request.settings, trained.step)
    )
    if path is None:
        files = draw_and_save(trained, build_trained_sampler(section, trained, workdir), request, workdir)
        path = None if files is None else files.array
    if path is None or not processes.is_rank_0():
        return None
    file = read_sample_file(path)
    if file.samples.shape[1:] != trained.shown.shape:
        raise UserError(
            f"the samples of {file.path} have shape {file.samples.shape[1:]}, the data {trained.shown.shape}"
        )
    return file


def result_record(file: SampleFile, trained: TrainedModel, evaluator: Evaluator) -> dict[str, object]:
    """What a result is of and how it was measured, for its JSON file."""
    return {
        "file": file.path.name,
        "num_samples": len(file.samples),
        "num_reference": evaluator.reference.count,
        "sampler": file.sampler,
        "nfe": file.nfe,
        "seed": file.seed,
        "seconds_per_sample": file.seconds_per_sample,
        "training_steps": file.training_steps,
        "guidance": trained.guided_by,
        **trained.record(),
        "measured_on": evaluator.extractor.words,
        "reference": evaluator.reference_in_words,
        "digest": evaluator.digest,
        "settings": file.settings,
    }
