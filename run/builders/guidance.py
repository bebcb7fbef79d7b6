"""From a section `sampling` to a trained model whose score is guided, one function for each method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor

from score_diffusion.models import caption_bytes
from score_diffusion.models.conditions import condition_sizes
from score_diffusion.run.build import refusing_arguments
from score_diffusion.run.builders.encoders import CLEAN, load_encoder
from score_diffusion.run.builders.inference import (
    draws_from_texts,
    load_unconditioned,
    trains_conditions,
    with_conditions,
)
from score_diffusion.run.config import CONFIG_FILE, differing_keys, read_config, with_values
from score_diffusion.run.data.info import DataInfo, read_data_info
from score_diffusion.run.data.sample_conditions import SampleConditions
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import expanded
from score_diffusion.run.inference.conditioning import ALL, NONE, parse_labels, takes_text
from score_diffusion.run.inference.prompts import encoded_prompts
from score_diffusion.run.inference.trained_model import TrainedModel, in_fixed_batches
from score_diffusion.samplers.guidance import (
    Autoguidance,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    ClassLogProbability,
    DynamicThresholding,
    EmbeddingGuidance,
    WithoutCondition,
    guidance_options,
)
from score_diffusion.sde_lib import ScoreFunction


def load_guided(workdir: Path, config: ConfigDict, device: torch.device) -> TrainedModel:
    """The model of a run under the conditions and with the guidance that the section `sampling` chooses.

    Raises:
        UserError: As for `load_trained`, or if the guidance does not fit the model.
    """
    return with_guidance(load_unconditioned(workdir, config, device), config, workdir)


def with_guidance(trained: TrainedModel, config: ConfigDict, workdir: Path) -> TrainedModel:
    """A model of a run under the conditions and with the guidance that the section `sampling` chooses.

    Raises:
        UserError: If there is no such class, or the guidance does not fit the model.
    """
    section = config.sampling
    guided = GUIDES.get(section.guidance, with_conditions)(trained, config, workdir)
    if section.threshold:
        guided = _thresholded(guided, section.threshold)
    guided.guide(guided.score)  # for the checks of its options
    return guided


def _thresholded(trained: TrainedModel, quantile: float) -> TrainedModel:
    """A model with dynamic thresholding of what its guidance gives."""
    if not trained.data.levels:
        raise UserError(
            f"sampling.threshold={quantile:g} brings images back to the range of grey levels, and the data "
            f"are {trained.data.kind}: set it to 0"
        )
    words = f"{trained.guided_by}, " if trained.guided_by else ""
    return replace(
        trained,
        guide=lambda score: DynamicThresholding(trained.guide(score), trained.sde, quantile=quantile),
        guided_by=f"{words}dynamic thresholding at {quantile:g}",
    )


def _options(section: ConfigDict, name: str) -> dict[str, Any]:
    """The options of a method's constructor."""
    return {option: section[name][option] for option in guidance_options(name)}


def _words(name: str, options: dict[str, Any], by: str = "") -> str:
    """A guidance in words, which tell its samples apart from others."""
    chosen = ", ".join(f"{option} {value}" for option, value in options.items() if value is not None)
    return f"{name}, {chosen}" + (f", by {by}" if by else "")


def _cfg(trained: TrainedModel, config: ConfigDict, workdir: Path) -> TrainedModel:
    section, of = config.sampling, config.sampling.cfg
    trained = with_conditions(trained, config, workdir)
    if not trained.conditions.rows:
        raise UserError(
            "sampling.guidance=cfg needs a network that was trained with conditions, and this one was not: "
            "train one with --config.training.conditional=True, or guide this one by --guidance classifier"
        )
    if section.label == NONE:
        raise UserError(
            "sampling.guidance=cfg guides from no class to a class, and sampling.label=-1 is no class: set "
            "--label, or leave it out for all classes"
        )
    sees_null = config.training.condition_dropout > 0 or not trained.data.num_train  # of another library
    if not (sees_null or of.negative or of.scale == 1):
        raise UserError(
            "sampling.guidance=cfg needs the score without a condition, which this model was not trained for "
            "(training.condition_dropout=0): train it with 0.1, set sampling.cfg.negative to another class, "
            "or set --scale 1"
        )
    negative = None
    if of.negative:
        negative = _negative(of.negative, trained)
    options = _options(section, "cfg")
    return replace(
        trained,
        guide=lambda score: ClassifierFreeGuidance(score, trained.sde, negative, **options),
        guided_by=_words("cfg", options),
    )


def _negative(text: str, trained: TrainedModel) -> dict[str, Tensor]:
    """The class or the text that samples are guided away from."""
    vocabulary = trained.vocabulary
    if vocabulary is not None and takes_text(condition_sizes(trained.score), vocabulary):
        return vocabulary.conditions(encoded_prompts([text], vocabulary, "sampling.cfg.negative"))
    classes = condition_sizes(trained.score).get("label", 0)
    if not classes:
        raise UserError(f"sampling.cfg.negative={text} needs a network with classes, or with text")
    chosen = parse_labels(text, trained.data.classes, classes, "sampling.cfg.negative")
    if len(chosen) > 1:
        raise UserError(f"sampling.cfg.negative must be one class, got {text!r}")
    return {"label": torch.tensor(chosen)}


