"""From a configuration to the data that its model sees, which the network of another run may have encoded."""

from __future__ import annotations

from dataclasses import replace

import torch
from ml_collections import ConfigDict

from score_diffusion.run.build import data_options
from score_diffusion.run.builders.autoencoders import load_autoencoder
from score_diffusion.run.builders.encoders import load_contrastive_encoders
from score_diffusion.run.config import CONFIG_FILE
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.info import DataInfo, load_data, read_data_info
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.data.vocabulary import Vocabulary
from score_diffusion.run.encoded_data.cache import Encoder, check_unchanged
from score_diffusion.run.encoded_data.embeddings import EMBEDDINGS
from score_diffusion.run.encoded_data.latent_space import LatentSpace
from score_diffusion.run.encoded_data.latents import AUTOENCODER, in_latent_space
from score_diffusion.run.encoded_data.text_encoder import (
    TEXT_ENCODER,
    FrozenTextEncoder,
    TextEncoderFolder,
    with_text_encoder,
)
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import expanded
from score_diffusion.run.inference.trained_model import tensors_digest

AUTOENCODER_KEY = f"data.{AUTOENCODER}"
CPU = torch.device("cpu")


def load_run_data(
    section: ConfigDict,
    info: DataInfo | None = None,
    device: torch.device = CPU,
    keep: bool = True,
) -> Dataset:
    """The data of a section `data` as the model sees them: as latents if it names an autoencoder.

    Args:
        section: The section.
        info: What the run has recorded about its data; None for a new run.
        device: Where an autoencoder encodes.
        keep: Whether its codes are kept in files.

    Raises:
        UserError: As for `load_shown_data`, or if the autoencoder is missing, of other data, or has changed.
    """
    dataset = load_shown_data(section, info)
    if not section.autoencoder:
        return dataset
    encoder = replace(_encoder(section, DataInfo.of(dataset), info, device)[0], keep=keep)
    return in_latent_space(dataset, encoder, data_options(section), None if info is None else info.scaling)


def load_shown_data(section: ConfigDict, info: DataInfo | None = None) -> Dataset:
    """The data of a section `data` as the user has them, as `load_data` loads them, with embeddings where the
    section names encoders; latents are not encoded.

    Args:
        section: The section.
        info: What the run has recorded about its data; None for a new run.

    Raises:
        UserError: As for `load_data`, or if the encoders are not those of the record, or not for these data.
    """
    _check_section(section, info)
    info = info if info is None or info.decoded is None else info.decoded
    if section.text_encoder or (info is not None and TEXT_ENCODER in info.encoders):
        return _load_with_text_encoder(section, info)
    if not section.encoder:
        return load_data(data_options(section), info)
    encoders = load_contrastive_encoders(section.encoder, info)
    encode = EMBEDDINGS[section.embeddings]

    def load(options: DataOptions, scaling: Scaling | None) -> Dataset:
        return encode(load_dataset(options, encoders.info.scaling), encoders)

    return load_data(data_options(section), info, load)


def _load_with_text_encoder(section: ConfigDict, info: DataInfo | None) -> Dataset:
    """Images whose captions a frozen encoder reads."""
    if section.encoder:
        raise UserError(
            "set one of data.text_encoder and data.encoder, which has an encoder of texts, not both"
        )
    folder = _text_encoder(section, info)

    def load(options: DataOptions, scaling: Scaling | None) -> Dataset:
        return with_text_encoder(load_dataset(replace(options, tokenizer="bytes"), scaling), folder)

    return load_data(data_options(section), info, load)


def load_vocabulary(section: ConfigDict, info: DataInfo) -> Vocabulary | None:
    """How the model of a run reads texts; None for a run that was trained without.

    Args:
        section: The configuration's `data`.
        info: What the run has recorded about its data.

    Raises:
        UserError: If the text encoder is missing, or has changed.
    """
    if not section.text_encoder and TEXT_ENCODER not in info.encoders:
        return info.vocabulary
    return FrozenTextEncoder(_text_encoder(section, info), info.text_length)


