"""From a configuration to an autoencoder, its objective, and what decodes the latents of a run."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from score_diffusion.models import AUTOENCODERS, Autoencoder, AutoencoderVQ, PatchDiscriminator
from score_diffusion.run.build import choose, network_options, refuse_too_large, refusing_arguments
from score_diffusion.run.builders.encoders import load_clean_classifier
from score_diffusion.run.config import read_config
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.info import read_data_info
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import expanded
from score_diffusion.run.inference.trained_model import (
    TrackedAverages,
    WeightsChoice,
    load_chosen_weights,
)
from score_diffusion.run.key_types import AUTO
from score_diffusion.run.training.autoencoding import Adversary, Autoencoding, FeatureDistance
from score_diffusion.run.training.objectives import clean_data
from score_diffusion.sde_lib import NoisyDataModel


def build_autoencoder(section: ConfigDict, shape: tuple[int, ...]) -> Autoencoder:
    """The autoencoder of a `model` section for images of a shape, with initial weights.

    Raises:
        UserError: If the name is that of another network, or it refuses its arguments or such images.
    """
    model = assemble_autoencoder(section, shape)
    run_autoencoder(model, shape)
    return model


def assemble_autoencoder(section: ConfigDict, shape: tuple[int, ...]) -> Autoencoder:
    """The autoencoder of `build_autoencoder` before it has run once; works on the device "meta", too."""
    name, options = section.name, network_options(section)
    if len(shape) == 1:
        raise UserError(f"model {name!r} takes images, the data are points of shape {tuple(shape)}")
    network = choose(AUTOENCODERS, name, "autoencoder")
    make = functools.partial(network, shape[0], **options, dims=len(shape) - 1)
    with refusing_arguments():
        refuse_too_large(make)
        return make()


def run_autoencoder(model: Autoencoder, shape: tuple[int, ...]) -> None:
    """Runs an autoencoder once, so that a size it does not take is refused before anything is written."""
    with refusing_arguments(), torch.no_grad():
        model(torch.zeros(1, *shape))


def load_autoencoder(run: Path) -> tuple[Autoencoder, int]:
    """The autoencoder of a run with its averaged weights, in evaluation mode, and the steps behind them.

    Raises:
        UserError: If it holds another network, or no checkpoint is intact.
    """
    config = read_config(run)
    if config.model.name not in AUTOENCODERS:
        raise UserError(
            f"{run} holds a {config.model.name}, and data.autoencoder needs the run of an autoencoder: train "
            "one by --mode train --config autoencoder_mnist"
        )
    model = build_autoencoder(config.model, read_data_info(run).shape)
    step, _ = load_chosen_weights(model, run, WeightsChoice(), TrackedAverages((config.training.ema_decay,)))
    return model.eval().requires_grad_(False), step


def build_autoencoding(config: ConfigDict, dataset: Dataset, model: Autoencoder) -> Autoencoding:
    """The objective of an autoencoder.

    Raises:
        UserError: If the run of the perceptual distance is missing or of other data.
    """
    section = config.training.autoencoding
    weight = model.penalty_weight if section.penalty_weight == AUTO else section.penalty_weight
    perceptual = adversary = None
    if section.perceptual:
        perceptual = _feature_distance(expanded(section.perceptual), dataset)
    if section.adversarial_weight:
        with refusing_arguments():
            net = PatchDiscriminator(dataset.shape[0], dims=model.dims)
        adversary = Adversary(net, section.adversarial_weight, section.adversarial_start)
    codes = model.codebook.num_embeddings if isinstance(model, AutoencoderVQ) else 0
    return Autoencoding(weight, perceptual, section.perceptual_weight, adversary, codes)


def _feature_distance(run: Path, dataset: Dataset) -> FeatureDistance:
    """The distance in the features of the classifier of a run."""
    model, _ = load_clean_classifier(run, "training.autoencoding.perceptual", dataset, torch.device("cpu"))
    return FeatureDistance(_Clean(model), model.net.encoder)  # type: ignore[arg-type]


class _Clean(nn.Module):
    """A model of noisy data, called with data without noise."""

    def __init__(self, model: NoisyDataModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(*clean_data(self.model, x))
