"""What the command line answers: help, versions, errors of the user's and faults of the program."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from score_diffusion import __version__
from score_diffusion.run import main
from score_diffusion.run.commands import data, sample
from score_diffusion.run.errors import UserError
from score_diffusion.sde_lib import InputError

ROOT = Path(__file__).resolve().parents[2]


def raising(error: BaseException):
    def command(*_: object) -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UserError("do this"), "error: do this"),
        (InputError("of the\nlibrary"), "error: of the library"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.txt"), "error: No such file: a.txt"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "error: No space left on device (free some space)",
        ),
    ],
)
def test_an_error_of_the_users_is_one_sentence(error: Exception, sentence: str, monkeypatch, capsys):
    monkeypatch.setattr(data, "data", raising(error))
    assert main.main(["--mode", "data"]) == 2
    assert capsys.readouterr().err == sentence + "\n"


@pytest.mark.parametrize(
    "error", [ValueError("of NumPy"), KeyError("key"), RuntimeError("of torch"), OSError("without a file")]
)
def test_any_other_error_keeps_its_traceback(error: Exception, monkeypatch, capsys):
    monkeypatch.setattr(data, "data", raising(error))
    assert main.main(["--mode", "data"]) == 1
    first, *rest = capsys.readouterr().err.splitlines()
    assert "Please report this" in first and __version__ in first
    assert rest[0].startswith("Traceback") and type(error).__name__ in rest[-1]


def test_a_fault_inside_a_command_is_no_error_of_the_users(trained: Path, monkeypatch, capsys):
    """A ValueError of torch or NumPy that nobody expected."""
    monkeypatch.setattr(sample, "draw_and_save", raising(ValueError("operands could not be broadcast")))
    assert main.main(["--mode", "sample", "--workdir", str(trained)]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupted(monkeypatch, capsys):
    monkeypatch.setattr(data, "data", raising(KeyboardInterrupt()))
    assert main.main(["--mode", "data"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_too_little_memory_on_a_device_is_explained(monkeypatch, capsys):
    import torch

    monkeypatch.setattr(data, "data", raising(torch.OutOfMemoryError("tried to allocate 2 GiB")))
    assert main.main(["--mode", "data"]) == 2
    assert "lower data.memory_gib or data.image_size (tried to allocate" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(flag: str, capsys):
    assert main.main([flag]) == 0
    output = capsys.readouterr().out
    assert "--help_config" in output and "--mode train --config vpsde" in output


def test_version(capsys):
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"score-diffusion {__version__}\n"


def test_the_answers_do_not_wait_for_torch():
    code = (
        "import sys; from score_diffusion.run.main import main;"
        "main(['--help']); main(['--version']); main(['--mode=trian']); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--sampler" in done.stdout, done.stderr


def test_a_terminal_of_another_encoding_shows_the_rest_of_the_text(monkeypatch):
    """Greek letters in a line cut off all that followed."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "argv", ["main.py", "--help_config", "training.p_mean"])
    assert main.main() == 0
    stream.flush()
    assert b"mean of log(?/?) for times=lognormal" in raw.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--version"], ["--help_config", "sde"]])
def test_the_script_writes_what_an_ascii_terminal_can_show(arguments: list[str]):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "run/main.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_home_directories_are_expanded(tmp_path: Path, tiny: str, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text(Path(tiny).read_text())
    monkeypatch.chdir(tmp_path)
    assert main.main(["--mode=data", "--config=~/mine.py", "--workdir=~/run"]) == 0
    assert (tmp_path / "run/data.png").exists() and not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode=convert", "--to=diffusers", "out", "--config.nonsense.key=1"], "unknown configuration key"),
        (["--mode=convert", "--to=diffusers", "out", "--config.sampling.num_samples=1"], "is not used by"),
        (["--mode=sample", "--config.likelihood.num_images=3"], "is not used by --mode sample"),
        (["--mode=likelihood", "--sampler=pc"], "--config.sampling.sampler is not used by --mode likelihood"),
        (["--mode=report", "--config.sampling.seed=3"], "is not used by --mode report, which takes no keys"),
        (["--mode=sample", "--config.num_samples=4"], "did you mean sampling.num_samples"),
    ],
)
def test_keys_that_a_mode_does_not_use_are_refused(arguments: list[str], message: str, trained, refused):
    assert message in refused(main.main([*arguments, "--workdir", str(trained)]))


