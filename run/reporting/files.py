"""What a page shows of the files of a run, which may be somebody else's: no content that a link leads to."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from score_diffusion.run import web_page
from score_diffusion.run.errors import UserError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGEST_FILE = 2**25  # bytes, of a picture or of arrays


def picture(path: Path, workdir: Path, caption: str = "") -> str:
    """A picture of the run with its caption, or why it cannot be shown."""
    try:
        data = content(path, workdir)
    except (OSError, UserError) as error:
        return unreadable(error)
    if not data.startswith(PNG_SIGNATURE):
        return web_page.paragraph(f"{path.name} is no picture")
    return web_page.image(data, "png", caption or path.name)


def png_width(path: Path, workdir: Path) -> int:
    """The width of a picture of the run in pixels; 0 of what is none."""
    with contextlib.suppress(OSError, UserError):
        return int.from_bytes(content(path, workdir)[16:20], "big")  # the header's first field
    return 0


def pictures(paths: Iterable[Path], workdir: Path, wide: bool = False) -> str:
    """Those of some pictures that exist."""
    return web_page.gallery([picture(path, workdir) for path in paths if path.exists()], wide)


def content(path: Path, workdir: Path) -> bytes:
    """The bytes of a file of the run; none of one that is too large.

    Raises:
        UserError: If it is a link out of the run directory.
        OSError: If it cannot be read.
    """
    refuse_link(path, workdir)
    return path.read_bytes() if path.is_file() and path.stat().st_size <= LARGEST_FILE else b""


def numbers(path: Path, workdir: Path, name: str) -> np.ndarray | None:
    """A row of finite numbers in an .npz file of the run; None if there is none."""
    with contextlib.suppress(Exception):  # of zip, of headers of arrays, of memory that they ask for
        with np.load(io.BytesIO(content(path, workdir)), allow_pickle=False) as arrays:
            values = arrays[name]
            if values.dtype.kind == "f" and values.ndim == 1 and len(values) and np.isfinite(values).all():
                return values
    return None


def refuse_link(path: Path, workdir: Path) -> None:
    """Refuses a file that is in another place: whoever made the run may have linked it to a private one.

    Raises:
        UserError: If it is.
    """
    if not path.resolve().is_relative_to(workdir.resolve()):
        raise UserError(f"{path.name} is a link out of the run directory, and is not shown")


def by_number(paths: Iterable[Path]) -> list[Path]:
    """Numbered files in the order of their numbers: a.json, a-2.json, ..., a-10.json."""
    return sorted(paths, key=lambda path: (len(path.name), path.name))


def unreadable(error: Exception) -> str:
    """What is shown in place of something that cannot be read."""
    return web_page.paragraph(f"cannot be read: {error}")


def in_words(name: str) -> str:
    """The name of a field as it is printed."""
    return name.replace("_", " ")


def as_text(value: object) -> str:
    """A value as it is printed."""
    return number(value) if isinstance(value, float) else str(value)


def number(value: float) -> str:
    """A number of up to six digits."""
    return f"{value:.6g}"
