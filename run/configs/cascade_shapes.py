"""A cascade on coloured shapes from 16x16 by 32x32 to 64x64 pixels, by text: `--mode sample --prompt TEXT`.

Imagen's chain at a small size: a model of 16x16 pixels conditioned on captions, and two that double the sides
of what the model before them drew, conditioned on it and on the caption. For scenes of two shapes,
`--config.data.name=shapes`, the first model needs the noise levels and the steps of text_scenes.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import text_shapes

KIND = "cascade"


def get_stages() -> dict[str, ConfigDict]:
    base, x32, x64 = stage(shrink=4), stage(shrink=2, upscale=2), stage(upscale=2)
    # Attention to the words at 8x8 pixels, and narrow levels where pixels are many, as in Efficient U-Net.
    x32.model.update(channels=16, multipliers=(1, 2, 3), attention_levels=(2,))
    x64.model.update(channels=16, multipliers=(1, 2, 3, 4), attention_levels=(3,))
    base.training.steps, x32.training.steps = 2600, 2500
    # What is left to decide at this size is decided at lower noise.
    x64.training.update(batch_size=16, steps=1200, p_mean=-1.2)
    return {"base": base, "x32": x32, "x64": x64}


def stage(shrink: int = 1, upscale: int = 0) -> ConfigDict:
    """A stage on images that are smaller than 64x64 by a factor."""
    config = text_shapes.get_config()
    config.data.update(image_size=64, shrink=shrink)
    config.training.precision = "float32"
    if not upscale:
        config.sampling.threshold = 0.995
        return config
    config.model.upscale = upscale
    config.training.update(batch_size=32, augment_noise=0.3)
    config.sampling.cfg.scale = 1.0
    return config
