"""The VE SDE on digits."""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.sde = ConfigDict(dict(name="vesde", sigma_min=0.01, sigma_max=50.0, N=1000))
    return config
