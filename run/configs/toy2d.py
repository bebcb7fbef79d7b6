"""The VP SDE on points of the plane: a swiss roll, two moons, a checkerboard or eight Gaussians."""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.name = "swiss_roll"
    config.sde = ConfigDict(dict(name="vpsde", beta_min=0.1, beta_max=20.0, N=1000))
    config.model = ConfigDict(
        dict(name="mlp", prediction="noise", width=128, depth=3, embedding="fourier", dropout=0.0)
    )
    config.training.steps = 4000
    config.training.batch_size = 512
    config.training.learning_rate = 1e-3
    config.sampling.num_samples = 2000
    config.sampling.batch_size = 2000
    config.likelihood.num_images = 1000
    config.likelihood.batch_size = 1000
    config.likelihood.divergence = "exact"
    return config