def _autoguidance(trained: TrainedModel, config: ConfigDict, workdir: Path) -> TrainedModel:
    section, of = config.sampling, config.sampling.autoguidance
    if not of.run and of.checkpoint == section.checkpoint:
        raise UserError(
            "sampling.guidance=autoguidance needs a worse model than this one: name its run by "
            "--config.sampling.autoguidance.run=RUN, or an earlier checkpoint of this run by "
            "--config.sampling.autoguidance.checkpoint=STEP"
        )
    trained = with_conditions(trained, config, workdir)
    run = expanded(of.run) if of.run else workdir
    own = read_config(run).copy_and_resolve_references()
    _check_same_sde(own, config, run)
    with own.ignore_type():
        own.sampling.checkpoint = of.checkpoint
    worse = load_unconditioned(run, own, trained.device)
    _check_same_data(worse.data, trained.data, run)
    if condition_sizes(trained.score) != condition_sizes(worse.score):
        raise UserError(f"the networks of {run} and of this run must take the same conditions")
    guide, options = in_fixed_batches(worse.score), _options(section, "autoguidance")
    return replace(
        trained,
        guide=lambda score: Autoguidance(score, trained.sde, guide, **options),
        guided_by=_words("autoguidance", options, f"{run} after {worse.step:,} training steps"),
    )


def _classifier(trained: TrainedModel, config: ConfigDict, workdir: Path) -> TrainedModel:
    section, options = config.sampling, _options(config.sampling, "classifier")
    if section.label == NONE:
        raise UserError(
            "sampling.guidance=classifier guides to a class, and sampling.label=-1 is none: set --label, or "
            "leave it out for all classes"
        )
    model, info, by = _load_encoder("classifier", trained, config)
    classes = model.net.num_classes
    sizes = condition_sizes(trained.score) if trains_conditions(config, trained.data) else {}
    if sizes not in ({}, {"label": classes}):
        raise UserError(
            f"the classifier has {classes} classes, and the network is conditioned on "
            f"{', '.join(sizes)}: guide a network without conditions, or with the same classes"
        )
    log_prob = ClassLogProbability(in_fixed_batches(model))
    if sizes:
        trained = with_conditions(trained, config, workdir)
    else:
        labels = (
            range(classes) if section.label == ALL else parse_labels(section.label, info.classes, classes)
        )
        trained = replace(trained, conditions=SampleConditions.of_classes(labels, info.classes))

    def guide(score: ScoreFunction) -> ScoreFunction:
        return ClassifierGuidance(score if sizes else WithoutCondition(score), log_prob, **options)

    return replace(trained, guide=guide, guided_by=_words("classifier", options, by))


def _clip(trained: TrainedModel, config: ConfigDict, workdir: Path) -> TrainedModel:
    prompt = config.sampling.clip.prompt or config.sampling.prompt
    options = _options(config.sampling, "clip")
    if not prompt:
        raise UserError('sampling.guidance=clip needs a caption: --prompt "a handwritten seven"')
    if len(prompt.splitlines()) > 1:
        raise UserError(f"sampling.guidance=clip guides to one caption, got several: {prompt!r}")
    if not draws_from_texts(trained, config):
        config = with_values(config, {"sampling.prompt": ""})  # which only guides then
    trained = with_conditions(trained, config, workdir)
    model, info, by = _load_encoder("clip", trained, config)
    with refusing_arguments(), torch.no_grad():
        if info.vocabulary is None:
            ids = caption_bytes([prompt])
        else:
            ids = encoded_prompts([prompt], info.vocabulary, "sampling.clip.prompt")
        text = model.net.encode_text(ids.to(trained.device))
    image_encoder = in_fixed_batches(model)
    return replace(
        trained,
        guide=lambda score: EmbeddingGuidance(score, image_encoder, text, **options),
        guided_by=_words("clip", options, f"{prompt!r} and {by}"),
    )


RECIPES = {"classifier": "classifier --config.training.run=RUN", "clip": "clip_digits"}


def _load_encoder(name: str, trained: TrainedModel, config: ConfigDict) -> tuple[Any, DataInfo, str]:
    """The classifier or the encoders that guide a model, their data, and what they are in words.

    Raises:
        UserError: If the run holds something else, or was trained under another SDE or for other data.
    """
    run = expanded(config.sampling[name].run)
    if not (run / CONFIG_FILE).exists():
        raise UserError(
            f"sampling.{name}.run={run} holds no run: train one there by --mode train --config "
            f"{RECIPES[name]} --workdir {run}"
        )
    own, info = read_config(run), read_data_info(run)
    if own.model.name != name:
        raise UserError(f"{run} holds a {own.model.name}, and --guidance {name} needs the run of a {name}")
    if own.training.objective in CLEAN:
        raise UserError(
            f"the {name} of {run} was trained on data without noise, and guides no samples: train one by "
            f"--mode train --config {RECIPES[name]}"
        )
    _check_same_sde(own, config, run)
    _check_same_data(info, trained.data, run)
    model, step = load_encoder(run, own, trained.device)
    return model, info, f"{run} after {step:,} training steps"


def _check_same_sde(own: ConfigDict, config: ConfigDict, run: Path) -> None:
    other = [key for key in differing_keys(own, config) if key.startswith("sde.")]
    if other:
        raise UserError(
            f"{run} was trained under another SDE than this run ({', '.join(other)}): both must be the same"
        )


def _check_same_data(found: DataInfo, expected: DataInfo, run: Path) -> None:
    if found.scaling != expected.scaling or not found.fits(expected):
        raise UserError(f"the network of {run} is for {found}, and that of this run for {expected}")


GUIDES: dict[str, Callable[[TrainedModel, ConfigDict, Path], TrainedModel]] = {
    "cfg": _cfg,
    "autoguidance": _autoguidance,
    "classifier": _classifier,
    "clip": _clip,
}
