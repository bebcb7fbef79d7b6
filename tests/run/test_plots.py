from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from score_diffusion.run import plots

ROOT = Path(__file__).resolve().parents[2]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_small_images_are_enlarged_pixel_by_pixel(tmp_path: Path):
    images = np.linspace(-1, 1, 5 * 64).reshape(5, 1, 8, 8)
    plots.save_samples(tmp_path / "grid.png", images)
    grid = pixels(tmp_path / "grid.png")
    assert grid.shape == (2 * (48 + 2) + 2, 3 * (48 + 2) + 2, 3)  # 5 images in 2 rows of 3
    fourth = grid[52:100, 2:50, 0]
    assert (fourth[:6, :6] == fourth[0, 0]).all()
    np.testing.assert_array_equal(fourth[::6, ::6], ((images[3, 0] + 1) * 127.5).round())


def test_images_of_one_name_are_a_row_next_to_it(tmp_path: Path):
    images = np.linspace(-1, 1, 5 * 64).reshape(5, 1, 8, 8)
    names = ["b", "a" * 99, "b", "b", "a" * 99]
    plots.save_samples(tmp_path / "grid.png", images, (-1, 1), names)
    grid = pixels(tmp_path / "grid.png")
    assert grid.shape[0] == 2 * (48 + 2) + 2 and 3 * (48 + 2) + 2 < grid.shape[1] < 600
    plots.save_samples(tmp_path / "bare.png", images[[0, 2, 3, 1, 4]])
    bare, margin = pixels(tmp_path / "bare.png"), grid.shape[1] - (3 * (48 + 2) + 2)
    assert np.array_equal(grid[:, margin:], bare)
    for row in (grid[:52, :margin], grid[52:, :margin]):
        assert row.min() < 100 and row.max() == 255  # there is a name
    assert (grid[:52, :margin] < 200).sum() < (grid[52:, :margin] < 200).sum() / 5  # b is shorter


def test_many_classes_of_few_images_are_side_by_side(tmp_path: Path):
    images = np.linspace(-1, 1, 60 * 64).reshape(60, 1, 8, 8)
    plots.save_samples(tmp_path / "grid.png", images, (-1, 1), [f"class {k}" for k in range(60)])
    height, width, _ = pixels(tmp_path / "grid.png").shape
    assert 0.5 < height / width < 2


@pytest.mark.parametrize("fields", [False, True])
def test_given_images_are_on_the_left_of_their_samples(fields: bool, tmp_path: Path):
    samples, given = np.full((2, 3, 8, 8), 1.0), np.stack([np.full((1, 8, 8), -1.0), np.zeros((1, 8, 8))])
    if fields:
        samples, given = (values[:, :, None].repeat(5, axis=2) for values in (samples, given))
    plots.save_samples(tmp_path / "pairs.png", samples, (-1, 1), ["a", "b"], given)
    plots.save_samples(tmp_path / "bare.png", samples, (-1, 1), ["a", "b"])
    pairs, bare = pixels(tmp_path / "pairs.png"), pixels(tmp_path / "bare.png")
    assert pairs.shape[1] == bare.shape[1] + 48
    left, right = pairs[:, -98:-50], pairs[:, -50:-2]
    assert [left[10, 10, 0], left[60, 10, 0]] == [0, 128] and (right[[10, 60], 10] == 255).all()


