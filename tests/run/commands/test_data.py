from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from score_diffusion.run.data.info import is_data_picture
from score_diffusion.run.main import main


@pytest.mark.slow
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


def test_data_are_inspected(tmp_path: Path, capsys):
    """Count, range, classes, noise levels and a picture; a run in the same folder stays as it is."""
    workdir = ["--mode", "data", "--workdir", str(tmp_path / "d")]
    assert main(workdir) == 0
    output = capsys.readouterr().out
    assert "898 samples of shape (1, 8, 8), 17 grey levels" in output and "0 89, 1 91" in output
    assert "sigma_max" in output and (tmp_path / "d/data.png").exists()
    assert main([*workdir, "--config", "toy2d"]) == 0
    assert "classes     none" in capsys.readouterr().out and (tmp_path / "d/data-2.png").exists()
    for count in (5, 2):  # from images that are all alike no noise levels follow
        np.save(tmp_path / "alike.npy", np.full((count, 8, 8), 7, np.uint8))
        assert main([*workdir, f"--config.data.path={tmp_path / 'alike.npy'}"]) == 0
        assert f"{count - 1} samples of shape (1, 8, 8), 256 grey levels" in capsys.readouterr().out
