"""Latent diffusion of 28x28 digits: a U-Net on the 7x7 latents of `--config autoencoder_mnist`, with classes.

Train the autoencoder first; `--config.data.autoencoder=RUN` names its run if it is another than
runs/autoencoder_mnist.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import vpsde


def get_config() -> ConfigDict:
    config = vpsde.get_config()
    config.data.update(name="mnist5k", autoencoder="runs/autoencoder_mnist")
    config.model.update(channels=64, multipliers=(1,), blocks_per_level=3, attention_levels=(0,))
    config.training.update(
        steps=4000, learning_rate=1e-3, conditional=True, sample_every=1000, checkpoint_every=1000
    )
    return config
