"""A cascade on real digits from 7x7 by 14x14 to 28x28 pixels, by class: `--mode sample --label 7`.

A model of 7x7 digits, and two that double the sides of what the model before them drew (Ho et al., 2021). The
data are mnist5k, 5,000 digits of MNIST; `--config.data.path=FILE` names your own copy for all stages.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import vpsde

KIND = "cascade"


def get_stages() -> dict[str, ConfigDict]:
    base, x14, x28 = _stage(shrink=4), _stage(shrink=2, upscale=2), _stage(upscale=2)
    # Attention at 7x7 pixels only, and narrow levels where pixels are many, as in Imagen's Efficient U-Net.
    base.model.update(channels=24, multipliers=(2,), attention_levels=(0,))
    x14.model.update(channels=16, multipliers=(1, 2), attention_levels=(1,))
    x28.model.update(channels=16, multipliers=(1, 2, 2), attention_levels=(2,))
    base.training.update(batch_size=128, steps=2500)
    x14.training.steps, x28.training.steps = 4500, 4000
    return {"base": base, "x14": x14, "x28": x28}


def _stage(shrink: int = 1, upscale: int = 0) -> ConfigDict:
    """A stage on images that are smaller than 28x28 by a factor."""
    config = vpsde.get_config()
    config.data.update(name="mnist5k", shrink=shrink)
    config.model.update(blocks_per_level=1, upscale=upscale)
    config.training.update(batch_size=64, conditional=True, learning_rate=2e-3, sample_every=1000)
    config.training.precision = "float32"
    config.training.augment_noise = 0.3  # all levels up to 1 take a longer training
    config.sampling.guidance = "cfg"
    config.sampling.cfg.scale = 1.0
    return config
