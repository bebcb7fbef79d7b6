"""A cascade on real digits from 7x7 by 14x14 to 28x28 pixels, by class: `--mode sample --label 7`.

A model of 7x7 digits, and two that double the sides of what the model before them drew (Ho et al., 2021). The
data are mnist5k, 5,000 digits of MNIST; `--config.data.path=FILE` names your own copy for all stages.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import vpsde

KIND = "cascade"


def get_stages() -> dict[str, ConfigDict]:
    return {"base": _stage(4, 0), "x14": _stage(2, 2), "x28": _stage(1, 2)}


def _stage(shrink: int, upscale: int) -> ConfigDict:
    """A stage on images that are smaller than 28x28 by a factor."""
    config = vpsde.get_config()
    config.data.update(name="mnist5k", shrink=shrink)
    # Levels of 7x7 pixels at the bottom, where the only attention is: images of 28x28 have three.
    multipliers = {4: (2,), 2: (1, 2), 1: (1, 2, 2)}[shrink]
    config.model.update(
        channels=32, multipliers=multipliers, attention_levels=(len(multipliers) - 1,), upscale=upscale
    )
    config.training.update(steps=2000, batch_size=32, conditional=True, learning_rate=1e-3, sample_every=1000)
    config.sampling.guidance = "cfg"
    config.sampling.cfg.scale = 1.0
    return config
