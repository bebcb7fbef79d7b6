"""Paths that users write, and files that a crash, a full disk, a second run leave neither torn nor lost."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from itertools import count
from pathlib import Path

from score_diffusion.run.errors import UserError


def expanded(path: str) -> Path:
    """A path with its ~ replaced, as no shell does after the = of a flag.

    Raises:
        UserError: If it can be no path: it has a null character, or ~ stands for nobody's home.
    """
    if "\0" in path:
        raise UserError(f"{path!r} is no path: it has a null character")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{path} cannot be found, there is no such home directory: write the path in full"
        ) from error


def default_workdir(config: str) -> Path:
    """The run directory of an experiment, by its name or file, where none is given."""
    return Path("runs", Path(config).stem.replace(":", "_"))


def absolute_path(path: str) -> Path:
    """An expanded path with its links followed, as it holds in any folder.

    Raises:
        UserError: If it can be no path, its links lead in a circle, or the working directory was deleted.
    """
    try:
        return expanded(path).resolve()
    except (RuntimeError, OSError) as error:
        raise UserError(f"{path} cannot be followed ({error}): give another path") from error


def file_digest(path: Path) -> str:
    """A digest of a file's content; "" if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def is_writable(folder: Path) -> bool:
    """Whether files can be written to a folder, which is created with its parents if need be."""
    existing = next((path for path in (folder, *folder.absolute().parents) if path.exists()), folder)
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def write_durable(path: Path, data: bytes) -> None:
    """Writes and flushes to the disk, so that a later rename cannot expose an empty file.

    Raises:
        OSError: With the name of the file, which the error of a full disk lacks.
    """
    try:
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Writes `data` under a temporary name, then renames it: readers see the old or the new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_durable(temporary, data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: dict) -> None:
    write_atomic(path, _json(value))


def write_numbered(stem: Path, suffix: str, data: bytes, *others: str) -> Path:
    """Writes `data` as stem + suffix, or as stem-2, stem-3, ...: the first of these that is not taken.

    A name is taken where a file with it and `suffix` or one of `others` exists. Processes that write at the
    same time get different names, and readers never see a part of the file.

    Returns:
        The stem that was chosen, without the suffix.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    temporary = stem.with_name(f".{stem.name}{suffix}.{os.getpid()}-{threading.get_ident()}")
    try:
        write_durable(temporary, data)
        for number in count(1):
            chosen = stem if number == 1 else stem.with_name(f"{stem.name}-{number}")
            taken = any(chosen.with_name(chosen.name + other).exists() for other in others)
            if not taken and _rename_if_free(temporary, chosen.with_name(chosen.name + suffix)):
                return chosen
    finally:
        temporary.unlink(missing_ok=True)
    raise AssertionError("unreachable: count() does not end")


def write_numbered_json(stem: Path, value: dict, *others: str) -> Path:
    """Writes a .json file as `write_numbered` does."""
    return write_numbered(stem, ".json", _json(value), *others)


def _json(value: dict) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _rename_if_free(path: Path, target: Path) -> bool:
    """Renames a file unless the target exists, which no other process can create in between."""
    try:
        os.link(path, target)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        try:
            open(target, "xb").close()
        except FileExistsError:
            return False
        try:
            os.replace(path, target)
        except OSError:
            target.unlink()
            raise
    return True
