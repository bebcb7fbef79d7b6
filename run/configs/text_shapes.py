"""Coloured shapes at 16x16 pixels conditioned on captions: `--mode sample --prompt "a small red square"`.

As text_digits, on images that are drawn as they are needed: what a sample shows can be compared with what was
asked for, also for combinations of colour and kind that no training image has. Scenes of two
shapes are those of text_scenes.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import text_digits


def get_config() -> ConfigDict:
    config = text_digits.get_config()
    config.data.name = "single_shapes"
    config.model.update(channels=16, multipliers=(1, 3, 4), attention_levels=(2,), prediction="edm")
    config.training.update(times="lognormal", p_mean=-0.8, weighting="edm", batch_size=128, steps=3000)
    return config
