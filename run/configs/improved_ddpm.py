"""Improved DDPM (Nichol & Dhariwal, 2021) on digits: cosine betas, a learned variance, L_hybrid.

`--config.training.times=importance` draws times in proportion to their losses.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import ddpm


def get_config() -> ConfigDict:
    config = ddpm.get_config()
    config.sde.betas = "cosine"
    config.model.learned_variance = True
    config.training.objective = "hybrid"
    config.sampling.ddpm.variance = "learned"
    config.likelihood.variance = "learned"
    return config
