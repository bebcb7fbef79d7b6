from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from score_diffusion.run.errors import UserError
from score_diffusion.run.files import (
    absolute_path,
    expanded,
    write_atomic,
    write_numbered,
    write_numbered_json,
)


def test_processes_that_write_at_once_get_different_names(tmp_path: Path):
    """Threads stand for processes: each finds its own bytes under its own name."""

    def write(number: int) -> Path:
        return write_numbered(tmp_path / "samples/pc", ".npz", str(number).encode(), ".png")

    with ThreadPoolExecutor(16) as pool:
        stems = list(pool.map(write, range(64)))
    assert {stem.name for stem in stems} == {"pc", *(f"pc-{n}" for n in range(2, 65))}
    assert [int(stem.with_suffix(".npz").read_text()) for stem in stems] == list(range(64))
    assert len(list((tmp_path / "samples").iterdir())) == 64  # no temporary file is left


def test_a_name_is_taken_by_any_of_its_files(tmp_path: Path):
    (tmp_path / "pc.png").touch()
    (tmp_path / "pc-2.npz").touch()
    assert write_numbered(tmp_path / "pc", ".npz", b"x", ".png") == tmp_path / "pc-3"
    assert write_numbered(tmp_path / "pc", ".npz", b"x") == tmp_path / "pc"
    assert (tmp_path / "pc-2.npz").read_bytes() == b""


def test_numbered_json(tmp_path: Path):
    stem = write_numbered_json(tmp_path / "result", {"a": 1})
    assert json.loads(stem.with_suffix(".json").read_text()) == {"a": 1}


@pytest.mark.parametrize("taken", [False, True])
def test_a_file_system_without_hard_links(taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*paths: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    if taken:
        (tmp_path / "pc.npz").write_bytes(b"old")
    stem = write_numbered(tmp_path / "pc", ".npz", b"new")
    assert stem.name == ("pc-2" if taken else "pc") and stem.with_suffix(".npz").read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 1 + taken


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    write_atomic(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "a", b"new")
    with pytest.raises(OSError, match="No space"):
        write_numbered(tmp_path / "a", "", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch):
    """The operating system names the file in an error of open(), not in one of write()."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as error:
        write_atomic(tmp_path / "a.json", b"{}")
    assert error.value.errno == errno.ENOSPC and "a.json" in error.value.filename
    assert not list(tmp_path.iterdir())


def test_paths_that_lead_nowhere_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="~nosuch/x cannot be found, there is no such home"):
        expanded("~nosuch/x")
    with pytest.raises(UserError, match="null character"):
        expanded("a\0b")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(UserError, match="cannot be followed"):
        absolute_path(str(tmp_path / "a" / "c"))
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UserError, match="cannot be followed"):
        absolute_path("c")
