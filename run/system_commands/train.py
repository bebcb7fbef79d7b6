"""`--mode train` of a system: trains its stages one after the other, or resumes where that was stopped."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from ml_collections import ConfigDict

from score_diffusion.run.commands.train import is_finished
from score_diffusion.run.commands.train import train as train_run
from score_diffusion.run.console import print_result
from score_diffusion.run.distributed import processes
from score_diffusion.run.systems.system import System, write_system


def train(system: System, configs: Mapping[str, ConfigDict], device: torch.device) -> int:
    """Trains the stages of a system in their order; one that has taken all of its steps is passed over.

    Args:
        system: The system.
        configs: The configurations of its stages.
        device: Where to train.

    Returns:
        The exit code: 0, or that of the stage whose training a signal stopped.

    Raises:
        UserError: If the directory holds something else, or as for the training of one run.
    """
    processes.from_rank_0(lambda: write_system(system, configs))
    for number, (name, config) in enumerate(configs.items(), 1):
        title = f"Stage {number} of {len(configs)}, {name}"
        if is_finished(config, system.stage(name)):
            print(f"{title}: finished")
            continue
        print(f"\n{title}\n")
        code = train_run(config, system.stage(name), device)
        if code:
            return code
    rows = [(name, system.stage(name)) for name in system.stages]
    print_result(
        f"All {len(configs)} stages of the {system.kind}",
        [*rows, ("to draw", f"--mode sample --workdir {system.path}")],
    )
    return 0
