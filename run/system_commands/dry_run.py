"""`--dry_run` of a system: what each of its stages would work with."""

from __future__ import annotations

from collections.abc import Mapping

from ml_collections import ConfigDict

from score_diffusion.run.commands.dry_run import dry_run as dry_run_of_stage
from score_diffusion.run.config import CONFIG_FILE, flatten
from score_diffusion.run.systems.system import System


def dry_run(mode: str, system: System, configs: Mapping[str, ConfigDict]) -> int:
    """Prints configuration, size and memory of each stage; returns the exit code.

    A stage that needs an untrained stage is only named: its sizes are not known yet.
    """
    for name, config in configs.items():
        print(f"\nStage {name}\n")
        values = set(flatten(config).values())
        needed = [stage for stage in system.stages if str(system.stage(stage).resolve()) in values]
        missing = [stage for stage in needed if not (system.stage(stage) / CONFIG_FILE).is_file()]
        if missing:
            print(
                f"works with stage {missing[0]}, which has not been trained: its sizes follow from that one"
            )
            continue
        dry_run_of_stage(mode, config, system.stage(name))
    return 0
