"""The VP SDE on CIFAR-10-sized colour images of your own, --config.data.path=FOLDER, .zip or
cifar-10-binary.tar.gz.

The network is a small one, not a paper's: it learns colours and shapes in hours on a CPU.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import vpsde


def get_config() -> ConfigDict:
    from score_diffusion.models import PRESETS

    config = vpsde.get_config()
    config.data.flip = True
    config.model.update(PRESETS["cifar10"])
    config.training.update(
        steps=100000, batch_size=128, learning_rate=5e-4, ema_decay=0.9999, sample_every=5000
    )
    return config
