"""NCSNv2 (Song & Ermon, 2020) on digits: noise levels and step size by rule, and a network that is not
conditioned on the level.

Where it says auto: sigma_max is the largest distance of two training samples (Technique 1), N the number of
levels by the overlap of their shells (Technique 2), and the step size keeps the variance (Technique 4).
The network's output divided by σ (Technique 3) is prediction "noise".
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.dequantize = False
    config.sde = ConfigDict(dict(name="vesde", sigma_min=0.02, sigma_max="auto", N="auto"))
    config.model = ConfigDict(
        dict(
            name="ncsnv2",
            prediction="noise",
            scale_input=False,
            channels=32,
            multipliers=(1, 2, 2, 2),
            dilations=(2, 4),
        )
    )
    config.training.steps = 1600
    config.training.times = "discrete"
    config.training.ema_decay = 0.999
    config.sampling.update(sampler="ald", grid="chain", denoise=True)
    config.sampling.ald.update(n_steps_each=20, step_size="auto")
    return config
