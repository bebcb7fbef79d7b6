"""From a configuration to the objective of a classifier or of contrastive encoders, and what fits them."""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.models import ENCODERS
from score_diffusion.run.build import refusing_arguments
from score_diffusion.run.data.class_captions import captions_of
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.errors import UserError
from score_diffusion.run.training.objectives import (
    Classification,
    CleanClassification,
    Contrastive,
    Objective,
)
from score_diffusion.sde_lib import NoisyDataModel

CLEAN = "clean_classification"
ENCODER_OF = {"classification": "classifier", CLEAN: "classifier", "contrastive": "clip"}
"""The network that each objective of encoders trains."""


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
        UserError: If the data have no classes.
    """
    objective, classes = config.training.objective, dataset.condition_sizes.get("label", 0)
    if not classes or "label" not in dataset.held_out_conditions:
        raise UserError(
            f"training.objective={objective} needs data with class labels, held-out samples too, and "
            f"{dataset.name!r} has none"
        )
    if objective == "contrastive":
        with refusing_arguments():
            return Contrastive(captions_of(dataset.classes or tuple(map(str, range(classes)))))
    if config.model.num_classes != classes:
        raise UserError(
            f"the data have {classes} classes, and the classifier {config.model.num_classes}: set "
            "model.num_classes=0 to take the number from the data"
        )
    return CleanClassification() if objective == CLEAN else Classification()
