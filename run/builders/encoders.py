"""From a configuration to a classifier or contrastive encoders, their objective, and what fits them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor

from score_diffusion.models import AUTOENCODERS, ENCODERS
from score_diffusion.models.clip import LONGEST
from score_diffusion.run.build import build_encoder, build_model, build_sde, refusing_arguments
from score_diffusion.run.config import read_config
from score_diffusion.run.data.class_captions import captions_of
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.info import DataInfo, read_data_info
from score_diffusion.run.encoded_data.cache import check_unchanged
from score_diffusion.run.encoded_data.embeddings import ENCODER, ContrastiveEncoders, with_unit_entries
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import expanded
from score_diffusion.run.inference.trained_model import (
    TrackedAverages,
    WeightsChoice,
    load_chosen_weights,
    tensors_digest,
)
from score_diffusion.run.training.dequantization import DequantizationBound
from score_diffusion.run.training.objectives import (
    CaptionContrastive,
    ClassContrastive,
    Classification,
    CleanClassification,
    Objective,
    clean_data,
)
from score_diffusion.sde_lib import NoisyDataModel, noisy_times
from score_diffusion.sde_lib.times import FIRST_TIME

CLASSIFICATION = "clean_classification"
ENCODER_OF = {
    "classification": "classifier",
    CLASSIFICATION: "classifier",
    "contrastive": "clip",
    "clean_contrastive": "clip",
    "dequantization": "dequantizer",
}
"""The network that each objective of encoders trains."""
CLEAN = (CLASSIFICATION, "clean_contrastive")
"""The objectives that train on data without noise."""
AUTOENCODING = "autoencoding"
NETWORKS_OF = {objective: (network,) for objective, network in ENCODER_OF.items()} | {
    AUTOENCODING: tuple(AUTOENCODERS)
}
"""The networks that each objective trains of those that have no score."""


def check_network(config: ConfigDict) -> None:
    """Refuses a network that its objective does not train, and pictures of samples of what draws none.

    Raises:
        UserError: If there is such a setting.
    """
    section, name = config.training, config.model.name
    trained = NETWORKS_OF.get(section.objective, ())
    if (trained or name in {**ENCODERS, **AUTOENCODERS}) and name not in trained:
        fitting = [objective for objective, networks in NETWORKS_OF.items() if name in networks]
        raise UserError(
            f"training.objective={section.objective} does not train model {name!r}: "
            + (f"set it to {' or '.join(fitting)}" if fitting else f"set model.name={' or '.join(trained)}")
        )
    if section.objective in ENCODER_OF and section.preview_samples != 0:
        raise UserError(f"model {name!r} draws no samples: set training.preview_samples=0")


def build_encoder_objective(config: ConfigDict, dataset: Dataset) -> Objective[NoisyDataModel]:
    """The objective of a classifier, a contrastive pair or a dequantizer.

    Raises:
        UserError: If the data have neither classes nor, for a contrastive pair, captions, or a dequantizer
            has no model of grey levels to work for.
    """
    if config.model.name == "dequantizer":
        return _dequantization(config, dataset)
    clean = config.training.objective in CLEAN
    if config.model.name == "clip":
        return _contrastive(config, dataset, clean)
    classes = _classes(config, dataset)
    if config.model.num_classes != classes:
        raise UserError(
            f"the data have {classes} classes, and the classifier {config.model.num_classes}: set "
            "model.num_classes=0 to take the number from the data"
        )
    return CleanClassification() if clean else Classification()


def _contrastive(config: ConfigDict, dataset: Dataset, clean: bool) -> Objective[NoisyDataModel]:
    """On the captions of the data, or those of their classes."""
    sizes = {} if dataset.vocabulary is None else dataset.vocabulary.condition_sizes
    if "tokens" in sizes:
        raise UserError("a contrastive pair trains its own text encoder: leave data.text_encoder out")
    if config.training.accumulate > 1:
        raise UserError(
            "training.accumulate divides a batch, and a contrastive pair compares each image with all "
            "captions of its batch: leave it 1, and lower training.batch_size if memory is short"
        )
    words = sizes.get("text", 0)
    if config.model.encoder_words != words:
        raise UserError(
            f"the captions of the data have {words} different words, and model.encoder_words is "
            f"{config.model.encoder_words}: set it to 0 to take the number from the data"
        )
    if dataset.vocabulary is not None:
        if dataset.vocabulary.length > LONGEST:
            raise UserError(
                f"a contrastive pair reads at most {LONGEST} words or bytes of a caption, and those of the "
                f"data have up to {dataset.vocabulary.length}: set data.tokenizer=words"
            )
        return CaptionContrastive(clean)
    classes = _classes(config, dataset)
    with refusing_arguments():
        return ClassContrastive(captions_of(dataset.classes or tuple(map(str, range(classes)))), clean)


def _dequantization(config: ConfigDict, dataset: Dataset) -> DequantizationBound:
    """For the model of the run `training.run`, with its averaged weights."""
    section = config.training
    if not section.run:
        raise UserError("a dequantizer works for the model of a run: name it by --config.training.run=RUN")
    if dataset.levels is None or not config.data.dequantize:
        raise UserError(
            f"{section.run} was not trained on dequantized grey levels, for which a dequantizer is: name the "
            "run of a model of images with data.dequantize=true"
        )
    if section.times != "continuous" or section.first_time != FIRST_TIME:
        raise UserError(
            "a dequantizer draws times by those of its run: leave training.times and training.first_time out"
        )
    run = expanded(section.run)
    saved = read_config(run)
    if saved.model.name in {**ENCODERS, **AUTOENCODERS}:
        raise UserError(f"{run} holds a {saved.model.name}, which has no likelihood: name another run")
    model = build_model(saved.model, build_sde(saved.sde), read_data_info(run).shape)
    load_chosen_weights(model, run, WeightsChoice(), TrackedAverages((saved.training.ema_decay,)))
    in_chain = saved.training.times in ("discrete", "importance")
    first = float(noisy_times(model.sde)[0]) if in_chain else saved.training.first_time
    return DequantizationBound(model, dataset.levels, first, saved.training.conditional)


def _classes(config: ConfigDict, dataset: Dataset) -> int:
    """The number of classes of the data."""
    objective, classes = config.training.objective, dataset.condition_sizes.get("label", 0)
    if not classes or "label" not in dataset.held_out_conditions:
        captions = " or captions" if config.model.name == "clip" else ""
        raise UserError(
            f"training.objective={objective} needs data with class labels{captions}, held-out samples too, "
            f"and {dataset.name!r} has none"
        )
    return classes


def load_encoder(run: Path, config: ConfigDict, device: torch.device) -> tuple[NoisyDataModel, int]:
    """The classifier or the encoders of a run with their averaged weights, in evaluation mode.

    Args:
        run: The run directory.
        config: Its configuration.
        device: Where to compute.

    Returns:
        The model, and the training steps behind its weights.

    Raises:
        UserError: If no checkpoint is intact.
    """
    model = build_encoder(config.model, build_sde(config.sde), read_data_info(run).shape)
    step, _ = load_chosen_weights(model, run, WeightsChoice(), TrackedAverages((config.training.ema_decay,)))
    return model.to(device).eval().requires_grad_(False), step


def load_clean_classifier(
    run: Path, key: str, dataset: Dataset, device: torch.device
) -> tuple[NoisyDataModel, int]:
    """The classifier of data without noise in a run directory, and the training steps behind it.

    Args:
        run: The run directory.
        key: The key of the configuration that names it.
        dataset: The data that it is for.
        device: Where to compute.

    Raises:
        UserError: If the run holds something else, or a classifier of other data.
    """
    config, info = read_config(run), read_data_info(run)
    if config.training.objective != CLASSIFICATION:
        raise UserError(
            f"{key}={run} holds no classifier of data without noise: train one by --mode train --config "
            "classifier_features"
        )
    if info.scaling != dataset.scaling or info.shape != dataset.shape:
        raise UserError(f"the classifier of {run} is for {info}, and the data are {DataInfo.of(dataset)}")
    return load_encoder(run, config, device)


def load_contrastive_encoders(name: str, info: DataInfo | None) -> ContrastiveEncoders:
    """The encoders in the run directory data.encoder.

    Args:
        name: The directory.
        info: What the run that uses them has recorded about its data; None for a new run.

    Raises:
        UserError: If the directory holds something else, or encoders with other weights than recorded.
    """
    run = expanded(name)
    config, training_data = read_config(run), read_data_info(run)
    if config.training.objective != "clean_contrastive":
        raise UserError(
            f"data.encoder={run} holds no encoders of images and captions without noise: train some by "
            "--mode train --config clip_shapes"
        )
    model, _ = load_encoder(run, config, torch.device("cpu"))
    net: Any = model.net

    def encode(x: Tensor) -> Tensor:
        return with_unit_entries(model(*clean_data(model, x)))

    def encode_text(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return with_unit_entries(net.encode_text(ids))

    weights = tensors_digest(model.state_dict().items())
    encoders = ContrastiveEncoders(run, weights, encode, encode_text, training_data)
    check_unchanged(encoders, "data.encoder", None if info is None else info.encoders.get(ENCODER))
    return encoders
