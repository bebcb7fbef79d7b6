"""What a configuration leaves to NCSNv2's rules with the value "auto": noise levels from the training set.

They are found when training starts and are numbers in the run directory's configuration. The third value
that may be "auto", `sampling.ald_step_size`, follows from levels and steps alone and stays a rule, so that it
holds for the `sampling.ald_steps_each` of the day; see build.py.

Reference:
    Improved Techniques for Training Score-Based Generative Models (Song & Ermon, 2020),
        https://arxiv.org/abs/2006.09011: Techniques 1 and 2.
"""

from __future__ import annotations

import math

from ml_collections import ConfigDict

from run.config import AUTO
from run.data import Dataset, to_raw
from run.errors import UserError
from run.samples import in_memory
from sde_lib import largest_distance, number_of_levels

LEVELS = ("sigma_max", "N")  # keys of the section sde


def _unresolved(config: ConfigDict) -> list[str]:
    return [key for key in LEVELS if config.sde.get(key) == AUTO]


def _with_levels(config: ConfigDict, levels: dict[str, float]) -> ConfigDict:
    """A locked copy of the configuration with other values of `LEVELS`."""
    config = config.copy_and_resolve_references()
    with config.ignore_type():
        config.sde.update(levels)
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
        levels["sigma_max"] = largest_distance(to_raw(in_memory(dataset.train), dataset.levels))
    if "N" in unresolved:
        levels["N"] = number_of_levels(levels["sigma_max"], levels["sigma_min"], math.prod(dataset.shape))
    return _with_levels(config, {key: levels[key] for key in unresolved})


def take_levels(config: ConfigDict, saved: ConfigDict) -> ConfigDict:
    """The configuration with the saved values where it has "auto": those of a run that goes on."""
    return _with_levels(config, {key: saved.sde[key] for key in _unresolved(config) if key in saved.sde})
