"""What every experiment starts from: all keys at their defaults, and a small U-Net for digits.

An experiment file sets what differs from here. keys/ says what the keys are.
"""

from __future__ import annotations

from types import UnionType
from typing import Any, Union, get_origin

from ml_collections import ConfigDict, FieldReference

from score_diffusion.run.constructor_keys import arguments, option_keys
from score_diffusion.run.key_types import Key
from score_diffusion.run.keys import KEYS


def unet_defaults() -> dict[str, object]:
    """The arguments of `models.UNet` that have a default."""
    from score_diffusion.models import UNet

    return {name: key.default for name, key in arguments(UNet).items()}


def get_config() -> ConfigDict:
    """All sections; the arguments of the SDE are filled in when the configuration is loaded."""
    from score_diffusion.models import PRESETS

    sections: dict[str, Any] = {}
    for name, key in (KEYS | option_keys()).items():
        *path, last = name.split(".")
        section = sections
        for part in path:
            section = section.setdefault(part, {})
        section[last] = _field(key)
    config = ConfigDict(sections)
    config.model.update(unet_defaults() | PRESETS["digits"])
    return config


def _field(key: Key) -> object:
    """The default, as a field that takes values of another type where the key does ("auto", a pair)."""
    several = get_origin(key.type) in (Union, UnionType)
    return FieldReference(key.default, field_type=object) if several else key.default
