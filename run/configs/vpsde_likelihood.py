"""The VP SDE on digits, trained for the likelihood: weighting g²/σ² with times drawn by it (ScoreFlow)."""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import vpsde


def get_config() -> ConfigDict:
    config = vpsde.get_config()
    config.training.update(weighting="likelihood", times="likelihood", grad_clip=5.0, precision="float32")
    config.model.fourier_inputs = (0, 1, 2, 3, 4)
    return config
