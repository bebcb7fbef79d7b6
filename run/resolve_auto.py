"""Replaces "auto" in a configuration when training starts: noise levels, by NCSNv2's rules for the training
set, and the precision, by the device. The sizes of the network's conditions, 0 in the configuration of a
conditional training, follow from the data.

The run directory's configuration holds the values that were found, so that a resumed run has the same.
Another key that may be "auto", `sampling.ald.step_size`, follows from levels and steps only and stays a rule,
so that it holds for whatever `sampling.ald.n_steps_each` is later; see samplers/langevin.py.

Reference:
    Improved Techniques for Training Score-Based Generative Models (Song & Ermon, 2020),
        https://arxiv.org/abs/2006.09011: Techniques 1 and 2.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence

import torch
from ml_collections import ConfigDict

from score_diffusion.models import ENCODERS, IMAGE_NETWORKS, POINT_NETWORKS
from score_diffusion.run.build import CONDITION_KEYS, reads_text, text_arguments
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.sources import subset_in_memory
from score_diffusion.run.errors import UserError
from score_diffusion.run.key_types import AUTO
from score_diffusion.run.training.precision import fastest_precision
from score_diffusion.sde_lib import largest_distance, number_of_levels

LEVEL_KEYS = ("sigma_max", "N")  # of the section sde
OF_ENCODERS = {"classifier": "label", "clip": "text"}  # what they take from the data besides images


def resolve(config: ConfigDict, dataset: Dataset, device: torch.device) -> ConfigDict:
    """The configuration without "auto" in what training uses.

    Raises:
        UserError: If the SDE has no levels from sigma_min to sigma_max, or no rule fits the data.
    """
    config = resolve_conditions(resolve_levels(config, dataset), dataset)
    return resolve_precision(config, device, dataset.shape)


def _unresolved_levels(config: ConfigDict) -> list[str]:
    return [key for key in LEVEL_KEYS if config.sde.get(key) == AUTO]


def _with(config: ConfigDict, section: str, values: dict[str, object]) -> ConfigDict:
    """A locked copy of the configuration with other values in a section."""
    config = config.copy_and_resolve_references()
    with config.ignore_type():
        config[section].update(values)
    return config.lock()


def resolve_levels(config: ConfigDict, dataset: Dataset) -> ConfigDict:
    """The configuration with numbers for σ_max, by Technique 1, and N, by Technique 2, where it has "auto".

    Raises:
        UserError: If the SDE has no levels from sigma_min to sigma_max.
        ValueError: If the data have no distance or too few dimensions for Technique 2.
    """
    unresolved = _unresolved_levels(config)
    if not unresolved:
        return config
    if not {"sigma_min", *LEVEL_KEYS}.issubset(config.sde):
        raise UserError(
            f"sde.{unresolved[0]}='auto' is a rule for noise levels from sigma_min to sigma_max, which "
            f"{config.sde.name!r} does not have: set a number"
        )
    levels = config.sde.to_dict()
    if "sigma_max" in unresolved:
        inputs = dataset.scaling.stored_to_model(subset_in_memory(dataset.train))
        levels["sigma_max"] = largest_distance(inputs)
    if "N" in unresolved:
        levels["N"] = number_of_levels(levels["sigma_max"], levels["sigma_min"], math.prod(dataset.shape))
    return _with(config, "sde", {key: levels[key] for key in unresolved})


def resolve_conditions(config: ConfigDict, dataset: Dataset) -> ConfigDict:
    """The configuration with the number of classes, and the sizes of other conditions, of the data.

    Raises:
        UserError: If the network takes no condition of a kind that the data have.
    """
    if config.model.name in OF_ENCODERS:
        kind = OF_ENCODERS[config.model.name]
        sizes = {kind: dataset.condition_sizes.get(kind, 0)}
    elif config.training.conditional:
        sizes = dataset.condition_sizes
    else:
        return config
    found: dict[str, object] = {}
    for kind, size in sizes.items():
        key = CONDITION_KEYS[kind]
        through_encoder = kind == "text" and not reads_text(config.model.name)
        needed = text_arguments(config.model.name) if through_encoder else [key]
        if not needed or any(argument not in config.model for argument in needed):
            fitting = POINT_NETWORKS if len(dataset.shape) == 1 else IMAGE_NETWORKS
            of = "token_dim" if kind == "text" else key
            others = [name for name, make in fitting.items() if of in inspect.signature(make).parameters]
            advice = f"choose {' or '.join(others)}, or " if others else ""
            raise UserError(
                f"model {config.model.name!r} cannot be conditioned on the {kind} of the data: {advice}"
                "leave it out of the data"
            )
        if not config.model[key]:
            found[key] = size
    return _with(config, "model", found) if found else config


def resolve_precision(config: ConfigDict, device: torch.device, shape: Sequence[int]) -> ConfigDict:
    """The configuration with the precision that "auto" means on a device, for samples of a shape."""
    if config.training.precision != AUTO:
        return config
    return _with(config, "training", {"precision": fastest_precision(device, shape)})


def take_resolved(config: ConfigDict, saved: ConfigDict) -> ConfigDict:
    """The configuration with the values of a saved one where it has "auto", to resume that run."""
    if config.training.precision == AUTO:
        config = _with(config, "training", {"precision": saved.training.precision})
    levels = {key: saved.sde[key] for key in _unresolved_levels(config) if key in saved.sde}
    config = _with(config, "sde", levels)
    if not config.training.conditional and config.model.name not in ENCODERS:
        return config
    sizes = {
        key: saved.model[key]
        for key in CONDITION_KEYS.values()
        if key in saved.model and config.model.get(key) == 0
    }
    return _with(config, "model", sizes)
