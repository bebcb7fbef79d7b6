from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from score_diffusion.run.main import main

TINY = str(Path(__file__).parent / "tiny.py")


@pytest.fixture
def tiny() -> str:
    """What to give to --config for an experiment that trains in a second."""
    return TINY


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder with its content."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }

    return read


@pytest.fixture
def same() -> Callable[[object, object], bool]:
    """Equality of nested containers of tensors, bit for bit."""

    def check(a: object, b: object) -> bool:
        if isinstance(a, torch.Tensor):
            return torch.equal(a, b)
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(check(a[key], b[key]) for key in a)
        if isinstance(a, list | tuple):
            return len(a) == len(b) and all(map(check, a, b))
        return a == b

    return check


@pytest.fixture
def log_of() -> Callable[[Path], dict[int, dict]]:
    """The last row of each step in a run's log, without what the clock decides."""

    def read(workdir: Path) -> dict[int, dict]:
        rows = {}
        for line in (workdir / "log.jsonl").read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # torn by a kill
                continue
            rows[row["step"]] = {key: row[key] for key in row if key not in ("seconds", "steps_per_second")}
        return rows

    return read


@pytest.fixture
def cli() -> Callable[..., int]:
    """Runs a command on the tiny experiment in this process and returns its exit code."""

    def run(mode: str, workdir: Path, *arguments: str) -> int:
        return main(["--mode", mode, "--config", TINY, "--workdir", str(workdir), *arguments])

    return run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a finished training; use `trained` for a copy to work in."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert main(["--mode", "train", "--config", TINY, "--workdir", str(workdir)]) == 0
    return workdir


@pytest.fixture
def trained(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "trained"))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[int], str]:
    """Checks that a command ended as a user's error does, and returns its sentence."""

    def check(code: int) -> str:
        lines = capsys.readouterr().err.strip().splitlines()
        assert code == 2
        assert lines and lines[-1].startswith("error: ")
        assert not any("Traceback" in line for line in lines)
        return lines[-1]

    return check
