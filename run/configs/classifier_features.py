"""A classifier of your own labelled images, without noise, on whose features `--mode evaluate` measures:
`--config.data.path=...` names the data, `--config.evaluation.features=RUN` the run of the classifier.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs.classifier import encoder_config


def get_config() -> ConfigDict:
    config = encoder_config("classifier", "clean_classification", steps=1000)
    config.model.dropout = 0.1
    return config
