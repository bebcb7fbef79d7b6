"""All configuration keys that are no argument of an SDE, a network, a sampler or a guidance method, each
declared once.

From a declaration follow the key's default in configs/base.py, its checks, the modes that take it, whether it
may change when training is resumed, its explanation in `--help_config` and `--dry_run`, and its row in
docs/configuration.md. The keys of `sde`, of `sampling.SAMPLER` and most keys of `model` follow from
constructors instead, see constructor_keys.py.

Nothing here imports torch, so that `--help` is answered at once.
"""

from __future__ import annotations

from score_diffusion.run.key_types import Key
from score_diffusion.run.keys.modes import (
    CONVERT_FROM,
    CONVERT_TO,
    DATA_ACCESS,
    MODES,
    NEW_RUN,
    RESTORES,
    SAMPLES,
)
from score_diffusion.run.keys.of_results import (
    COMPARE,
    DEMO,
    EVALUATION,
    GUIDING,
    INTERPOLATE,
    LIKELIHOOD,
    RESTORE,
    SAMPLING,
    UNCLIP,
)
from score_diffusion.run.keys.of_runs import DATA, LEVEL_RULES, MODEL, SDE, SEED, TRAINING

KEYS: dict[str, Key] = {
    **SEED,
    **DATA,
    **SDE,
    **MODEL,
    **TRAINING,
    **SAMPLING,
    **UNCLIP,
    **INTERPOLATE,
    **LIKELIHOOD,
    **RESTORE,
    **EVALUATION,
    **COMPARE,
    **DEMO,
}

__all__ = [
    "COMPARE",
    "CONVERT_FROM",
    "CONVERT_TO",
    "DATA",
    "DATA_ACCESS",
    "GUIDING",
    "KEYS",
    "LEVEL_RULES",
    "MODES",
    "NEW_RUN",
    "RESTORE",
    "RESTORES",
    "SAMPLES",
    "TRAINING",
]
