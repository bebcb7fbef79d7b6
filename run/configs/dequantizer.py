"""Variational dequantization of the images of another run: `--config.training.run=RUN` names it, and its
likelihood uses the result by `--config.likelihood.dequantization=DEQUANTIZER_RUN` (Ho et al., 2019).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs.classifier import encoder_config


def get_config() -> ConfigDict:
    return encoder_config("dequantizer", "dequantization", steps=2000)
