"""What a configuration leaves open with the value "auto" until training starts: noise levels, by NCSNv2's
rules from the training set, and the precision, by the device.

In the run directory's configuration they are what they were found to be, so that a run goes on with them. A
further value that may be "auto", `sampling.ald.step_size`, follows from levels and steps alone and stays a
rule, so that it holds for the `sampling.ald.n_steps_each` of the day; see samplers/langevin.py.

Reference:
    Improved Techniques for Training Score-Based Generative Models (Song & Ermon, 2020),
        https://arxiv.org/abs/2006.09011: Techniques 1 and 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from ml_collections import ConfigDict

from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.sources import subset_in_memory
from score_diffusion.run.errors import UserError
from score_diffusion.run.key_types import AUTO
from score_diffusion.run.training.precision import PRECISIONS, precision
from score_diffusion.sde_lib import largest_distance, number_of_levels

LEVELS = ("sigma_max", "N")  # keys of the section sde


def _unresolved(config: ConfigDict) -> list[str]:
    return [key for key in LEVELS if config.sde.get(key) == AUTO]


def _with(config: ConfigDict, section: str, values: dict[str, object]) -> ConfigDict:
    """A locked copy of the configuration with other values in a section."""
    config = config.copy_and_resolve_references()
    with config.ignore_type():
        config[section].update(values)
    return config.lock()


def resolve_levels(config: ConfigDict, dataset: Dataset) -> ConfigDict:
    """The configuration with numbers where it had "auto": σ_max by Technique 1 and N by Technique 2.

    Raises:
        UserError: If the SDE has no levels from sigma_min to sigma_max.
        ValueError: If the data have no distance or too few dimensions for Technique 2.
    """
    unresolved = _unresolved(config)
    if not unresolved:
        return config
    if not {"sigma_min", *LEVELS}.issubset(config.sde):
        raise UserError(
            f"sde.{unresolved[0]}='auto' is a rule for noise levels from sigma_min to sigma_max, which "
            f"{config.sde.name!r} has not: set a number"
        )
    levels = config.sde.to_dict()
    if "sigma_max" in unresolved:
        inputs = dataset.scaling.stored_to_model(subset_in_memory(dataset.train))
        levels["sigma_max"] = largest_distance(inputs)
    if "N" in unresolved:
        levels["N"] = number_of_levels(levels["sigma_max"], levels["sigma_min"], math.prod(dataset.shape))
    return _with(config, "sde", {key: levels[key] for key in unresolved})


def resolve_precision(config: ConfigDict, device: torch.device, shape: Sequence[int]) -> ConfigDict:
    """The configuration with the precision that "auto" is on a device, for samples of a shape."""
    if config.training.precision != AUTO:
        return config
    dtype = precision(AUTO, device, shape)
    name = next(name for name, other in PRECISIONS.items() if other == dtype)
    return _with(config, "training", {"precision": name})


def take_resolved(config: ConfigDict, saved: ConfigDict) -> ConfigDict:
    """The configuration with the saved values where it has "auto": those of a run that goes on."""
    if config.training.precision == AUTO:
        config = _with(config, "training", {"precision": saved.training.precision})
    return _with(config, "sde", {key: saved.sde[key] for key in _unresolved(config) if key in saved.sde})
