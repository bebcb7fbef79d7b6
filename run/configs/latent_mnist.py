"""Latent diffusion of 28x28 digits: an autoencoder, and a U-Net on its 7x7 latents, with classes.

The data are mnist5k, 5,000 digits of MNIST; `--config.data.path=FILE` names your own copy for both stages.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import autoencoder_mnist, vpsde

KIND = "latent_diffusion"


def get_stages() -> dict[str, ConfigDict]:
    diffusion = vpsde.get_config()
    diffusion.data.update(name="mnist5k", autoencoder="../autoencoder")
    diffusion.model.update(channels=64, multipliers=(1,), blocks_per_level=3, attention_levels=(0,))
    diffusion.training.update(steps=3000, learning_rate=1e-3, conditional=True, sample_every=1000)
    return {"autoencoder": autoencoder_mnist.get_config(), "diffusion": diffusion}
