"""The VP SDE on digits, conditioned on the class: `--mode sample --label 7`.

A tenth of the training samples are not conditioned, for classifier-free guidance (Ho & Salimans, 2022).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import vpsde


def get_config() -> ConfigDict:
    config = vpsde.get_config()
    config.training.conditional = True
    config.training.condition_dropout = 0.1
    return config
