"""Films and strips of every kind of samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from score_diffusion.run import film

SHAPES = {"points": (2,), "numbers": (1,), "signals": (1, 30), "images": (3, 6, 8), "fields": (1, 4, 6, 8)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_every_kind_of_samples(shape: tuple[int, ...], tmp_path: Path):
    count = 60 if len(shape) > 2 else 3  # figures of points and signals take longer
    frames = np.random.default_rng(0).normal(size=(count, 8, *shape)).astype(np.float32)
    film.save_film(tmp_path / "film.gif", frames, None)
    film.save_strip(tmp_path / "strip.png", frames, None)
    with Image.open(tmp_path / "film.gif") as picture:
        assert picture.n_frames == min(count, film.FRAMES)  # type: ignore[attr-defined]
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.width > 1.5 * strip.height


def test_a_row_of_a_strip_shows_one_sample_over_time(tmp_path: Path):
    """Brightness grows with time and differs between samples."""
    time, sample = np.linspace(-1, 1, 5)[:, None], np.array([0.0, -0.5])
    frames = np.broadcast_to((time + sample)[:, :, None, None, None], (5, 2, 1, 48, 48))
    film.save_strip(tmp_path / "strip.png", frames, (-1, 1))
    pixels = np.asarray(Image.open(tmp_path / "strip.png").convert("L")).astype(float)
    centres = pixels[np.ix_([26, 76], [26 + 50 * k for k in range(5)])]
    expected = ((time + sample).T.clip(-1, 1) + 1) * 127.5
    np.testing.assert_allclose(centres, expected, atol=1)
