"""An experiment that trains in a second; the tests give its path to --config."""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import vpsde


def get_config() -> ConfigDict:
    config = vpsde.get_config()
    config.model.update(
        channels=8, multipliers=(1,), blocks_per_level=1, attention_levels=(), heads=1, dropout=0.1
    )
    config.training.update(
        steps=8, batch_size=8, warmup_steps=2, log_every=3, sample_every=8, checkpoint_every=4
    )
    config.sampling.update(num_samples=5, batch_size=3, steps=4)
    config.sampling.ald.n_steps_each = 1
    config.sampling.ode.update(rtol=1e-2, atol=1e-2)
    config.likelihood.update(num_images=4, batch_size=3, rtol=1e-2, atol=1e-2)
    config.evaluation.kept = 40
    return config
