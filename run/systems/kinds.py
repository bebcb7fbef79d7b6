"""The kinds of systems: what makes the chain of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from ml_collections import ConfigDict

from score_diffusion.run.errors import UserError
from score_diffusion.run.systems.cascade import Cascade
from score_diffusion.run.systems.chain import Chain, StageRun
from score_diffusion.run.systems.latent_diffusion import LatentDiffusion
from score_diffusion.run.systems.system import System
from score_diffusion.run.systems.unclip import Unclip

KINDS: dict[str, Callable[[Mapping[str, StageRun], torch.device], Chain]] = {
    "cascade": Cascade.load,
    "latent_diffusion": LatentDiffusion.load,
    "unclip": Unclip.load,
}
"""A kind by its name in system.json, and what makes its chain of the stages and the device."""


def load_chain(system: System, configs: Mapping[str, ConfigDict], device: torch.device) -> Chain:
    """The chain of a system, its models loaded.

    Args:
        system: The system.
        configs: The configurations of its stages, see `read_stages`.
        device: Where to compute.

    Raises:
        UserError: If the kind is unknown, a stage is not trained, or they do not fit each other.
    """
    if system.kind not in KINDS:
        raise UserError(
            f"{system.path} is a system of the kind {system.kind!r}, and these are known: {', '.join(KINDS)}"
        )
    stages = {name: StageRun(name, system.stage(name), config) for name, config in configs.items()}
    for stage in stages.values():
        stage.check_is_trained()
    return KINDS[system.kind](stages, device)
