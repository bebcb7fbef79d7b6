"""Writing files so that a crash, a full disk or a second run never leaves a torn or a lost one."""

from __future__ import annotations

import json
import os
from itertools import count
from pathlib import Path


def write_durable(path: Path, data: bytes) -> None:
    """Write and flush to the disk, so that a later rename cannot expose an empty file."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` under a temporary name beside `path`, then rename: readers see the old or the new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_durable(temporary, data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: dict) -> None:
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


def unused_stem(folder: Path, stem: str, *suffixes: str) -> Path:
    """folder/stem, or folder/stem-2, -3, ...: the first under which no file with one of `suffixes` exists."""
    for number in count(1):
        path = folder / (stem if number == 1 else f"{stem}-{number}")
        if not any(path.with_name(path.name + suffix).exists() for suffix in suffixes):
            return path
    raise AssertionError("unreachable: count() does not end")
