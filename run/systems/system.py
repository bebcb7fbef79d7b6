"""The directory of a system: its kind and its stages (system.json)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from score_diffusion.run.config import CONFIG_FILE, SYSTEM_FILE, save_config
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import write_json
from score_diffusion.run.json_files import read_json
from score_diffusion.run.key_types import Values

FIELDS = {"kind": Values(kind=str), "stages": Values(kind=tuple[str, ...])}


@dataclass(frozen=True)
class System:
    """The directory of a system."""

    path: Path
    kind: str
    """A name in `KINDS`."""
    stages: tuple[str, ...]
    """In the order in which they are trained and sampled."""

    def stage(self, name: str) -> Path:
        """The run directory of a stage."""
        return self.path / name

    def refuse_whole(self, mode: str) -> None:
        """Refuses a mode that works on one run.

        Raises:
            UserError: Always; the message names the stages.
        """
        runs = ", ".join(str(self.stage(name)) for name in self.stages)
        raise UserError(
            f"--mode {mode} works on one run, and {self.path} holds a system of several: give the --workdir "
            f"of a stage, {runs}"
        )


def is_system(path: Path) -> bool:
    """Whether a directory holds a system."""
    return (path / SYSTEM_FILE).exists()


def read_system(path: Path) -> System:
    """The system of a directory.

    Raises:
        UserError: If system.json is missing or damaged.
    """
    file, advice = path / SYSTEM_FILE, "restore it from a copy, or train in another --workdir"
    record = read_json(file, FIELDS, advice)
    stages = tuple(record["stages"])
    if not stages or not all(name.isidentifier() for name in stages):  # folders of this one
        raise UserError(f"{file} is damaged (stages must be names, got {record['stages']}): {advice}")
    return System(path, record["kind"], stages)


def write_system(system: System, configs: Mapping[str, ConfigDict]) -> None:
    """Writes system.json into the directory of a system, and the configuration of each stage that has none.

    Raises:
        UserError: If the directory holds something else.
    """
    path = system.path
    if is_system(path):
        there = read_system(path)
        if there != system:
            raise UserError(
                f"{path} holds a {there.kind} of the stages {', '.join(there.stages)}, and this is a "
                f"{system.kind} of {', '.join(system.stages)}: give another --workdir"
            )
    elif (path / CONFIG_FILE).exists():
        raise UserError(f"{path} holds the run of one model, not a system: give another --workdir")
    elif path.exists() and any(not entry.name.startswith(".") for entry in path.iterdir()):
        raise UserError(f"{path} is not empty and holds no system: give another --workdir")
    write_json(path / SYSTEM_FILE, {"format": 1, "kind": system.kind, "stages": list(system.stages)})
    for stage, config in configs.items():
        if not (system.stage(stage) / CONFIG_FILE).exists():
            save_config(config, system.stage(stage))
