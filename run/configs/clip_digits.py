"""Encoders of noisy digits and of their captions, trained contrastively (GLIDE, Section 2.3), to guide
samples: `--guidance clip --prompt "a handwritten seven"`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs.classifier import encoder_config


def get_config() -> ConfigDict:
    return encoder_config("clip", "contrastive", steps=2000, batch_size=128)
