"""From a configuration to the objective of a classifier or of contrastive encoders, and what fits them."""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.models import ENCODERS
from score_diffusion.run.build import refusing_arguments
from score_diffusion.run.data.class_captions import captions_of
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.errors import UserError
from score_diffusion.run.training.objectives import (
    CaptionContrastive,
    ClassContrastive,
    Classification,
    CleanClassification,
    Objective,
)
from score_diffusion.sde_lib import NoisyDataModel

ENCODER_OF = {
    "classification": "classifier",
    "clean_classification": "classifier",
    "contrastive": "clip",
    "clean_contrastive": "clip",
}
"""The network that each objective of encoders trains."""
CLEAN = ("clean_classification", "clean_contrastive")
"""The objectives that train on data without noise."""


def check_encoder(config: ConfigDict) -> None:
    """Refuses a network that its objective does not train, and pictures of samples of what draws none.

    Raises:
        UserError: If there is such a setting.
    """
    section, name = config.training, config.model.name
    encoder = ENCODER_OF.get(section.objective)
    if (name in ENCODERS or encoder) and name != encoder:
        fitting = [objective for objective, network in ENCODER_OF.items() if network == name]
        raise UserError(
            f"training.objective={section.objective} does not train model {name!r}: "
            + (f"set it to {' or '.join(fitting)}" if fitting else f"set model.name={encoder}")
        )
    if encoder and section.preview_samples != 0:
        raise UserError(f"model {name!r} draws no samples: set training.preview_samples=0")


def build_encoder_objective(config: ConfigDict, dataset: Dataset) -> Objective[NoisyDataModel]:
    """The objective of a classifier or a contrastive pair.

    Raises:
        UserError: If the data have neither classes nor, for a contrastive pair, captions.
    """
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
    words = 0 if dataset.vocabulary is None else dataset.vocabulary.size
    if config.model.encoder_words != words:
        raise UserError(
            f"the captions of the data have {words} different words, and model.encoder_words is "
            f"{config.model.encoder_words}: set it to 0 to take the number from the data"
        )
    if words:
        return CaptionContrastive(clean)
    classes = _classes(config, dataset)
    with refusing_arguments():
        return ClassContrastive(captions_of(dataset.classes or tuple(map(str, range(classes)))), clean)


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
