"""Directories that are complete or absent: written under a temporary name, flushed to the disk, renamed.

Each holds the digests of its files, which are checked when they are read: a flipped bit is found although no
format would notice it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from score_diffusion.run.distributed import processes
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import write_durable

DIGESTS = "sha256.json"


def write_directory(
    target: Path, files: dict[str, bytes], write_pieces: Callable[[Path], list[str]] | None = None
) -> None:
    """Writes files and their digests as a directory; one that is there is replaced. Every process calls it.

    Args:
        target: The directory.
        files: Their contents by name. The first process writes them.
        write_pieces: Writes further files in a directory, durably, each process its own, and returns their
            names.
    """
    temporary = target.with_name(f".{target.name}")
    if processes.is_first():
        shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed while writing
        temporary.mkdir(parents=True)
    processes.wait()
    try:
        names = write_pieces(temporary) if write_pieces else []
        pieces = processes.gather([(name, _digest((temporary / name).read_bytes())) for name in names])
        if processes.is_first():
            digests = dict(pieces) | {name: _digest(data) for name, data in files.items()}
            for name, data in {**files, DIGESTS: json.dumps(digests).encode()}.items():
                write_durable(temporary / name, data)
            _sync(temporary)
            shutil.rmtree(target, ignore_errors=True)
            os.rename(temporary, target)
            _sync(target.parent)
    finally:
        if processes.is_first():
            shutil.rmtree(temporary, ignore_errors=True)
    processes.wait()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_file(path: Path, parse: Callable[[bytes], dict]) -> dict:
    """What `parse` makes of a file of such a directory.

    Raises:
        UserError: If the file or the digests are missing, truncated or corrupt.
    """
    expected = _digests(path.parent).get(path.name)
    if not path.is_file():
        raise UserError(f"checkpoint file {path} is missing")
    return _parsed(path, parse, expected)


def belongs(path: Path) -> bool:
    """Whether a file is, or should be, in such a directory."""
    return path.is_file() or path.name in names(path.parent)


def names(directory: Path) -> list[str]:
    """The files that such a directory should hold."""
    return list(_digests(directory))


def _digests(directory: Path) -> dict[str, str]:
    path = directory / DIGESTS
    return _parsed(path, json.loads) if path.is_file() else {}  # older checkpoints have none


def _parsed(path: Path, parse: Callable[[bytes], dict], digest: str | None = None) -> dict:
    data = path.read_bytes()
    if digest is not None and _digest(data) != digest:
        raise UserError(f"checkpoint file {path} is damaged: its bytes are not those that were written")
    try:
        parsed = parse(data)
    except Exception as error:  # torn bytes make a parser raise anything, IndexError among them
        raise UserError(f"checkpoint file {path} is damaged") from error
    if not isinstance(parsed, dict):
        raise UserError(f"checkpoint file {path} is damaged: it does not hold what was written")
    return parsed


def numbered(folder: Path) -> list[Path]:
    """The directories of a folder that are named by a step, in the order of their steps."""
    return sorted(
        (path for path in folder.glob("[0-9]*") if path.name.isdecimal() and path.is_dir()),
        key=lambda path: int(path.name),
    )
