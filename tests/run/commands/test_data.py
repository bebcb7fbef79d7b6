from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from score_diffusion.run.data.info import is_data_picture


def test_data_are_looked_at_before_training_in_the_same_directory(
    cli: Callable, tmp_path: Path, refused: Callable
):
    """The pictures of --mode data are no part of a run; anything else in the directory is somebody's."""
    workdir = tmp_path / "run"
    assert cli("data", workdir) == cli("data", workdir) == 0
    assert {path.name for path in workdir.iterdir()} == {"data.png", "data-2.png"}
    assert cli("train", workdir) == 0
    assert (workdir / "data-2.png").exists()
    (tmp_path / "album").mkdir()
    (tmp_path / "album/holiday.png").write_bytes(b"")
    assert "is not empty" in refused(cli("train", tmp_path / "album"))


def test_pictures_of_data_are_known_by_name():
    assert all(is_data_picture(Path(name)) for name in ("data.png", "data-2.png", "x/data-10.png"))
    assert not any(
        is_data_picture(Path(name)) for name in ("data.json", "my-data.png", "data-.png", "data.png.d")
    )
