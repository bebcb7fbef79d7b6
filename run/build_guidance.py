"""From a section `sampling` to a trained model whose score is guided, one function for each method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict

from score_diffusion.run.build import condition_sizes
from score_diffusion.run.build_inference import load_trained, load_unconditioned
from score_diffusion.run.config import differing_keys, read_config
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import expanded
from score_diffusion.run.inference.conditioning import NONE, parse_labels
from score_diffusion.run.inference.trained_model import TrainedModel, in_fixed_batches
from score_diffusion.samplers.guidance import Autoguidance, ClassifierFreeGuidance, guidance_options


def load_guided(workdir: Path, config: ConfigDict, device: torch.device) -> TrainedModel:
    """The model of `load_trained` with the guidance that the section `sampling` chooses.

    Raises:
        UserError: As for `load_trained`, or if the guidance does not fit the model.
    """
    return guided(load_trained(workdir, config, device), workdir, config)


def guided(trained: TrainedModel, workdir: Path, config: ConfigDict) -> TrainedModel:
    """A model of a run, under its conditions, with the guidance that the section `sampling` chooses.

    Raises:
        UserError: If the guidance does not fit the model.
    """
    name = config.sampling.guidance
    if name not in GUIDES:
        return trained
    trained = GUIDES[name](trained, workdir, config)
    trained.guide(trained.score)  # for the checks of its options
    return trained


def _options(section: ConfigDict, name: str) -> dict[str, Any]:
    """The options of a method's constructor."""
    return {option: section[name][option] for option in guidance_options(name)}


def _cfg(trained: TrainedModel, workdir: Path, config: ConfigDict) -> TrainedModel:
    section, of = config.sampling, config.sampling.cfg
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
        classes = condition_sizes(trained.score).get("label", 0)
        if not classes:
            raise UserError(f"sampling.cfg.negative={of.negative} needs a network with classes")
        chosen = parse_labels(of.negative, trained.data.classes, classes, "sampling.cfg.negative")
        if len(chosen) > 1:
            raise UserError(f"sampling.cfg.negative must be one class, got {of.negative!r}")
        negative = {"label": torch.tensor(chosen)}
    options = _options(section, "cfg")
    return replace(
        trained,
        guide=lambda score: ClassifierFreeGuidance(score, trained.sde, negative, **options),
        guided_by=_words("cfg", options),
    )


def _autoguidance(trained: TrainedModel, workdir: Path, config: ConfigDict) -> TrainedModel:
    section, of = config.sampling, config.sampling.autoguidance
    if not of.run and of.checkpoint == section.checkpoint:
        raise UserError(
            "sampling.guidance=autoguidance needs a worse model than this one: name its run by "
            "--config.sampling.autoguidance.run=RUN, or an earlier checkpoint of this run by "
            "--config.sampling.autoguidance.checkpoint=STEP"
        )
    run = expanded(of.run) if of.run else workdir
    worse = _load_worse(run, of.checkpoint, config, trained.device)
    if trained.data.scaling != worse.data.scaling or not trained.data.fits(worse.data):
        raise UserError(f"the model of {run} is for {worse.data}, and this one for {trained.data}")
    if condition_sizes(trained.score) != condition_sizes(worse.score):
        raise UserError(f"the networks of {run} and of this run must take the same conditions")
    guide, options = in_fixed_batches(worse.score), _options(section, "autoguidance")
    return replace(
        trained,
        guide=lambda score: Autoguidance(score, trained.sde, guide, **options),
        guided_by=_words("autoguidance", options, f"{run} after {worse.step:,} training steps"),
    )


def _load_worse(run: Path, checkpoint: int | str, config: ConfigDict, device: torch.device) -> TrainedModel:
    """The model of a run under the same SDE."""
    own = read_config(run).copy_and_resolve_references()
    other = [key for key in differing_keys(own, config) if key.startswith("sde.")]
    if other:
        raise UserError(f"{run} was trained under another SDE ({', '.join(other)}): both must be the same")
    with own.ignore_type():
        own.sampling.checkpoint = checkpoint
    return load_unconditioned(run, own, device)


def _words(name: str, options: dict[str, Any], by: str = "") -> str:
    """A guidance in words, which tell its samples apart from others."""
    chosen = ", ".join(f"{option} {value}" for option, value in options.items() if value is not None)
    return f"{name}, {chosen}" + (f", by {by}" if by else "")


GUIDES: dict[str, Callable[[TrainedModel, Path, ConfigDict], TrainedModel]] = {
    "cfg": _cfg,
    "autoguidance": _autoguidance,
}
