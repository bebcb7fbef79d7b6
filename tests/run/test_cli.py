from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from score_diffusion.run import main
from score_diffusion.run.keys import MODES
from score_diffusion.samplers import CORRECTORS, PREDICTORS, SAMPLERS

ROOT = Path(main.__file__).parent.parent


def script(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "run" / "main.py"), *arguments]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


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


def test_fitted_grid_is_kept_with_the_run(cli: Callable, trained: Path, capsys):
    assert cli("sample", trained, "--nfe=4", "--grid=fitted") == 0
    assert "fitted grid of 3 steps saved" in capsys.readouterr().out
    times = json.loads((trained / "grids/eabm-3.json").read_text())["times"]
    assert len(times) == 4 and times[0] == 1 and times[-1] == 1e-3 and times == sorted(times, reverse=True)
    assert cli("sample", trained, "--nfe=4", "--grid=fitted") == 0
    assert "fitted grid of" not in capsys.readouterr().out
    (trained / "grids/eabm-3.json").write_text("{")
    assert cli("sample", trained, "--nfe=4", "--grid=fitted") == 2
    assert "damaged" in capsys.readouterr().err


def test_list_of_samplers(capsys):
    assert main.main(["--mode", "sample", "--sampler", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *SAMPLERS]
    assert "Karras et al., 2022" in next(line for line in lines if line.startswith("edm "))


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


def test_likelihood(cli: Callable, trained: Path, capsys):
    assert cli("likelihood", trained) == 0
    assert "bits/dim" in capsys.readouterr().out
    result = json.loads((trained / "likelihood.json").read_text())
    assert 0 < result["bits_per_dim"] < 20 and 0 < result["standard_error"] < 5
    assert result["num_images"] == 4 and result["nfe"] > 6 and result["seconds"] > 0
    assert (trained / "likelihood.png").exists()
    assert (
        cli("likelihood", trained, "--config.likelihood.batch_size=4", "--config.likelihood.num_images=1")
        == 0
    )
    assert json.loads((trained / "likelihood-2.json").read_text())["standard_error"] is None


def test_likelihood_does_not_depend_on_the_batch_size(cli: Callable, trained: Path, capsys):
    tight = (
        "--config.likelihood.rtol=1e-6",
        "--config.likelihood.atol=1e-6",
        "--config.likelihood.num_images=3",
    )
    for batch_size in (1, 3):
        assert cli("likelihood", trained, *tight, f"--config.likelihood.batch_size={batch_size}") == 0
    one, three = (
        json.loads((trained / name).read_text()) for name in ("likelihood.json", "likelihood-2.json")
    )
    assert one["bits_per_dim"] == pytest.approx(three["bits_per_dim"], abs=1e-3)


def test_evaluate_draws_samples_unless_a_file_of_these_settings_is_there(
    snapshot: Callable, cli: Callable, trained: Path, capsys
):
    assert cli("evaluate", trained) == 0
    assert {"eabm.npz", "eabm.png"} <= set(snapshot(trained / "samples"))
    assert cli("evaluate", trained) == 0
    assert not (trained / "samples/eabm-2.npz").exists()
    assert cli("evaluate", trained, "--config.sampling.num_samples=6") == 0
    assert cli("evaluate", trained, "--config.sampling.seed=1") == 0
    results = [json.loads((trained / f"evaluation{n}.json").read_text()) for n in ("", "-2", "-3", "-4")]
    assert [result["file"] for result in results] == ["eabm.npz", "eabm.npz", "eabm-2.npz", "eabm-3.npz"]
    assert results[0]["samples"] == results[1]["samples"]
    assert results[0]["real"]["frechet_distance"] == pytest.approx(0.293, abs=0.001)
    assert results[0]["samples"].keys() == results[0]["real"].keys()


def test_points_are_trained_sampled_and_scored(tmp_path: Path, capsys):
    common = ["--config", "toy2d", "--workdir", str(tmp_path / "toy")]
    size = ["--config.sampling.num_samples=50", "--config.sampling.steps=5"]
    train = ["--config.training.steps=5", "--config.data.name=moons", "--config.data.num_points=100"]
    assert main.main(["--mode", "train", *common, *train]) == 0
    for mode in ("sample", "evaluate"):
        assert main.main(["--mode", mode, *common, *size]) == 0
    assert main.main(["--mode", "likelihood", *common, "--config.likelihood.num_images=20"]) == 0
    assert load(tmp_path / "toy/samples/eabm.npz")["samples"].shape == (50, 2)
    result = json.loads((tmp_path / "toy/likelihood.json").read_text())
    assert "nats" in capsys.readouterr().out and result["negative_log_likelihood"] > 0


@pytest.mark.parametrize(
    ("array", "arguments"),
    [
        (np.random.default_rng(0).integers(256, size=(20, 12, 8, 3), dtype=np.uint8), []),
        (np.random.default_rng(0).normal(size=(20, 3)), ["--config", "toy2d"]),
    ],
)
def test_the_users_own_data(
    tiny: str, array: np.ndarray, arguments: list[str], tmp_path: Path, monkeypatch, capsys
):
    np.save(tmp_path / "mine.npy", array)
    monkeypatch.chdir(tmp_path)
    arguments = [*(arguments or ["--config", tiny]), "--workdir", "run"]
    training = [
        "--config.data.path",
        "mine.npy",
        "--config.training.steps=2",
        "--config.training.batch_size=4",
    ]
    assert main.main(["--mode", "train", *arguments, *training]) == 0
    sizes = ["--config.sampling.num_samples=3", "--config.sampling.steps=3"]
    monkeypatch.chdir("/")
    assert main.main(["--mode", "likelihood", "--workdir", str(tmp_path / "run")]) == 0
    (tmp_path / "mine.npy").unlink()  # sampling needs the run directory alone
    assert main.main(["--mode", "sample", "--workdir", str(tmp_path / "run"), *sizes]) == 0


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "convert"])
def test_a_dry_run_writes_nothing(
    snapshot: Callable, mode: str, cli: Callable, trained: Path, tmp_path: Path, capsys
):
    workdir = tmp_path / "new" if mode == "train" else trained
    before = snapshot(tmp_path)
    assert cli(mode, workdir, "--dry_run") == 0
    assert snapshot(tmp_path) == before and not (tmp_path / "new").exists()
    output = capsys.readouterr().out
    assert "training.steps = 8" in output and "parameters" in output and "memory" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode", "trian"], "train|sample|likelihood|evaluate"),
        ([], "--mode is required"),
        (["--mode", "train", "--stepz", "3"], "stepz"),
        (["--mode", "train", "3"], "unknown argument '3'"),
        (["--mode", "train", "--config", "vpsed"], "did you mean 'vpsde'"),
        (["--mode", "sample", "--config", "vpsed"], "did you mean 'vpsde'"),
        (["--mode", "sample"], "train one first"),
        (["--mode", "train", "--config.training.stepz=3"], "did you mean 'training.steps'"),
        (["--mode", "train", "--config.training.steps=many"], "an integer of at least 1, got 'many'"),
        (["--mode", "train", "--config.training.steps"], "needs a value"),
        (["--mode", "train", "--config.sde.name=vpsd"], "vpsde, subvpsde, vesde"),
        (["--mode", "train", "--config.sde.name=vesde"], "it takes sigma_min, sigma_max, N"),
        (["--mode", "train", "--config.sde.N=0"], "N must be"),
        (["--mode", "train", "--config.model.name=resnet"], "unet, ncsn"),
        (["--mode", "train", "--config.model.prediction=x1"], "noise, x0, v, score"),
        (["--mode", "train", "--config.model.channels=7"], "7"),
        (["--mode", "train", "--config.model.multipliers=1,1,1,1,1"], "divisible by 16"),
        (["--mode", "train", "--config.training.weighting=heavy"], "plain, likelihood, min_snr, edm"),
        (["--mode", "train", "--config.data.name=cats"], "digits, swiss_roll"),
        (["--mode", "train", "--config.data.name=moons"], "does not take data of shape (2,); choose mlp"),
        (["--mode", "train", "--config.data.path=none.npz"], "does not exist"),
        (["--mode", "train", "--sampler", "magic", "--dry_run"], "choose one of eabm"),
        (["--mode", "train", "--config.training.times=odd"], "continuous, lognormal, discrete, importance"),
        (["--mode", "train", "--config.training.objective=odd"], "dsm, uncertainty, hybrid"),
        (["--mode", "train", "--config.training.objective=hybrid", "--dry_run"], "learned_variance=True"),
        (["--mode", "train", "--config.training.min_snr_gamma=0"], "must be a number above 0"),
        (["--mode", "train", "--config.training.p_std=0"], "must be a number above 0"),
        (["--mode", "train", "--config.training.objective=hybrid"], "model.learned_variance=True"),
        (["--mode", "train", "--config.model.learned_variance=true"], "training.objective=hybrid"),
        (["--mode", "train", "--config", "ddpm", "--config.sde.betas=odd"], "linear, quadratic, cosine"),
        (["--mode", "train", "--config", "ddpm", "--config.sde.N=20"], "use N > 20"),
        (["--mode", "train", "--config", "improved_ddpm", "--config.training.times=continuous"], "discrete"),
        (["--mode", "train", "--config", "improved_ddpm", "--config.training.weighting=likelihood"], "plain"),
        (["--mode", "train", "--config", "ncsn", "--config.model.dilations=1"], "dilations"),
        (["--mode", "train", "--config", "ncsn", "--config.sde.N=many"], "must be an integer, or auto, got"),
        (["--mode", "train", "--config.sde.N=auto"], "'sde.N' must be an integer, got 'auto'"),
        (
            ["--mode", "train", "--config", "toy2d", "--config.sde.N=auto"],
            "'sde.N' must be an integer, got 'auto'",
        ),
        (["--mode", "train", "--config.sampling.nfe=-1"], "must be an integer of at least 0"),
        (["--mode", "train", "--workdir", "file"], "file"),
        (["--mode", "train", "--workdir", "file/below"], "file"),
    ],
)
def test_bad_input_ends_in_one_sentence(
    snapshot: Callable, arguments: list[str], message: str, tmp_path: Path, monkeypatch, refused: Callable
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    assert message in refused(main.main(arguments))
    assert snapshot(tmp_path) == {"file": b"mine"} and list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize(
    ("mode", "arguments", "message"),
    [
        ("sample", ["--sampler", "magic"], "choose one of eabm"),
        ("sample", ["--sampler=pc", "--config.sampling.pc.predictor=magic"], "euler_maruyama"),
        ("sample", ["--grid=magic"], "clock, uniform, quadratic, log_snr"),
        ("sample", ["--sampler=heun", "--nfe=2"], "one step costs 3 evaluations"),
        ("sample", ["--sampler=ode", "--nfe=20"], "set rtol and atol instead"),
        ("sample", ["--sampler=pc", "--grid=fitted"], "fitted for deterministic samplers"),
        ("sample", ["--nfe=many"], "nfe"),
        ("sample", ["--config.sampling.ode.method=magic", "--sampler=ode"], "dopri5"),
        ("sample", ["--config.sampling.steps=-1"], "steps"),
        ("sample", ["--sampler=ddpm", "--config.sampling.steps=1000"], "1..999"),
        ("sample", ["--sampler=ddpm", "--config.sampling.ddpm.variance=magic"], "small, large, learned"),
        ("sample", ["--sampler=ddpm", "--config.sampling.ddpm.variance=learned"], "learned_variance=True"),
        ("sample", ["--sampler=ddim", "--config.sampling.ddim.eta=2"], "eta"),
        (
            "sample",
            ["--config.sampling.pc.snr=0.2"],
            "is an option of sampler 'pc', and the sampler is 'eabm'",
        ),
        ("sample", ["--sampler=ald", "--config.sampling.ald.step_size=x"], "must be a number, or auto"),
        ("sample", ["--sampler=cas", "--config.sampling.cas.step_size=0.5"], "step_size must lie in"),
        ("likelihood", ["--config.likelihood.method=magic"], "ode, bound, both"),
        ("likelihood", ["--config.likelihood.dequantization=magic"], "uniform, gaussian"),
        ("likelihood", ["--config.likelihood.bound_draws=0"], "at least 1"),
        ("sample", ["--sampler=pc", "--config.sampling.pc.snr=-1"], "snr"),
        ("sample", ["--config.training.steps=3"], "cannot change after training"),
        ("sample", ["--config.sampling.num=3"], "did you mean"),
        ("likelihood", ["--config.likelihood.divergence=magic"], "hutchinson, exact"),
        ("likelihood", ["--config.likelihood.rtol=0"], "above 0"),
    ],
)
def test_bad_input_after_training(
    snapshot: Callable,
    mode: str,
    arguments: list[str],
    message: str,
    cli: Callable,
    trained: Path,
    refused: Callable,
):
    before = snapshot(trained)
    assert message in refused(cli(mode, trained, *arguments))
    assert snapshot(trained) == before


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", "config.json"),
        ("data.json", "data.json"),
        ("checkpoints/*/ema.safetensors", "no checkpoint of"),
        ("samples/eabm.npz", "eabm.npz is damaged"),
    ],
)
def test_damaged_run_directories(
    snapshot: Callable, file: str, message: str, cli: Callable, trained: Path, refused: Callable, capsys
):
    assert cli("sample", trained) == 0
    for path in trained.glob(file):
        path.write_bytes(path.read_bytes()[:30])
    before = snapshot(trained)
    assert message in refused(
        cli("evaluate", trained, "--config.sampling.num_samples", "5" if "eabm" in file else "9")
    )
    assert snapshot(trained) == before


