"""Settings in a file: JSON or YAML, in sections as in a run's config.json, some of the keys or all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from score_diffusion.run.errors import UserError
from score_diffusion.run.json_files import LARGEST_FILE, read_json

YAML = (".yaml", ".yml")
SUFFIXES = (".json", *YAML)


def read_settings(path: Path) -> list[tuple[str, object]]:
    """The keys of a file by their full names, with their values.

    Raises:
        UserError: If the file is missing, or holds something else.
    """
    advice = 'give a file with sections, such as {"training": {"steps": 1000}}, or a run\'s config.json'
    record = _read_yaml(path, advice) if path.suffix in YAML else read_json(path, {}, advice)
    return dotted(record)


def _read_yaml(path: Path, advice: str) -> dict[str, Any]:
    try:
        import yaml  # ml_collections brings it
    except ImportError as error:
        raise UserError(f"{path} needs the package PyYAML: install it, or give a .json file") from error
    if not path.is_file():
        raise UserError(f"{path} is missing: {advice}")
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"it has more than {LARGEST_FILE:,} bytes")
        text = path.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("it has aliases, which can grow without end")
        record = yaml.safe_load(text)
        if not isinstance(record, dict):
            raise ValueError(f"it holds a {type(record).__name__}")
    except (ValueError, RecursionError, OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be used ({' '.join(str(error).split())}): {advice}") from error
    return record


def dotted(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """Settings in sections as keys of the configuration by their full names."""
    pairs: list[tuple[str, object]] = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        pairs += dotted(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return pairs
