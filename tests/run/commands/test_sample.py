"""--mode sample from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from score_diffusion.run import main
from score_diffusion.samplers import CORRECTORS, PREDICTORS, SAMPLERS


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_sampling_writes_picture_and_array(sampler: str, cli: Callable, trained: Path, capsys):
    assert cli("sample", trained, "--sampler", sampler) == 0
    output = capsys.readouterr().out
    arrays = load(trained / f"samples/{sampler}.npz")
    samples = arrays["samples"]
    assert samples.shape == (5, 1, 8, 8) and samples.dtype == np.float32
    levels = (samples + 1) * 8
    np.testing.assert_allclose(levels, levels.round().clip(0, 16), atol=1e-5)
    assert str(arrays["sampler"]) == sampler and arrays["seed"] == 0 and arrays["training_steps"] == 8
    exact = {"pc": 9, "ald": 6, "cas": 5, "ddpm": 4}  # 4 steps, and a denoising where there is noise left
    per_step = SAMPLERS[sampler].nfe_per_step
    if per_step is None:
        assert arrays["nfe"] > 6
    else:
        assert arrays["nfe"] == exact.get(sampler, 4 * per_step + SAMPLERS[sampler].cost_with({}).extra + 1)
    for name in (f"{sampler}.png", f"{sampler}.npz"):
        assert (trained / "samples" / name).exists() and name in output


def test_samples_do_not_depend_on_the_batch_size_and_files_are_never_overwritten(
    snapshot: Callable, cli: Callable, trained: Path, capsys
):
    assert cli("sample", trained) == 0
    before = snapshot(trained / "samples")
    assert cli("sample", trained, "--config.sampling.batch_size=5") == 0
    assert cli("sample", trained, "--config.sampling.seed", "1") == 0
    after = snapshot(trained / "samples")
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {f"eabm-{k}.{suffix}" for k in (2, 3) for suffix in ("npz", "png")}
    first, second, third = (
        load(trained / f"samples/eabm{suffix}.npz")["samples"] for suffix in ("", "-2", "-3")
    )
    assert np.array_equal(first, second) and np.mean(first != third) > 0.01


def test_nfe_and_grid_from_the_command_line(cli: Callable, trained: Path, capsys):
    for grid, times in (("karras", 9), ("quadratic", 9)):
        assert cli("sample", trained, "--sampler=unipc", "--nfe=10", f"--grid={grid}") == 0
        assert f"{grid}, {times} steps from 1 to 0.001" in capsys.readouterr().out
    assert load(trained / "samples/unipc.npz")["nfe"] == 10
    assert cli("sample", trained, "--sampler=heun", "--nfe=10") == 0
    assert load(trained / "samples/heun.npz")["nfe"] == 9  # four steps of two, and the denoising


@pytest.mark.slow
def test_fitted_solver_is_kept_with_the_run(cli: Callable, trained: Path, capsys, monkeypatch):
    monkeypatch.setattr("score_diffusion.run.inference.fitted_solver.EVALUATIONS", 12_000)
    assert cli("sample", trained, "--nfe=4", "--grid=fitted") == 0
    assert "fitted solver of 3 steps saved" in capsys.readouterr().out
    path = trained / "solvers/eabm-3.json"
    saved = json.loads(path.read_text())
    times = saved["times"]
    assert len(times) == 4 and times[0] == 1 and times[-1] == 1e-3 and times == sorted(times, reverse=True)
    assert saved["error"] <= saved["default_error"]
    assert cli("sample", trained, "--nfe=4", "--grid=fitted") == 0
    assert "fitted solver of" not in capsys.readouterr().out
    first, again = (load(trained / f"samples/eabm{k}.npz")["samples"] for k in ("", "-2"))
    assert (first == again).all()
    path.write_text(json.dumps(saved | {"fitted_to": "other weights"}))
    assert cli("sample", trained, "--nfe=4", "--grid=fitted") == 0
    assert json.loads(path.read_text()) == saved  # fitted again, with the same result
    for damaged in ("{", json.dumps(saved | {"keep": [1.0]})):
        path.write_text(damaged)
        assert cli("sample", trained, "--nfe=4", "--grid=fitted") == 2
        assert "damaged" in capsys.readouterr().err


def test_list_of_samplers(capsys):
    assert main.main(["--mode", "sample", "--sampler", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *SAMPLERS]
    assert "Karras et al., 2022" in next(line for line in lines if line.startswith("edm "))


@pytest.mark.slow
@pytest.mark.parametrize("predictor", list(PREDICTORS))
@pytest.mark.parametrize("corrector", list(CORRECTORS))
def test_every_predictor_and_corrector(
    predictor: str, corrector: str, cli: Callable, trained: Path, refused: Callable
):
    keys = (f"--config.sampling.pc.predictor={predictor}", f"--config.sampling.pc.corrector={corrector}")
    code = cli("sample", trained, "--sampler=pc", *keys, "--config.sampling.num_samples=1")
    if predictor == corrector == "none":
        assert "none" in refused(code)
    else:
        assert code == 0