def script(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "run" / "main.py"), *arguments]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode", "trian"], "names, such as train; --help lists all"),
        ([], "--mode is required"),
        (["--mode", "train", "--stepz", "3"], "stepz"),
        (["--mode", "train", "3"], "unknown argument '3'"),
        (["--mode", "train", "--config", "vpsed"], "such as vpsde, "),
        (["--mode", "sample", "--config", "vpsed"], "such as vpsde, "),
        (["--mode", "sample"], "train one first"),
        (["--mode", "train", "--config.training.stepz=3"], "did you mean training.steps"),
        (["--mode", "train", "--config.training.steps=many"], "an integer of at least 1, got 'many'"),
        (["--mode", "train", "--config.training.steps"], "needs a value"),
        (["--mode", "train", "--config.sde.name=vpsd"], "names, such as vpsde, vesde, subvpsde, got 'vpsd'"),
        (["--mode", "train", "--config.sde.name=vesde", "--config.sde.beta_min=1"], "key 'sde.beta_min'"),
        (["--mode", "train", "--config.sde.N=0"], "N must be"),
        (["--mode", "train", "--config.model.name=resnet"], "names, such as unet, got 'resnet'"),
        (["--mode", "train", "--config.model.prediction=x1"], "noise, x0, v, score"),
        (["--mode", "train", "--config.model.channels=7"], "7"),
        (["--mode", "train", "--config.model.multipliers=1,1,1,1,1"], "divisible by 16"),
        (
            ["--mode", "train", "--config.training.weighting=heavy"],
            "one of plain, likelihood, x0, min_snr, edm, got",
        ),
        (["--mode", "train", "--config.data.name=cats"], "digits, captioned_digits"),
        (["--mode", "train", "--config.data.name=moons"], "does not take data of shape (2,); choose mlp"),
        (["--mode", "train", "--config.data.path=none.npz"], "does not exist"),
        (["--mode", "train", "--sampler", "magic", "--dry_run"], "names, such as eabm"),
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
        ("sample", ["--sampler", "magic"], "names, such as eabm"),
        ("sample", ["--sampler=pc", "--config.sampling.pc.predictor=magic"], "euler_maruyama"),
        ("sample", ["--grid=magic"], "clock, early, spread, uniform, quadratic"),
        ("sample", ["--sampler=heun", "--nfe=2"], "one step costs 3 evaluations"),
        ("sample", ["--sampler=ode", "--nfe=20"], "set rtol and atol instead"),
        (
            "sample",
            ["--sampler=pc", "--grid=fitted"],
            "grid=fitted fits the grid and the coefficients of eabm",
        ),
        ("sample", ["--nfe=many"], "nfe"),
        ("sample", ["--config.sampling.ode.method=magic", "--sampler=ode"], "dopri5"),
        ("sample", ["--config.sampling.steps=-1"], "steps"),
        ("sample", ["--sampler=ddpm", "--config.sampling.steps=1000"], "from 1 to 999"),
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
        ("likelihood", ["--config.likelihood.method=magic"], "bound, both"),
        ("likelihood", ["--config.likelihood.dequantization=magic"], "uniform, gaussian"),
        ("likelihood", ["--config.likelihood.bound_draws=0"], "at least 1"),
        ("sample", ["--sampler=pc", "--config.sampling.pc.snr=-1"], "snr"),
        ("sample", ["--config.training.steps=3"], "cannot change after training"),
        ("sample", ["--config.sampling.num=3"], "did you mean"),
        ("likelihood", ["--config.likelihood.divergence=magic"], "hutchinson, hutch++, exact"),
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


@pytest.mark.slow
def test_the_script_runs_from_any_folder_without_installation(tiny: str, tmp_path: Path):
    done = script(tmp_path, "--mode", "train", "--config", tiny, "--config.training.steps=1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/tiny/checkpoints/00000001").is_dir()
    assert done.stdout.rstrip().splitlines()[-1].split() == ["the", "same", "as", "CSV", "runs/tiny/log.csv"]
    failed = script(tmp_path, "--mode", "sample", "--workdir", "nowhere", "--quiet")
    assert failed.returncode == 2 and failed.stdout == "" and failed.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_first_word_comes_before_torch():
    command = [sys.executable, "-X", "importtime", "run/main.py", "--mode", "sample", "--workdir", "nowhere"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said, imported = done.stderr.index("loading PyTorch ..."), re.search(r"\| +torch$", done.stderr, re.M)
    assert done.returncode == 2 and said < imported.start() and "| numpy" not in done.stderr[:said]
