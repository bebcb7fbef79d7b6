"""A small DiT (Peebles & Xie, 2023) on digits, in place of the U-Net of `vpsde`.

Its arguments are those of models.DiT; models/dit.py has the paper's sizes.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import vpsde


def get_config() -> ConfigDict:
    config = vpsde.get_config()
    config.model = ConfigDict(
        dict(
            name="dit",
            prediction="v",
            learned_variance=False,
            patch=2,
            width=128,
            depth=4,
            heads=4,
            mlp_ratio=4.0,
            dropout=0.0,
            embedding="fourier",
            embedding_dim=256,
            num_classes=0,
        )
    )
    config.training.learning_rate = 1e-3
    return config
