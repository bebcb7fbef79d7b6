"""Captions of a user's own images: what a folder, a zip file or a data set of the hub says about each.

    metadata.jsonl      next to the images or in a folder above them; a JSON object per line with file_name,
                        relative to the folder of this file, and text (Hugging Face's convention)
    NAME.txt            next to NAME.png, the caption as UTF-8
    a column `text`     of a data set of the Hugging Face hub

Either all images have a caption, or none has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

import numpy as np

from score_diffusion.run.console import warn
from score_diffusion.run.data.images import FileImages
from score_diffusion.run.errors import UserError
from score_diffusion.run.json_files import parse_json
from score_diffusion.run.key_types import Values

METADATA = "metadata.jsonl"
LARGEST_METADATA, LARGEST_TEXT = 2**28, 2**16  # bytes of a metadata.jsonl, and of a caption

Read = Callable[[str, int], bytes | None]
"""`read(path, most)`: the content of a file of at most so many bytes; None if there is none."""


def captions_of_files(images: FileImages, source: object) -> np.ndarray | None:
    """The caption of each image, str (N,); None if the images come without.

    Raises:
        UserError: If only some images have one, or one cannot be read.
    """
    paths = images.paths
    found = _of_metadata(paths, images.read, source)
    if found is None:
        found = _of_text_files(paths, images.read, source)
    if found is None:
        return None
    missing = [path for path, caption in zip(paths, found, strict=True) if caption is None]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(paths)} images of {source} have no caption, {missing[0]} for one: give "
            f"each a caption in {METADATA} or a .txt next to it, or take the captions of the others away"
        )
    return checked_captions([str(caption) for caption in found], [str(path) for path in paths])


def checked_captions(captions: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Captions as an array of str, (N,), without space around them.

    Args:
        captions: The captions.
        names: What each is the caption of, in a message.

    Raises:
        UserError: If one is empty or very long.
    """
    stripped = [caption.strip() for caption in captions]
    for name, caption in zip(names, stripped, strict=True):
        if not caption or len(caption) > LARGEST_TEXT:
            problem = f"has {len(caption):,} characters, above {LARGEST_TEXT:,}" if caption else "is empty"
            raise UserError(f"the caption of {name} {problem}: change it, or remove the image")
    return np.array(stripped, dtype=object)


def _of_metadata(paths: Sequence[PurePosixPath], read: Read, source: object) -> list[str | None] | None:
    """The captions that the metadata.jsonl files in folders above the images have."""
    captions: dict[PurePosixPath, str] = {}
    any_file = False
    for folder in sorted({parent for path in paths for parent in path.parents}):
        name = (folder / METADATA).as_posix()
        content = _content(read, name, LARGEST_METADATA, source)
        if content is None:
            continue
        lines = _parsed(_as_text(content, f"{name} of {source}"), f"{name} of {source}")
        if lines is None:
            warn(f"{name} of {source} has no text on its first line: it is not used")
            continue
        any_file = True
        captions |= {folder / file_name: text for file_name, text in lines.items()}
    return [captions.get(path) for path in paths] if any_file else None


def _parsed(content: str, name: str) -> dict[str, str] | None:
    """Captions by file; None if the first line has no text."""
    captions: dict[str, str] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            if not captions and "text" not in parse_json(line, {}):
                return None
            record = parse_json(line, {"file_name": Values(kind=str), "text": Values(kind=str)})
        except ValueError as error:
            raise UserError(f"line {number} of {name} is wrong ({error}): correct it") from error
        captions[record["file_name"].replace("\\", "/")] = record["text"]
    return captions


def _of_text_files(paths: Sequence[PurePosixPath], read: Read, source: object) -> list[str | None] | None:
    """The captions in .txt files next to the images."""
    found: list[str | None] = []
    for path in paths:
        name = path.with_suffix(".txt").as_posix()
        content = _content(read, name, LARGEST_TEXT, source)
        found.append(None if content is None else _as_text(content, f"{name} of {source}"))
    return found if any(caption is not None for caption in found) else None


def _content(read: Read, name: str, most: int, source: object) -> bytes | None:
    try:
        return read(name, most)
    except Exception as error:  # of the file system, of the archive
        raise UserError(f"{name} of {source} cannot be read ({error}): take it away") from error


def _as_text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 ({error.reason} at byte {error.start}): convert it") from error
