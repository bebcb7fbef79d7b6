"""A noise-conditional classifier of digits, to guide samples: `--config.training.run=RUN` trains it with the
data and the SDE of another run (Dhariwal & Nichol, 2021, Section 4).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import vpsde
from score_diffusion.run.constructor_keys import arguments


def encoder_config(name: str, objective: str, steps: int, batch_size: int | None = None) -> ConfigDict:
    """The configuration of an encoder of noisy digits.

    Args:
        name: The network.
        objective: Its objective.
        steps: Training steps.
        batch_size: Samples in a step; None for that of `vpsde`.
    """
    from score_diffusion.models import ENCODERS

    config = vpsde.get_config()
    sizes = {key: declared.default for key, declared in arguments(ENCODERS[name]).items()}
    config.model = ConfigDict({"name": name, **sizes})
    with config.ignore_type():  # "auto" gives way to a number
        config.training.preview_samples = 0
    config.training.update(objective=objective, learning_rate=1e-3, warmup_steps=100, steps=steps)
    if batch_size is not None:
        config.training.batch_size = batch_size
    return config


def get_config() -> ConfigDict:
    return encoder_config("classifier", "classification", steps=2000)
