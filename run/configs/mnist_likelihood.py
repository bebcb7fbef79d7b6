"""The VP SDE on MNIST, trained for the likelihood: `--config.data.path=mnist.npz`."""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import mnist, vpsde_likelihood


def get_config() -> ConfigDict:
    config = vpsde_likelihood.get_config()
    config.model.update(mnist.get_config().model, channels=24, multipliers=(1, 2, 2))
    config.model.fourier_inputs = (2, 3, 4, 5, 6, 7, 8, 9, 10)
    config.training.update(
        steps=9600,
        batch_size=32,
        learning_rate=1.5e-3,
        first_time=1e-7,
        sample_every=3000,
        checkpoint_every=1000,
    )
    return config