def _text_encoder(section: ConfigDict, info: DataInfo | None) -> TextEncoderFolder:
    """The frozen text encoder of a `data` section.

    Raises:
        UserError: If it is not the one of the run's record, or there is none.
    """
    recorded = None if info is None else info.encoders.get(TEXT_ENCODER, "")
    if recorded and not section.text_encoder:
        raise UserError(
            "the run was trained with a frozen text encoder, and data.text_encoder names none: name its "
            "folder with --config.data.text_encoder="
        )
    if recorded == "":
        raise UserError(
            f"data.text_encoder={section.text_encoder} is for runs that were trained with a frozen text "
            "encoder, and this one was not: leave it out"
        )
    folder = TextEncoderFolder(expanded(section.text_encoder))
    if recorded not in (None, folder.digest):
        raise UserError(
            f"the files in {folder.path} are not those that the run was trained with: restore them, or name "
            "the folder that holds them with --config.data.text_encoder="
        )
    return folder


def load_latent_space(
    section: ConfigDict, info: DataInfo, device: torch.device, tile: int = 0
) -> LatentSpace | None:
    """The space of the latents that a run was trained on; None for a run that was trained on other data.

    Args:
        section: The configuration's `data`.
        info: What the run has recorded about its data.
        device: Where to compute.
        tile: Side of the tiles in which latents are decoded; 0 to decode them whole.

    Raises:
        UserError: If the autoencoder is missing, of other data, or has changed, or the tiles are not for it.
    """
    _check_section(section, info)
    if info.decoded is None:
        if tile:
            raise UserError(
                f"sampling.tile={tile} is for runs that were trained on latents, and this one was not: leave "
                "it out"
            )
        return None
    space = _encoder(section, info.decoded, info, device)[1]
    return LatentSpace(space.autoencoder, space.scaling, tile)


def _check_section(section: ConfigDict, info: DataInfo | None) -> None:
    """Refuses an autoencoder for a run that was trained without one, and the other way round."""
    if info is None:
        return
    if info.decoded is not None and not section.autoencoder:
        raise UserError(
            "the run was trained on the latents of an autoencoder, and data.autoencoder names none: name its "
            f"run with --config.{AUTOENCODER_KEY}="
        )
    if info.decoded is None and section.autoencoder:
        raise UserError(
            f"{AUTOENCODER_KEY}={section.autoencoder} is for runs that were trained on latents, and this one "
            "was not: leave it out"
        )


def _encoder(
    section: ConfigDict, of: DataInfo, info: DataInfo | None, device: torch.device
) -> tuple[Encoder, LatentSpace]:
    """The autoencoder of a `data` section for data, as what encodes and as what decodes.

    Args:
        section: The section.
        of: The data to encode.
        info: What the run has recorded about its data; None for a new run.
        device: Where to compute.
    """
    run = expanded(section.autoencoder)
    if not (run / CONFIG_FILE).is_file():
        raise UserError(
            f"{AUTOENCODER_KEY}={run} holds no run: train an autoencoder there by --mode train --config "
            f"autoencoder_mnist, or name the run that it is in now with --config.{AUTOENCODER_KEY}="
        )
    autoencoder, _ = load_autoencoder(run)
    trained_on = read_data_info(run)
    if (trained_on.scaling, trained_on.shape[0]) != (of.scaling, of.shape[0]):
        raise UserError(f"the autoencoder of {run} is for {trained_on}, and the data are {of}")
    space = LatentSpace(autoencoder.to(device), of.scaling)
    encoder = Encoder(run, tensors_digest(autoencoder.state_dict().items()), space.encode)
    check_unchanged(encoder, AUTOENCODER_KEY, None if info is None else info.encoders.get(AUTOENCODER))
    return encoder, space
