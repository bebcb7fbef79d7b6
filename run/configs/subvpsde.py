"""The sub-VP SDE on digits."""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.sde = ConfigDict(dict(name="subvpsde", beta_min=0.1, beta_max=20.0, N=1000))
    return config
