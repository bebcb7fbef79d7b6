"""The VP SDE on MNIST: 28x28 images of your own copy, --config.data.path=mnist.npz or
train-images-idx3-ubyte.gz.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import vpsde


def get_config() -> ConfigDict:
    from score_diffusion.models import PRESETS

    config = vpsde.get_config()
    config.model.update(PRESETS["mnist"])
    config.training.update(steps=20000, learning_rate=1e-3, sample_every=2000, checkpoint_every=1000)
    return config
