"""Directories that are complete or absent: written under a temporary name, flushed to the disk, renamed.

Each holds the digests of its files, which are checked whenever a file is read: a flipped bit is found,
although no file format would notice it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

from score_diffusion.run.console import warn
from score_diffusion.run.distributed import processes
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import write_durable
from score_diffusion.run.json_files import LARGEST_FILE, check_fields, parse_json
from score_diffusion.run.key_types import Values

DIGESTS = "sha256.json"


def write_directory(
    target: Path, files: dict[str, bytes], write_shards: Callable[[Path], list[str]] | None = None
) -> None:
    """Writes files and their digests as a directory, replacing an existing one. Every process calls it.

    Args:
        target: The directory.
        files: Their contents by name. Rank 0 writes them.
        write_shards: Writes further files into a directory, durably, each process its own, and returns their
            names.

    Raises:
        OSError: If a file cannot be written; an existing directory is then still there.
    """
    temporary = target.with_name(f".{target.name}")
    if processes.is_rank_0():
        shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed while writing
        temporary.mkdir(parents=True)
    processes.barrier()
    try:
        names = write_shards(temporary) if write_shards else []
        digests = processes.gather([(name, _digest((temporary / name).read_bytes())) for name in names])
        if processes.is_rank_0():
            all_digests = dict(digests or []) | {name: _digest(data) for name, data in files.items()}
            for name, data in {**files, DIGESTS: json.dumps(all_digests).encode()}.items():
                write_durable(temporary / name, data)
            _sync(temporary)
            remove_directory(target)
            os.rename(temporary, target)
            _sync(target.parent)
    finally:
        if processes.is_rank_0():
            shutil.rmtree(temporary, ignore_errors=True)
    processes.barrier()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_directory(directory: Path) -> None:
    """Removes a directory, or only the link if it is one: what a link points to is not ours.

    Raises:
        OSError: If it cannot be removed.
    """
    if directory.is_symlink():
        directory.unlink()
    elif directory.exists():
        shutil.rmtree(directory)


def remove_temporaries(folder: Path) -> None:
    """Removes what processes left in a folder that were killed while they wrote a numbered directory."""
    for path in folder.glob(".[0-9]*"):
        if path.name[1:].isdecimal() and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def move_aside(directory: Path, prefix: str) -> Path:
    """Renames a directory to PREFIX-NAME, or PREFIX-NAME-2, .. if that is taken; returns its new path."""
    for number in count(1):
        target = directory.with_name(f"{prefix}-{directory.name}" + (f"-{number}" if number > 1 else ""))
        if not os.path.lexists(target):
            directory.rename(target)
            return target
    raise AssertionError("unreachable: count() does not end")


def read_file(path: Path, parse: Callable[[bytes], dict], checked: bool = True) -> dict:
    """What `parse` makes of a file of such a directory.

    Args:
        path: The file.
        parse: Its reader, which returns a dict.
        checked: Whether the file must have the digest that was written with it; False to read it as it is.

    Raises:
        UserError: If the file or its digest is missing, or the file is unreadable, truncated or corrupt.
    """
    expected = _digests(path.parent).get(path.name) if checked else None
    if not _is_file(path):
        raise UserError(f"checkpoint file {path} is missing")
    if checked and expected is None:
        raise UserError(f"checkpoint file {path.parent / DIGESTS} is damaged: it lacks {path.name}")
    return _parsed(path, parse, expected)


def file_names(directory: Path) -> list[str]:
    """The files that were written to such a directory.

    Raises:
        UserError: If the list, the file of digests, is missing or damaged.
    """
    return list(_digests(directory))


def _digests(directory: Path) -> dict[str, str]:
    path = directory / DIGESTS
    if not _is_file(path):
        raise UserError(
            f"{directory} has no {DIGESTS}, so that damage to its files would go unnoticed: restore that file"
        )
    return _parsed(path, _parse_digests)


def _parse_digests(data: bytes) -> dict[str, str]:
    digests = parse_json(data, {})
    check_fields(digests, dict.fromkeys(digests, Values(kind=str)))
    return digests


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:  # it, or its folder, may not be looked at
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"checkpoint file {path} cannot be read ({error.strerror or error})")


def _parsed(path: Path, parse: Callable[[bytes], dict], digest: str | None = None) -> dict:
    try:
        if path.suffix == ".json" and path.stat().st_size > LARGEST_FILE:
            raise UserError(f"checkpoint file {path} is damaged: it has more than {LARGEST_FILE:,} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    if digest is not None and _digest(data) != digest:
        raise UserError(f"checkpoint file {path} is damaged: its bytes are not those that were written")
    try:
        parsed = parse(data)
    except Exception as error:  # torn bytes make a parser raise anything, IndexError among them
        raise UserError(f"checkpoint file {path} is damaged ({_summary(error)})") from error
    if not isinstance(parsed, dict):
        raise UserError(f"checkpoint file {path} is damaged: it does not hold what was written")
    return parsed


def _summary(error: Exception) -> str:
    """The first line of an error's message, or its name if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def numbered(folder: Path) -> list[Path]:
    """The directories of a folder that are named by a step, in the order of their steps; none if there is no
    such folder.

    A link to a directory counts as one, and so does a link to nothing: whoever reads it learns what is wrong.

    Raises:
        UserError: If the folder is there and cannot be listed, or is a link to nothing.
    """
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if entry.name.isdecimal()]
    except FileNotFoundError as error:
        if folder.is_symlink():
            raise UserError(
                f"{folder} is a link to {os.readlink(folder)}, which does not exist: mount or restore it, or "
                "remove the link"
            ) from error
        return []
    except OSError as error:
        raise UserError(
            f"{folder} cannot be listed ({error.strerror or error}), so that it is not known which "
            "checkpoints it holds: make it readable"
        ) from error
    directories = [Path(entry.path) for entry in found if entry.is_symlink() or entry.is_dir()]
    return sorted(directories, key=lambda path: int(path.name))


def remove_or_warn(directory: Path) -> None:
    """Removes a directory that is no longer needed; if that fails, says so on stderr and leaves it."""
    try:
        remove_directory(directory)
    except OSError as error:
        warn(f"{directory} is no longer needed and cannot be removed ({error.strerror or error})")
