"""Two coloured shapes at 16x16 pixels by captions: `--prompt "a small red square above a large pink cross"`.

As text_shapes, with more of its training at high noise, where it is decided what lies where, and many more
images, of which there are thousands of different captions.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import text_shapes


def get_config() -> ConfigDict:
    config = text_shapes.get_config()
    config.data.update(name="shapes", num_images=30000)
    config.training.update(p_mean=0.0, learning_rate=1e-3, steps=8500)
    return config
