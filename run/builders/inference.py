"""From a configuration to the trained model, its conditions and its sampler."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from ml_collections import ConfigDict
from torch import Tensor

from score_diffusion.models.conditions import condition_sizes
from score_diffusion.run.build import (
    FITTED,
    build_model,
    build_sampler,
    build_sde,
    grid_times,
)
from score_diffusion.run.builders.data import load_latent_space, load_vocabulary
from score_diffusion.run.builders.encoders import load_contrastive_encoders
from score_diffusion.run.builders.training import build_times
from score_diffusion.run.data.condition_files import CONDITIONS_FILE, read_conditions, read_small_images
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.info import DATA_FILE, DataInfo, read_data_info
from score_diffusion.run.data.low_resolution import LEVEL, LOW_RESOLUTION, Augmentation, small_copies
from score_diffusion.run.data.sample_conditions import SampleConditions
from score_diffusion.run.data.vocabulary import Vocabulary
from score_diffusion.run.encoded_data.embeddings import ENCODER
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import absolute_path, expanded, file_digest, is_writable
from score_diffusion.run.inference.conditioning import (
    ALL,
    NONE,
    OWN,
    check_kinds,
    chosen_conditions,
    takes_text,
    unconditional,
)
from score_diffusion.run.inference.fitted_solver import fitted_solver
from score_diffusion.run.inference.prompts import CAPTIONS_FILE, encoded_prompts, read_prompts
from score_diffusion.run.inference.sample_files import SampleRequest
from score_diffusion.run.inference.trained_model import (
    TrackedAverages,
    TrainedModel,
    WeightsChoice,
    load_chosen_weights,
)
from score_diffusion.samplers import (
    DEFAULT,
    Sampler,
    find_sampler,
    sampler_options,
)
from score_diffusion.sde_lib import ScoreModel

OF_SYSTEM = ("images", "change")
"""Keys of the section sampling.unclip that say what a whole system draws."""


def load_trained(workdir: Path, config: ConfigDict, device: torch.device) -> TrainedModel:
    """The model of a run with the weights and the conditions that the section `sampling` chooses.

    Raises:
        UserError: If they were not tracked in training, no checkpoint is intact, or there is no such class.
    """
    return with_conditions(load_unconditioned(workdir, config, device), config, workdir)


def load_unconditioned(workdir: Path, config: ConfigDict, device: torch.device) -> TrainedModel:
    """The same without conditions: its score is that of the null condition.

    Raises:
        UserError: If the weights were not tracked in training, or no checkpoint is intact.
    """
    model, step, words = load_score_model(workdir, config, device)
    first_time, info = build_times(config.training, model.sde).first, read_data_info(workdir)
    choice, sizes = _weights_choice(config.sampling), condition_sizes(model)
    vocabulary = load_vocabulary(config.data, info)
    # a network that takes an image must be given one
    given = {"image", LOW_RESOLUTION} & set(sizes)
    conditions = unconditional(sizes, info, vocabulary) if given else SampleConditions()
    return TrainedModel(
        model,
        model.sde,
        info,
        step,
        first_time,
        choice,
        words,
        conditions,
        vocabulary=vocabulary,
        latent_space=load_latent_space(config.data, info, device, config.sampling.tile),
    )


def with_conditions(trained: TrainedModel, config: ConfigDict, workdir: Path) -> TrainedModel:
    """A model of a run under the conditions that the section `sampling` chooses.

    Raises:
        UserError: If there is no such class, or the model was trained without such conditions.
    """
    section, info, sizes = config.sampling, trained.data, condition_sizes(trained.score)
    for key in OF_SYSTEM:
        if section.unclip[key]:
            raise UserError(
                f"sampling.unclip.{key} is for a system such as --config unclip_shapes, and this is none"
            )
    if section.conditions and not set(sizes) & {*OWN, LOW_RESOLUTION}:
        raise UserError(
            f"sampling.conditions={section.conditions} needs a network that was trained with cond_vector, "
            "cond_tokens or cond_image, and this one was not"
        )
    if section.label == NONE and config.training.conditional and not config.training.condition_dropout:
        raise UserError(
            "sampling.label=-1 draws without a condition, for which this model was not trained "
            "(training.condition_dropout=0): name classes, or leave it out"
        )
    for key in ("prompt", "prompts"):
        if section[key] and not draws_from_texts(trained, config):
            raise UserError(
                f"sampling.{key}={section[key]} needs a model that was trained with captions, and this one "
                "was not: train one, for example by --config text_shapes"
            )

    def read_given() -> dict[str, Tensor]:
        if takes_text(sizes, trained.vocabulary):
            text = _prompts(section, trained.vocabulary, workdir)
            return {"text": text} | (_embedded(text, config, info) if ENCODER in info.encoders else {})
        path = expanded(section.conditions) if section.conditions else workdir / CONDITIONS_FILE
        return read_conditions(path, info.shape)

    of_data = {kind: size for kind, size in sizes.items() if kind not in (LOW_RESOLUTION, LEVEL)}
    conditional = trains_conditions(config, info)
    conditions = chosen_conditions(section.label, of_data, info, conditional, read_given, trained.vocabulary)
    if LOW_RESOLUTION in sizes:
        conditions = _with_small_images(conditions, config, info, workdir)
    return replace(trained, conditions=conditions)


def with_conditions_if(named: bool, trained: TrainedModel, config: ConfigDict, workdir: Path) -> TrainedModel:
    """A model under the conditions of the section `sampling` where some are named, else without any.

    Raises:
        UserError: As for `with_conditions`, or if none is named and the model was not trained without one.
    """
    if named:
        return with_conditions(trained, config, workdir)
    if config.training.conditional and not config.training.condition_dropout:
        raise UserError(
            "this model was trained with training.condition_dropout=0 and knows no samples without a "
            "condition: name a class with --label"
        )
    return trained


def _with_small_images(
    conditions: SampleConditions, config: ConfigDict, info: DataInfo, workdir: Path
) -> SampleConditions:
    """The conditions of a model that enlarges images: those of the held-out samples or of a file, with the
    class and the text of each unless others are chosen.
    """
    section, factor = config.sampling, config.model.upscale
    path = expanded(section.conditions) if section.conditions else workdir / CONDITIONS_FILE
    own = read_small_images(path, (info.shape[0], *(side // factor for side in info.shape[1:])))
    chosen = {"label": section.label != ALL, "text": section.prompt or section.prompts}
    rows = dict(conditions.rows)
    for kind in [kind for kind, other in chosen.items() if kind in own and kind in rows and not other]:
        rows[kind] = own[kind]
    return replace(
        conditions, rows=rows | {LOW_RESOLUTION: own[LOW_RESOLUTION]}, augmentation=_augmentation(config)
    )


def _augmentation(config: ConfigDict) -> Augmentation:
    """The noise of the small images that samples are drawn under.

    Raises:
        UserError: If it is more than the model was trained for.
    """
    level, trained = config.sampling.augment_noise, config.training.augment_noise
    if level > trained:
        raise UserError(
            f"sampling.augment_noise={level:g} is more noise in the small images than the model was trained "
            f"for: set it to training.augment_noise={trained:g} or less"
        )
    return Augmentation(level, config.sampling.seed)


def _prompts(section: ConfigDict, vocabulary: Vocabulary | None, workdir: Path) -> Tensor:
    """The texts that the section `sampling` chooses, as ids, int64 (n, L).

    Raises:
        UserError: If both keys are set, or the model cannot read a text.
    """
    if vocabulary is None:
        raise UserError(f"{workdir / DATA_FILE} has lost the vocabulary of the captions: restore it")
    if section.prompt and section.prompts:
        raise UserError("set one of sampling.prompt and sampling.prompts, not both")
    if section.prompt:
        return encoded_prompts(section.prompt.splitlines(), vocabulary, "sampling.prompt")
    path = expanded(section.prompts) if section.prompts else workdir / CAPTIONS_FILE
    return encoded_prompts(read_prompts(path), vocabulary, f"a prompt of {path}")


def _embedded(text: Tensor, config: ConfigDict, info: DataInfo) -> dict[str, Tensor]:
    """The embeddings of texts that a prior is conditioned on besides."""
    return {"vector": load_contrastive_encoders(config.data.encoder, info).encode_text(text)}


def draws_from_texts(trained: TrainedModel, config: ConfigDict) -> bool:
    """Whether the model of a run was trained with texts, so that it draws what a prompt asks for."""
    reads_text = takes_text(condition_sizes(trained.score), trained.vocabulary)
    return reads_text and trains_conditions(config, trained.data)


def trains_conditions(config: ConfigDict, info: DataInfo) -> bool:
    """Whether the network of a run was trained with the conditions that it takes."""
    return config.training.conditional or info.num_train == 0  # another library trained it


def load_score_model(workdir: Path, config: ConfigDict, device: torch.device) -> tuple[ScoreModel, int, str]:
    """The model of a run with the weights that the section `sampling` chooses, in evaluation mode.

    Returns:
        The model, the training steps behind its weights, and which weights they are in words.

    Raises:
        UserError: If the weights were not tracked in training, or no checkpoint is intact.
    """
    training = config.training
    model = build_model(config.model, build_sde(config.sde), read_data_info(workdir).shape)
    tracked = TrackedAverages((training.ema_decay, *training.extra_ema_decays), training.ema_sigma_rels)
    step, words = load_chosen_weights(model, workdir, _weights_choice(config.sampling), tracked)
    return model.to(device).eval(), step, words


def own_conditions(config: ConfigDict, trained: TrainedModel, dataset: Dataset) -> TrainedModel:
    """The model under the conditions of the held-out samples, each under its own.

    Raises:
        UserError: If the data lack conditions that the network takes, or have others.
    """
    sizes = condition_sizes(trained.score)
    if not sizes or not trains_conditions(config, trained.data):
        return trained
    what = f"the conditions of the held-out samples of {dataset.name!r}"
    rows = check_kinds(dataset.test_conditions, sizes, what, trained.vocabulary)
    augmentation = None
    if LOW_RESOLUTION in sizes:
        count, factor = config.likelihood.num_images, config.model.upscale
        rows[LOW_RESOLUTION] = small_copies(dataset.test, factor, trained.data.scaling, count)
        augmentation = _augmentation(config)
    if "label" in sizes and "label" not in rows:
        raise UserError(
            f"the model is conditioned on classes, and the held-out samples of {dataset.name!r} have no "
            "labels: name data with labels, --config.data.path="
        )
    conditions = SampleConditions(rows, dataset.classes, dataset.vocabulary, augmentation)
    return replace(trained, conditions=conditions)


def without_conditions(config: ConfigDict, trained: TrainedModel) -> TrainedModel | None:
    """A conditional model under the null condition; None if it was not trained on that."""
    training = config.training
    if not training.conditional or not training.condition_dropout or config.model.upscale:
        return None
    conditions = unconditional(condition_sizes(trained.score), trained.data, trained.vocabulary)
    return replace(trained, conditions=conditions)


def _weights_choice(section: ConfigDict) -> WeightsChoice:
    return WeightsChoice(section.checkpoint, section.ema, section.ema_sigma_rel)


def output_folder(section: ConfigDict, workdir: Path) -> Path:
    """Where results are written: the output folder of a section `sampling`, or the run directory.

    Raises:
        UserError: If it cannot be written, which is better known before hours of work than after them.
    """
    folder = absolute_path(section.output) if section.output else workdir
    if not is_writable(folder):
        raise UserError(
            f"{folder} cannot be written: name a folder for results with --config.sampling.output=FOLDER"
        )
    return folder


def build_trained_sampler(section: ConfigDict, trained: TrainedModel, workdir: Path) -> Sampler:
    """The sampler of a section `sampling` for a trained model; for grid "fitted" one that is fitted to it.

    Raises:
        UserError: If the sampler is not the one that can be fitted, or its options are not the defaults.
    """
    if section.grid != FITTED:
        return build_sampler(section, trained.sde)
    if section.sampler != DEFAULT:
        raise UserError(
            f"grid=fitted fits the grid and the coefficients of {DEFAULT}, and the sampler is "
            f"{section.sampler}: choose --sampler {DEFAULT}, or another grid"
        )
    changed = [o.name for o in sampler_options(DEFAULT).values() if section[DEFAULT][o.name] != o.default]
    if changed:
        raise UserError(
            f"grid=fitted fits the coefficients of {DEFAULT} and takes its options at their defaults, and "
            f"sampling.{DEFAULT}.{changed[0]} has another value: leave it out, or choose another grid"
        )
    steps = len(grid_times(section, trained.sde)) - 1
    return fitted_solver(steps, section.denoise, trained, output_folder(section, workdir))


def sample_request(section: ConfigDict, guided_by: str = "") -> SampleRequest:
    """The samples that a section `sampling` asks for, with the guidance in words."""
    # Batch size and output decide no samples, and options of other samplers and guidances nothing.
    chosen = (section.sampler, section.guidance)
    settings = {
        key: value
        for key, value in section.to_dict().items()
        if key not in ("batch_size", "output", "save") and (key in chosen or not isinstance(value, dict))
    }
    if guided_by:
        settings["guided_by"] = guided_by
    if section.conditions:
        settings["conditions"] = file_digest(expanded(section.conditions))  # another content, other samples
    if section.prompts:
        settings["prompts"] = file_digest(expanded(section.prompts))
    return SampleRequest(
        section.sampler,
        section.num_samples,
        section.seed,
        section.batch_size,
        json.dumps(settings, sort_keys=True),
        find_sampler(section.sampler).cost_with(settings.get(section.sampler, {})),
        section.save,
    )
