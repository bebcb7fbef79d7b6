"""What the command line answers: help, versions, errors of the user's and faults of the program."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

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
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device"),
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
    assert "take smaller batches: tried to allocate" in capsys.readouterr().err


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
        (["--mode=sample", "--config.num_samples=4"], "did you mean 'sampling.num_samples'"),
    ],
)
def test_keys_that_a_mode_does_not_use_are_refused(arguments: list[str], message: str, trained, refused):
    assert message in refused(main.main([*arguments, "--workdir", str(trained)]))
