"""A small autoencoder of the 8x8 digits, to try latent diffusion: latents of 2 channels and 4x4."""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import vpsde
from score_diffusion.run.constructor_keys import arguments


def autoencoder_config(name: str) -> ConfigDict:
    """The configuration of an autoencoder of pixel values without dequantization.

    Args:
        name: The network.
    """
    from score_diffusion.models import AUTOENCODERS

    config = vpsde.get_config()
    sizes = {key: declared.default for key, declared in arguments(AUTOENCODERS[name]).items()}
    config.model = ConfigDict({"name": name, **sizes})
    config.data.dequantize = False
    config.training.update(objective="autoencoding", learning_rate=1e-3, warmup_steps=100)
    return config


def get_config() -> ConfigDict:
    config = autoencoder_config("autoencoder_kl")
    config.model.update(latent_channels=2, channels=16, multipliers=(1, 2))
    config.training.update(steps=1500)
    return config
