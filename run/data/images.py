"""Images that are opened one by one: of a folder, a zip file, an array, or the Hugging Face hub.

Nothing is unpacked to the disk. The pages of a TIFF file are images of their own; of other files with several
frames the first is read.
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from score_diffusion.run.console import progress_bar, warn
from score_diffusion.run.data.decoding import open_image
from score_diffusion.run.errors import UserError

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif",
    ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
PAGED_SUFFIXES = (".tif", ".tiff")
UNREAD_SUFFIXES = (
    ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jxl", ".exr", ".hdr", ".tga", ".dcm", ".psd", ".ico", ".svg",
)  # fmt: skip
MIB = 2**20


class Images(ABC):
    """A sequence of images, which any number of threads may open at a time."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, i: int) -> str:
        """The name of image i in messages."""

    @abstractmethod
    def open(self, i: int) -> Image.Image:
        """Opens image i; its pixels may not be decoded yet. The caller closes it."""

    @abstractmethod
    def fingerprint(self, i: int) -> bytes:
        """Bytes that depend on nothing but the content of image i."""

    def is_page(self, i: int) -> bool:
        """Whether image i is a page of a file whose other pages are images of their own."""
        return False


class FileImages(Images):
    """The images of a folder or an archive, in the order of their files.

    Args:
        path: The folder or archive.
        names: Paths of the image files in it, with / between folders.
        max_megapixels: The most that an image may have.
    """

    def __init__(self, path: Path, names: list[str], max_megapixels: float) -> None:
        self._path, self._names, self._max_megapixels = path, names, max_megapixels
        self._entries = list(self._pages())

    @property
    def paths(self) -> list[PurePosixPath]:
        """The path of each image's file."""
        return [PurePosixPath(self._names[file]) for file, _ in self._entries]

    def __len__(self) -> int:
        return len(self._entries)

    def name(self, i: int) -> str:
        file, page = self._entries[i]
        of_page = "" if page is None else f", page {page + 1},"
        within = "" if self._path == Path() else f" of {self._path}"
        return f"image {self._names[file]}{of_page}{within}"

    def is_page(self, i: int) -> bool:
        return self._entries[i][1] is not None

    def open(self, i: int) -> Image.Image:
        file, page = self._entries[i]
        return open_image(self._file(file), self._max_megapixels, page or 0)

    def fingerprint(self, i: int) -> bytes:
        file, page = self._entries[i]
        return self._fingerprint(file) + (b"" if page is None else page.to_bytes(4, "big"))

    @abstractmethod
    def read(self, name: str, most: int) -> bytes | None:
        """The content of any file next to the images; None if there is no such file.

        Args:
            name: Its path from the folder that the paths of the images start from.
            most: Bytes that it may have.

        Raises:
            Exception: Whatever the file system or the archive raises.
            ValueError: If it has more bytes.
        """

    @abstractmethod
    def _file(self, file: int) -> Path | io.BytesIO:
        """What to open file number `file` by."""

    @abstractmethod
    def _fingerprint(self, file: int) -> bytes:
        """Bytes that depend on nothing but the content of file number `file`."""

    def _pages(self) -> Iterator[tuple[int, int | None]]:
        """The images as (file, page), with no page for files of one image."""
        with progress_bar(len(self._names), "looking for pages", "file", delay=1) as bar:
            for file, name in enumerate(self._names):
                count = self._count(file) if name.lower().endswith(PAGED_SUFFIXES) else 1
                yield from ((file, page if count > 1 else None) for page in range(count))
                bar.update()

    def _count(self, file: int) -> int:
        try:
            with open_image(self._file(file), self._max_megapixels) as image:
                return getattr(image, "n_frames", 1)
        except Exception:  # reported when the file is read
            return 1


class Files(FileImages):
    """Image files that are named one by one.

    Args:
        paths: The files.
        max_megapixels: The most that an image may have.
        folder: The folder that the paths start from.
    """

    def __init__(self, paths: Sequence[Path | str], max_megapixels: float, folder: Path = Path()) -> None:
        super().__init__(folder, [str(path) for path in paths], max_megapixels)

    def read(self, name: str, most: int) -> bytes | None:
        path = self._path / name
        if not path.is_file():
            return None
        with open(path, "rb") as file:
            content = file.read(most + 1)
        _check_bytes(len(content), most)
        return content

    def _file(self, file: int) -> Path:
        return self._path / self._names[file]

    def _fingerprint(self, file: int) -> bytes:
        checksum, size = 0, 0
        with open(self._file(file), "rb") as content:
            while chunk := content.read(MIB):
                checksum, size = zlib.crc32(chunk, checksum), size + len(chunk)
        return size_and_checksum(size, checksum)