def test_captions_stand_below_their_images(tmp_path: Path):
    """Where few images share a name and names are long; a very long one takes several lines."""
    images = np.full((4, 3, 16, 16), -1.0)
    for first in ("a red square", "a red square " * 9):
        names = [first, "a blue circle", "a green cross", "a triangle"]
        plots.save_samples(tmp_path / "grid.png", images, (-1, 1), names)
        grid = pixels(tmp_path / "grid.png")
        assert grid.shape[1] == 2 * (112 + 8) and (grid[4:116, 4:116] == 0).all()
        below = grid[116 : grid.shape[0] // 2 - 4]
        assert (below[:, :120].min(2) < 100).any() and (below[:, 120:].min(2) < 100).any()
        assert (grid[:, 0] == 255).all()


@pytest.mark.parametrize("shape", [(2,), (1,), (2, 9), (1, 3, 8, 8)])
def test_samples_of_any_kind_may_have_names(shape: tuple, tmp_path: Path):
    samples = np.random.default_rng(0).normal(size=(6, *shape))
    plots.save_samples(tmp_path / "named.png", samples, None, ["$x_1$", "_b", "ж\n猫"] * 2)
    plots.save_samples(tmp_path / "bare.png", samples, None)
    assert (
        (pixels(tmp_path / "named.png").shape != pixels(tmp_path / "bare.png").shape)
        or not np.array_equal(pixels(tmp_path / "named.png"), pixels(tmp_path / "bare.png"))
        or shape == (1,)
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_any_number_of_channels_and_values_out_of_range(channels: int, tmp_path: Path):
    plots.save_samples(tmp_path / "grid.png", np.full((1, channels, 60, 50), 7.0))
    assert (pixels(tmp_path / "grid.png")[2:-2, 2:-2] == 255).all()


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_points_of_any_dimension(dimension: int, tmp_path: Path):
    plots.save_samples(tmp_path / "points.png", np.random.default_rng(0).normal(size=(50, dimension)))
    assert pixels(tmp_path / "points.png").std() > 0


def test_numbers_are_shown_by_their_own_range(tmp_path: Path):
    """Which images of grey levels have not: theirs is -1 to 1."""
    images = np.linspace(5000, 6000, 4 * 64).reshape(4, 1, 8, 8)
    plots.save_samples(tmp_path / "own.png", images, None)
    grid = pixels(tmp_path / "own.png")[2:-2, 2:-2]
    assert grid[:40, :40].mean() < 64 and grid[-40:, -40:].mean() > 192
    plots.save_samples(tmp_path / "levels.png", images)
    assert (pixels(tmp_path / "levels.png")[2:40, 2:40] == 255).all()
    plots.save_samples(tmp_path / "constant.png", np.full((1, 2, 60, 50), np.nan), None)  # draws something


@pytest.mark.slow
def test_fields_are_shown_by_their_middle_slices_and_signals_as_curves(tmp_path: Path):
    fields = np.zeros((4, 1, 5, 60, 50))
    fields[:, :, 2] = 1
    plots.save_samples(tmp_path / "fields.png", fields)
    assert (pixels(tmp_path / "fields.png")[2:60, 2:50] == 255).all()
    for n in (1, 3, 40):
        plots.save_samples(tmp_path / "signals.png", np.random.default_rng(0).normal(size=(n, 2, 32)))
        assert pixels(tmp_path / "signals.png").std() > 0


def test_columns_of_different_units_are_both_seen(tmp_path: Path):
    points = np.random.default_rng(0).normal(size=(500, 2)) * [1000, 0.001]
    plots.save_samples(tmp_path / "points.png", points)
    inked = (pixels(tmp_path / "points.png")[..., :3].min(-1) < 200).any(0)
    assert inked.mean() > 0.5  # of the width, which a column of equal units would not fill


def test_curves(tmp_path: Path):
    plots.save_loss_curve(tmp_path / "loss.png", [1, 10, 100], [1.0, 0.5, 0.1])
    plots.save_histogram(tmp_path / "histogram.png", np.arange(30.0), "bits/dim")
    plots.save_histogram(tmp_path / "two.png", {"a": np.arange(30.0), "b": np.ones(5)}, "bits/dim")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["histogram.png", "loss.png", "two.png"]


@pytest.mark.slow
def test_every_mode_draws_where_a_notebook_names_a_backend_that_is_not_installed(tiny: str, tmp_path: Path):
    """Jupyter, Colab and Kaggle set MPLBACKEND, which importing matplotlib refused."""
    code = (
        "import os\n"
        "from score_diffusion.run.main import main\n"
        f"common = ['--workdir', {str(tmp_path / 'run')!r}, '--config', {tiny!r}]\n"
        "for mode in ('data', 'train', 'sample', 'likelihood', 'evaluate', 'report'):\n"
        "    assert main(['--mode', mode, *common]) == 0, mode\n"
        "assert os.environ['MPLBACKEND'] == 'module://matplotlib_inline.backend_inline'\n"
    )
    environment = {
        **os.environ,
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_table_of_images_shows_what_is_missing_in_blue(tmp_path: Path):
    truth = np.linspace(-1, 1, 2 * 64).reshape(2, 1, 8, 8)
    measured, deviation = truth.copy(), np.zeros_like(truth)
    plots.save_image_table(tmp_path / "a.png", "title", {"truth": truth, "deviation": deviation}, {})
    measured[..., :4] = np.nan
    notes = {"measurement": ["one", "two"]}
    plots.save_image_table(tmp_path / "b.png", "title", {"truth": truth, "measurement": measured}, notes)
    missing = np.round(255 * np.array(plots.MISSING)).astype(int)
    shares = [
        (np.abs(pixels(tmp_path / f"{name}.png")[..., :3].astype(int) - missing).max(-1) <= 1).mean()
        for name in "ab"
    ]
    assert shares[0] == 0 and 0.1 < shares[1] < 0.3


def test_colour_images_of_any_sizes_and_fields_have_a_place_in_a_table(tmp_path: Path):
    columns = {
        "truth": np.zeros((3, 3, 9, 9)),
        "small": np.ones((3, 1, 3, 4)),
        "cube": np.ones((3, 1, 4, 5, 5)),
    }
    plots.save_image_table(tmp_path / "c.png", "title", columns, {}, limits=None)
    assert pixels(tmp_path / "c.png").ndim == 3


def test_bands_of_points_and_signals(tmp_path: Path):
    for shape in ((2, 5), (1, 2, 30)):
        mean = np.random.default_rng(0).normal(size=shape)
        plots.save_bands(tmp_path / "bands.png", "title", mean, np.ones(shape), mean + 1)
        plots.save_bands(tmp_path / "bare.png", "title", mean, np.ones(shape), None)
        assert not np.array_equal(pixels(tmp_path / "bands.png"), pixels(tmp_path / "bare.png"))


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 20), (1, 4, 4), (3, 4, 4), (1, 4, 5, 6)])
def test_paths_of_any_samples_are_rows_of_their_names(shape: tuple, tmp_path: Path):
    paths = np.random.default_rng(0).normal(size=(3, 4, *shape)).astype(np.float32)
    plots.save_paths(tmp_path / "a.png", paths, None, ["0 – 1", "$x – _y", "a, " * 20])
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 150 and len(picture.getcolors(1_000_000)) > 10


def test_a_path_of_images_is_shown_pixel_by_pixel(tmp_path: Path):
    """Also where two paths have the same name."""
    levels = np.arange(8, dtype=np.float32).reshape(2, 4, 1, 1, 1) / 7 * np.ones((1, 1, 1, 2, 2), np.float32)
    plots.save_paths(tmp_path / "a.png", levels, (0, 1), ["same", "same"])
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    width = pixels.shape[1] - 4 * 50 - 2  # of the names
    middles = pixels[26::50, width + 26 :: 50, 0]
    assert np.array_equal(middles, (levels[..., 0, 0, 0] * 255).round())


def test_points_at_one_place_of_a_logarithmic_axis_are_seen():
    lines = {"a": plots.ErrorBars([0.06], [1.0], [0.1]), "b": plots.ErrorBars([0.06], [2.0], [0.1])}
    figure = plots.error_curves({"seconds": lines}, "distance")
    plots.png(figure)
    low, high = figure.axes[0].get_xlim()
    assert low < 0.05 and high > 0.07 and figure.axes[0].get_xscale() == "log"
    assert [tick for tick in figure.axes[0].get_xticks() if low < tick < high] == [0.06]
