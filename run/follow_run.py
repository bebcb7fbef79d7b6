"""`training.run`: a classifier or encoders that are trained with the data and the SDE of another run."""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.config import Overrides, read_run
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import expanded
from score_diffusion.run.keys import KEYS


def follow_run(config: ConfigDict, overrides: Overrides) -> ConfigDict:
    """The configuration with the data and the SDE of the run `training.run`; itself if it names none.

    Args:
        config: The configuration with the overrides.
        overrides: What the user sets. Of the data this may be where they are and how they are read.

    Raises:
        UserError: If there is no such run, or overrides would make the data or the SDE others.
    """
    if not config.training.run:
        return config
    run = expanded(config.training.run)
    readers = [(name, value) for name, value in overrides if _says_where(name)]
    saved = read_run(run, readers, "evaluate")
    refused = [name for name, _ in overrides if name.startswith(("data.", "sde.")) and not _says_where(name)]
    if refused:
        raise UserError(f"--config.{refused[0]} cannot be set: data and SDE are those of training.run={run}")
    followed = config.copy_and_resolve_references()
    with followed.unlocked():
        followed.data, followed.sde = saved.data, saved.sde
    with followed.ignore_type():
        followed.training.run = str(run.resolve())
    return followed.lock()


def _says_where(name: str) -> bool:
    """Whether a key says where data are and how they are read, not what they are."""
    return name.startswith("data.") and bool(KEYS[name].may_change)
