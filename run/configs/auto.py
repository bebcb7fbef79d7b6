"""The VP SDE on your own data, --config.data.path=...: the network and the training follow from the data.

fit_to_data.py has the rules. Any key that is set on the command line keeps its value.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from score_diffusion.run.configs import vpsde


def get_config() -> ConfigDict:
    return vpsde.get_config()
