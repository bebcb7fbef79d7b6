"""DDPM (Ho et al., 2020) on digits: the linear betas, L_simple on bare pixel values."""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.dequantize = False
    config.sde = ConfigDict(dict(name="ddpm", betas="linear", N=1000))
    config.model.update(prediction="noise", norm_groups=8)  # one number for all norms, as diffusers has it
    config.training.times = "discrete"
    config.sampling.update(sampler="ddpm", steps=1000)
    config.sampling.ddpm.clip = config.sampling.ddim.clip = 1.0
    config.likelihood.update(method="bound", clip=1.0, dequantization="gaussian")
    return config
