"""NCSN (Song & Ermon, 2019) on digits: ten noise levels and a RefineNet conditioned on the level.

The levels are the paper's, which are 1 to 0.01 for data in [0, 1], for data in [-1, 1]; so is the step size,
2e-5/0.01² = 0.2.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.dequantize = False
    config.sde = ConfigDict(dict(name="vesde", sigma_min=0.02, sigma_max=2.0, N=10))
    config.model = ConfigDict(
        dict(
            name="ncsn",
            prediction="noise",  # the paper's is score, the same objective; see models/refinenet.py
            scale_input=False,
            channels=24,
            multipliers=(1, 2, 2, 2),
            dilations=(2, 4),
        )
    )
    config.training.steps = 1600
    config.training.times = "discrete"
    config.training.precision = "float32"  # in bf16 its conditional norms are off by up to 3 %
    config.training.ema_decay = 0.0  # the average is NCSNv2's Technique 5
    config.sampling.update(sampler="ald", grid="chain", denoise=False)
    config.sampling.ald.update(n_steps_each=100, step_size=0.2)
    return config
