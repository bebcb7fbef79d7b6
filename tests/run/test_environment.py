"""Odd surroundings: each works, or one sentence says what is wrong."""

from __future__ import annotations

import os
import resource
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from score_diffusion.run.checkpoints import checkpoint
from tests.run.conftest import TINY
from tests.run.processes import Finished, job

FEW = ("--config.sampling.num_samples=2",)


@pytest.fixture
def read_only(trained: Path) -> Iterator[Path]:
    """A run directory in which nothing can be written."""
    paths = [trained, *trained.rglob("*")]
    for path in paths:
        path.chmod(stat.S_IREAD | (stat.S_IEXEC if path.is_dir() else 0))
    if os.access(trained, os.W_OK):
        pytest.skip("this user may write everywhere")
    yield trained
    for path in paths:
        path.chmod(stat.S_IRWXU)


@pytest.mark.slow
def test_a_read_only_run_is_sampled_and_scored(
    read_only: Path, cli: Callable, tmp_path: Path, snapshot: Callable, refused: Callable
):
    before, output = snapshot(read_only), f"--config.sampling.output={tmp_path / 'mine/here'}"
    for mode, arguments in {"sample": FEW, "likelihood": (), "evaluate": FEW}.items():
        assert "name a folder for results" in refused(cli(mode, read_only, *arguments))
        assert cli(mode, read_only, *arguments, output) == 0
    assert snapshot(read_only) == before
    written = {str(path.relative_to(tmp_path / "mine/here")) for path in tmp_path.glob("mine/here/**/*")}
    assert {"samples/eabm.npz", "likelihood.json", "evaluation.json"} <= written
    assert "cannot be written" in refused(cli("sample", read_only, f"--config.sampling.output={read_only}/x"))


@pytest.mark.slow
def test_results_may_go_elsewhere(cli: Callable, trained: Path, tmp_path: Path, snapshot: Callable, refused):
    before, output = snapshot(trained), f"--config.sampling.output={tmp_path / 'mine'}"
    assert cli("sample", trained, output, *FEW) == 0
    assert cli("likelihood", trained, output) == 0
    assert snapshot(trained) == before
    assert {path.name for path in (tmp_path / "mine").iterdir()} >= {"samples", "likelihood.json"}
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        wrong = cli("sample", trained, f"--config.sampling.output={tmp_path / place}")
        assert "cannot be written: name a folder" in refused(wrong)


def alone(argv: list[str], folder: Path, prepare: Callable[[], None]) -> Finished:
    """Runs a command in a process that was prepared for it."""
    return job(1, argv, folder / "said", prepare)


def without_home() -> None:
    os.environ.pop("HOME", None)
    os.environ.pop("USER", None)


def in_a_deleted_folder() -> None:
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    os.rmdir(folder)


def with_small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))


def with_few_open_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (without_home, None),
        (in_a_deleted_folder, "the working directory was deleted"),
        (with_small_files, "would exceed the limit on the size of files, training stopped"),
        (with_few_open_files, "raise the limit on open files (ulimit -n)"),
    ],
)
def test_training_in_odd_surroundings(prepare: Callable[[], None], sentence: str | None, tmp_path: Path):
    argv = ["--mode", "train", "--config", TINY, "--workdir", str(tmp_path / "run")]
    done = alone([*argv, "--config.training.steps=2"], tmp_path, prepare)
    assert "Traceback" not in done.err[0]
    if sentence is None:
        assert done.codes == [0] and checkpoint.latest(tmp_path / "run").step == 2
    else:
        assert done.codes == [2] and sentence in done.err[0].splitlines()[-1]


@pytest.mark.slow
def test_classes_of_any_name(cli: Callable, tmp_path: Path, capsys):
    """Names that are not UTF-8, hold a line break, or look like HTML."""
    rng = np.random.default_rng(0)
    for name in (b"\xff\xfe", b"two\nlines", b"<b>", "\u202eevil".encode()):
        folder = tmp_path / "data" / os.fsdecode(name)
        folder.mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{i}.png")
    conditional = ("--config.training.conditional=true", "--config.training.steps=2")
    data = (f"--config.data.path={tmp_path / 'data'}", "--config.training.batch_size=4")
    workdir = tmp_path / "run"
    assert cli("train", workdir, *data, *conditional) == 0
    assert cli("sample", workdir, *FEW) == cli("report", workdir) == cli("data", workdir) == 0
    output = capsys.readouterr().out
    assert "two\nlines" not in output and "\u202e" not in output
