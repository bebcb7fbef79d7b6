"""`--dry_run` of a system: what each of its stages would work with."""

from __future__ import annotations

from collections.abc import Mapping

from ml_collections import ConfigDict

from score_diffusion.run.commands.dry_run import dry_run as dry_run_of_stage
from score_diffusion.run.systems.system import System


def dry_run(mode: str, system: System, configs: Mapping[str, ConfigDict]) -> int:
    """Prints configuration, size and memory of each stage; returns the exit code."""
    for name, config in configs.items():
        print(f"\nStage {name}\n")
        dry_run_of_stage(mode, config, system.stage(name))
    return 0
