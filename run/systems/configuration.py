"""The configurations of a system's stages: from a file of run/configs/ or the user's, with overrides.

`--config.STAGE.section.key=value` is for one stage, `--config.section.key=value` for every stage that has the
key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from score_diffusion.run.config import (
    CONFIG_FILE,
    NEIGHBOUR,
    Overrides,
    apply_overrides,
    completed,
    find_key,
    flatten,
    read_run,
    with_values,
)
from score_diffusion.run.config_files import SYSTEM, find_module, system_names, the_users_code
from score_diffusion.run.constructor_keys import declared_keys
from score_diffusion.run.errors import UserError
from score_diffusion.run.follow_run import follow_run
from score_diffusion.run.keys import KEYS
from score_diffusion.run.setting_files import SUFFIXES
from score_diffusion.run.systems.system import System


def names_system(name: str) -> bool:
    """Whether an experiment, by its name or the path of its file, is a system.

    Raises:
        UserError: If it is a file that does not exist or does not run.
    """
    if name.partition(":")[0].endswith(".py"):
        return hasattr(find_module(name), SYSTEM)
    return Path(name).suffix not in SUFFIXES and name in system_names()


def load_system(name: str, workdir: Path, overrides: Overrides = ()) -> tuple[System, dict[str, ConfigDict]]:
    """A system with the configurations that its stages are trained with, locked.

    Args:
        name: The name of the experiment, or the path of its file.
        workdir: The directory of the system.
        overrides: What the user sets.

    Raises:
        UserError: If the file does not define a system, or an override cannot be applied.
    """
    module = find_module(name)
    with the_users_code(name):
        stages, kind = module.get_stages(), module.KIND
    if not isinstance(stages, dict) or not stages:
        raise UserError(f"{name}: get_stages() must give the configuration of each stage, got {stages!r}")
    sections = {key.partition(".")[0] for key in KEYS}
    for stage in stages:
        if not str(stage).isidentifier() or stage in sections:
            raise UserError(f"{name}: a stage cannot be called {stage!r}: give it a name of letters")
    system = System(workdir, str(kind), tuple(stages))
    configs = {
        stage: completed(_with_neighbours(config, system.stage(stage)), f"stage {stage} of {name}")
        for stage, config in stages.items()
    }
    chosen = split_overrides(overrides, configs)
    return system, {
        stage: follow_run(apply_overrides(config, chosen[stage]), chosen[stage])
        for stage, config in configs.items()
    }


def _with_neighbours(config: ConfigDict, workdir: Path) -> ConfigDict:
    """A configuration of Python code with the directories of other stages where it has "../STAGE"."""
    if not isinstance(config, ConfigDict):
        return config  # refused with the others that are not whole
    values = {
        name: str((workdir / value).resolve())
        for name, value in flatten(config).items()
        if isinstance(value, str) and value.startswith(NEIGHBOUR)
    }
    changed = with_values(config, values)
    changed.unlock()
    return changed


def read_stages(system: System, overrides: Overrides, mode: str) -> dict[str, ConfigDict]:
    """The configurations of a system's trained stages with overrides, for a mode; locked.

    Raises:
        UserError: If a stage is not trained, or an override cannot be applied.
    """
    for stage in system.stages:
        if not (system.stage(stage) / CONFIG_FILE).is_file():
            raise UserError(
                f"stage {stage} of {system.path} is missing: restore {system.stage(stage)}, or train it by "
                f"--mode train --workdir {system.path} --config NAME"
            )
    chosen = split_overrides(
        overrides, {stage: read_run(system.stage(stage), (), mode) for stage in system.stages}
    )
    return {stage: read_run(system.stage(stage), chosen[stage], mode) for stage in system.stages}


def split_overrides(overrides: Overrides, configs: Mapping[str, ConfigDict]) -> dict[str, list]:
    """The overrides of each stage.

    Raises:
        UserError: If no stage has such a key.
    """
    keys = {stage: declared_keys(config) for stage, config in configs.items()}
    chosen: dict[str, list[tuple[str, object]]] = {stage: [] for stage in configs}
    for name, value in overrides:
        first, _, rest = name.partition(".")
        if first in configs:
            chosen[first].append((rest, value))
            continue
        having: Sequence[str] = [stage for stage in configs if name in keys[stage]]
        if not having:
            find_key(name, {key: found for of_stage in keys.values() for key, found in of_stage.items()})
        for stage in having:
            chosen[stage].append((name, value))
    return chosen