class Folder(Files):
    """The image files below a folder, by path.

    Raises:
        UserError: If a folder cannot be read.
    """

    def __init__(self, path: Path, max_megapixels: float) -> None:
        super().__init__(sorted(image_paths(path)), max_megapixels, path)


def image_paths(root: Path) -> Iterator[str]:
    """The paths of the image files below a folder. Each real folder is visited once, whatever links to it.

    Raises:
        UserError: If a folder cannot be read.
    """
    unusual, unread = [], set()
    for path in _files(root):
        name = path.relative_to(root).as_posix()
        if not is_image(name):
            unread |= {path.suffix.lower()} & set(UNREAD_SUFFIXES)
        elif _is_special(path):
            unusual.append(name)
        else:
            yield name
    if unusual:
        warn(f"{root}: {len(unusual)} pipes, sockets or devices are passed over, {unusual[0]} for one")
    if unread:
        warn(f"{root}: files that end in {', '.join(sorted(unread))} are not read; convert them to PNG")


def _files(root: Path) -> Iterator[Path]:
    """All entries below a folder except folders; links are followed last, and to new folders only."""
    folders: list[Path] = [root]
    links: list[Path] = []
    seen = set()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(
                f"folder {folder} cannot be read ({error.strerror}): make it readable, or take it away"
            ) from error
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = folder / entry.name
            if not entry.is_dir():
                yield path
            elif entry.is_symlink():
                links.append(path)
            else:
                folders.append(path)


def _is_special(path: Path) -> bool:
    """Whether a path is a pipe, a socket or a device. A broken link is reported when it is read."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


class Zip(FileImages):
    """The image files in a zip file, by path.

    Args:
        path: The zip file.
        max_megapixels: The most that an image may have.
        max_file_mib: The most that an unpacked file may take.

    Raises:
        UserError: If the file is damaged, or a member's name leads out of it.
    """

    def __init__(self, path: Path, max_megapixels: float, max_file_mib: float) -> None:
        self._max_file_mib = max_file_mib
        try:
            self._archive = zipfile.ZipFile(path)
        except Exception as error:  # zipfile has many kinds for damaged directories
            raise UserError(f"zip file {path} is cut short or damaged ({error}): copy it again") from error
        members = {}
        for member in self._archive.infolist():
            name = member.filename.replace("\\", "/")  # as some programs for Windows write it
            if is_image(name) and not name.startswith("__MACOSX"):
                members[name] = member
        for name, member in members.items():
            # nothing is unpacked to these paths, but they would name classes
            if ".." in PurePosixPath(name).parts or name.startswith("/"):
                raise UserError(
                    f"zip file {path} has a member {member.filename!r} whose name leads out of it: do not "
                    "trust this file, or pack it again with names below one folder"
                )
        names = sorted(members)
        self._members = [members[name] for name in names]
        super().__init__(path, names, max_megapixels)

    def read(self, name: str, most: int) -> bytes | None:
        try:
            member = self._archive.getinfo(name)
        except KeyError:
            return None
        _check_bytes(member.file_size, most)
        return self._content(member)

    def _file(self, file: int) -> io.BytesIO:
        return io.BytesIO(self._content(self._members[file]))

    def _fingerprint(self, file: int) -> bytes:
        member = self._members[file]
        return size_and_checksum(member.file_size, member.CRC)  # those of the content, unread

    def _content(self, member: zipfile.ZipInfo) -> bytes:
        if member.file_size > self._max_file_mib * MIB:
            raise ValueError(
                f"it takes {member.file_size / MIB:.4g} MiB unpacked, above "
                f"data.max_file_mib={self._max_file_mib:g}"
            )
        return self._archive.read(member)


def _check_bytes(size: int, most: int) -> None:
    if size > most:
        raise ValueError(f"it has more than {most:,} bytes")


def is_image(name: str) -> bool:
    """Whether a path has the suffix of an image, and no part of it is hidden."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") and part != ".." for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def size_and_checksum(size: int, checksum: int) -> bytes:
    """A fingerprint of a file's content."""
    return size.to_bytes(8, "big") + checksum.to_bytes(4, "big")