def test_an_edited_configuration_does_not_fit_the_weights(cli: Callable, trained: Path, refused: Callable):
    config = trained / "config.json"
    config.write_text(config.read_text().replace('"channels": 8', '"channels": 16'))
    assert "does not fit the model" in refused(cli("sample", trained))


def test_a_full_disk_is_one_sentence(
    snapshot: Callable, cli: Callable, trained: Path, refused: Callable, monkeypatch
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    before = snapshot(trained)
    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(os, "replace", full)
    assert "No space left on device: somewhere" in refused(cli("sample", trained))
    assert snapshot(trained) == before


def test_the_script_runs_from_any_folder_without_installation(tiny: str, tmp_path: Path):
    done = script(tmp_path, "--mode", "train", "--config", tiny, "--config.training.steps=1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/tiny/checkpoints/00000001").is_dir()
    assert done.stdout.rstrip().splitlines()[-1].split() == ["log", "runs/tiny/log.jsonl"]
    failed = script(tmp_path, "--mode", "sample", "--workdir", "nowhere")
    assert failed.returncode == 2 and failed.stdout == "" and failed.stderr.count("\n") == 1


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from score_diffusion.run.main import main; main(['--help']); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--sampler" in done.stdout, done.stderr


def test_data_are_inspected(tmp_path: Path, capsys):
    """Count, range, classes, noise levels and a picture; a run in the same folder stays as it is."""
    workdir = ["--mode", "data", "--workdir", str(tmp_path / "d")]
    assert main.main(workdir) == 0
    output = capsys.readouterr().out
    assert "898 samples of shape (1, 8, 8), 17 grey levels" in output and "0 89, 1 91" in output
    assert "sigma_max" in output and (tmp_path / "d/data.png").exists()
    assert main.main([*workdir, "--config", "toy2d"]) == 0
    assert "classes     none" in capsys.readouterr().out and (tmp_path / "d/data-2.png").exists()
    for count in (5, 2):  # from images that are all alike no noise levels follow
        np.save(tmp_path / "alike.npy", np.full((count, 8, 8), 7, np.uint8))
        assert main.main([*workdir, f"--config.data.path={tmp_path / 'alike.npy'}"]) == 0
        assert f"{count - 1} samples of shape (1, 8, 8), 256 grey levels" in capsys.readouterr().out


def test_flips_are_of_the_seed_and_the_step(tmp_path: Path):
    """Half of the images, the same ones at the same step, and nothing else of the step changes."""
    import torch

    from score_diffusion.run.build import data_options
    from score_diffusion.run.config import apply_overrides, load_config
    from score_diffusion.run.data.load import load_dataset
    from score_diffusion.run.training.trainer import Trainer

    config = apply_overrides(
        load_config(str(Path(__file__).parent / "tiny.py")),
        [("data.flip", "true"), ("training.batch_size", "64")],
    )
    trainer = Trainer(config, load_dataset(data_options(config.data)), torch.device("cpu"))
    draws = [trainer.draw(step) for step in (3, 3, 4)]
    plain = replace(draws[0], mirrored=None, u=torch.zeros_like(draws[0].u))
    once, again, other = (trainer.read(replace(plain, mirrored=draw.mirrored)).x_0 for draw in draws)
    batch = trainer.read(plain).x_0
    assert torch.equal(once, again) and not torch.equal(once, other)
    flipped = [torch.equal(a, b.flip(-1)) and not torch.equal(a, b) for a, b in zip(once, batch, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(once, batch, strict=True)]
    assert all(a or b for a, b in zip(flipped, kept, strict=True)) and 16 < sum(flipped) < 48
