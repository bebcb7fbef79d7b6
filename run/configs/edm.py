"""EDM's training recipe (Karras et al., 2022) on digits: its SDE, preconditioning, noise and weighting.

The network's noise input is log σ, for which this project's noise embeddings are made, not a quarter of it.
`--config.training.objective=uncertainty` adds EDM2's uncertainty weighting (Karras et al., 2024).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.sde = ConfigDict(dict(name="edm", sigma_min=0.002, sigma_max=80.0, N=1000))
    config.model.update(prediction="edm", sigma_data=0.75, noise_input="log_noise_level")
    config.training.update(times="lognormal", weighting="edm")
    config.sampling.sampler = "edm"
    return config
