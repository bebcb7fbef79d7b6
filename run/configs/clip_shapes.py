"""Encoders of images of coloured shapes and of their captions, trained contrastively and without noise: the
image embeddings of unCLIP.

As CLIP (Radford et al., 2021) at a small size. `--config unclip_shapes` trains them as its first stage.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs.classifier import encoder_config


def get_config() -> ConfigDict:
    config = encoder_config("clip", "clean_contrastive", steps=600, batch_size=128)
    config.data.name = "single_shapes"
    config.model.update(channels=16, multipliers=(1, 2, 4), blocks_per_level=1, attention_levels=(2,))
    return config
