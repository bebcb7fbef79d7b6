"""--mode interpolate from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from score_diffusion import load_run
from score_diffusion.run.commands import interpolate as command
from score_diffusion.run.data.toys import load_digits

FEW = (
    *("--config.interpolate.num_pairs=2", "--config.interpolate.num_samples=3"),
    *("--config.interpolate.rtol=1e-3", "--config.interpolate.atol=1e-3"),
)
FLOW = {"rtol": 1e-3, "atol": 1e-3}
CONDITIONAL = ("--config.training.conditional=True", "--config.training.steps=2")


def load(workdir: Path, name: str = "paths") -> dict[str, np.ndarray]:
    with np.load(workdir / f"interpolated/{name}.npz") as arrays:
        return dict(arrays)


def test_held_out_pairs_come_back_and_the_path_is_that_of_python(cli: Callable, trained: Path, capsys):
    assert cli("interpolate", trained, *FEW) == 0
    assert cli("interpolate", trained, *FEW, "--config.interpolate.batch_size=2") == 0
    output, arrays = capsys.readouterr().out, load(trained)
    assert "2 of 899 samples of held_out" in output and "end points" in output
    images = load_digits().test[:4]
    ends = load_digits().scaling.stored_to_user(images).numpy().reshape(2, 2, 1, 8, 8)
    assert np.array_equal(arrays["ends"], ends) and arrays["names"].tolist() == [["0", "1"], ["2", "3"]]
    assert arrays["samples"].shape == (2, 3, 1, 8, 8) and np.array_equal(arrays["samples"][:, [0, -1]], ends)
    assert 0 < arrays["errors"].max() < 0.03
    assert f"{np.sqrt(np.square(arrays['errors']).mean()):.1e}" in output
    path = load_run(trained).interpolate(images[2, 0].numpy(), images[3, 0].numpy(), 3, **FLOW)
    assert np.array_equal(path.samples, arrays["samples"][1])
    assert np.array_equal(load(trained, "paths-2")["samples"], arrays["samples"])
    with Image.open(trained / "interpolated/paths.png") as picture:
        assert picture.width > 150 and 90 < picture.height < 120  # two rows of three


@pytest.mark.slow
def test_pairs_are_of_the_class_that_the_path_is_conditioned_on(
    cli: Callable, tmp_path: Path, refused: Callable
):
    run = tmp_path / "run"
    assert cli("train", run, *CONDITIONAL) == 0
    labels = load_digits().test_conditions["label"].numpy()
    images = load_digits().scaling.stored_to_user(load_digits().test).numpy()
    for number, (chosen, expected) in enumerate(
        {"--label=all": [0, 1], "--label=7,3": [7, 3], "--label=-1": [-1, -1]}.items(), 1
    ):
        assert cli("interpolate", run, *FEW, chosen) == 0
        arrays = load(run, "paths" if number == 1 else f"paths-{number}")
        assert arrays["label"].tolist() == expected
        indices = arrays["names"].astype(int)
        assert len(set(indices.ravel().tolist())) == 4 and np.array_equal(images[indices], arrays["ends"])
        if chosen != "--label=-1":
            assert (labels[indices] == np.array(expected)[:, None]).all()
    a, b = images[load(run, "paths-2")["names"].astype(int)][1]
    path = load_run(run).interpolate(a, b, 3, label=3, **FLOW)
    assert np.array_equal(path.samples, load(run, "paths-2")["samples"][1])
    assert "got 'cat'" in refused(cli("interpolate", run, *FEW, "--label=cat"))


@pytest.mark.slow
def test_files_and_numbers(cli: Callable, tmp_path: Path, refused: Callable, capsys):
    """Points in units of their own; an odd sample is left out, and far ones do not come back."""
    data, run = tmp_path / "points.npy", tmp_path / "run"
    rng = np.random.default_rng(0)
    np.save(data, np.array([100.0, -3.0]) + rng.normal(size=(500, 2)) * np.array([10.0, 0.1]))
    small = ("--config.training.steps=5", "--config.model.name=mlp")
    assert cli("train", run, f"--config.data.path={data}", *small) == 0
    ends = np.array([[105.0, -3.1], [95.0, -2.9], [100.0, -3.0]])
    np.save(tmp_path / "ends.npy", ends)
    assert cli("interpolate", run, f"--input={tmp_path}/ends.npy") == 0
    arrays, printed = load(run), capsys.readouterr()
    assert "1 of 3 samples" in printed.out and "warning: the ends" not in printed.err
    assert arrays["samples"].shape == (1, 10, 2)
    np.testing.assert_allclose(arrays["samples"][0, [0, -1]], ends[:2], rtol=1e-4)
    np.save(tmp_path / "one.npy", ends[:1])
    assert "a path needs two ends" in refused(cli("interpolate", run, f"--input={tmp_path}/one.npy"))


def test_a_single_held_out_sample_makes_no_pair(cli: Callable, tmp_path: Path, refused: Callable):
    data, run = tmp_path / "two.npy", tmp_path / "run"
    np.save(data, np.zeros((2, 4, 4), np.uint8) + np.arange(4, dtype=np.uint8))
    small = ("--config.training.steps=1", "--config.training.held_out=0", "--config.training.batch_size=1")
    assert cli("train", run, f"--config.data.path={data}", *small) == 0
    assert "a pair takes two held-out samples, and there are 1" in refused(cli("interpolate", run))


def test_ends_that_do_not_come_back_are_announced(
    cli: Callable, trained: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(command, "LARGEST_ERROR", 1e-9)
    assert cli("interpolate", trained, *FEW) == 0
    assert "warning: the ends of the paths differ" in capsys.readouterr().err
