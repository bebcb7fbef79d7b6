"""Digits conditioned on captions: `--mode sample --prompt "a thick seven slanting right"`.

A transformer over the words is trained with the U-Net, which attends to its tokens, and a tenth of the
captions are left out for classifier-free guidance: as in GLIDE (Nichol et al., 2022), at a small size.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import vpsde


def get_config() -> ConfigDict:
    config = vpsde.get_config()
    config.data.name = "captioned_digits"
    config.model.update(blocks_per_level=1, encoder_width=64)
    config.training.update(conditional=True, condition_dropout=0.1, batch_size=64, steps=4000)
    config.sampling.guidance = "cfg"
    config.sampling.cfg.scale = 2.0
    return config
