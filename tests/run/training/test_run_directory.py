"""A run directory as training finds it: in use, trained, with leftovers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from score_diffusion.run.errors import UserError
from score_diffusion.run.training.run_directory import (
    LOCK_FILE,
    PROGRESS_FILE,
    locked,
    move_leftovers_aside,
    preview_path,
    record_progress,
    refuse_if_checkpoints_vanished,
    refuse_if_locked,
)

ROOT = Path(__file__).parents[3]


def test_a_directory_is_locked_by_one_training_at_a_time(tmp_path: Path):
    workdir = tmp_path / "run"
    refuse_if_locked(workdir)
    assert not workdir.exists()
    with locked(workdir):
        with pytest.raises(UserError, match=f"another training is running in .*process {os.getpid()} on "):
            refuse_if_locked(workdir)
        with pytest.raises(UserError, match="wait for it, stop it, or give another --workdir"):
            with locked(workdir):
                raise AssertionError("two trainings hold the lock")
    refuse_if_locked(workdir)
    with locked(workdir):
        pass


def test_of_many_trainings_that_start_at_once_one_gets_the_directory(tmp_path: Path):
    release, outcomes = threading.Event(), []

    def start() -> None:
        try:
            with locked(tmp_path):
                outcomes.append("locked")
                release.wait(10)
        except UserError:
            outcomes.append("refused")

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    while len(outcomes) < 8 and any(thread.is_alive() for thread in threads):
        release.wait(0.01)
    release.set()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["locked", *["refused"] * 7]


@pytest.mark.slow
def test_the_lock_of_a_killed_process_is_free(tmp_path: Path):
    code = (
        "import sys, os, signal; from pathlib import Path\n"
        "from score_diffusion.run.training.run_directory import locked\n"
        "with locked(Path(sys.argv[1])):\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment)
    assert done.returncode == -9
    assert re.search(r"process \d+ on ", (tmp_path / LOCK_FILE).read_text())
    with locked(tmp_path):
        pass
    assert (tmp_path / LOCK_FILE).read_text() == ""


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import fcntl

    def unsupported(*arguments: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with locked(tmp_path):
        pass
    assert "cannot be locked (Function not implemented)" in capsys.readouterr().err


def test_a_run_knows_that_it_has_trained(tmp_path: Path):
    refuse_if_checkpoints_vanished(tmp_path)
    record_progress(tmp_path, 4000)
    with pytest.raises(UserError, match="was trained up to step 4,000, and no checkpoint is found in"):
        refuse_if_checkpoints_vanished(tmp_path)
    for damage in ("", "[]", '{"step": null}', "\x00", "[" * 100_000):
        (tmp_path / PROGRESS_FILE).write_text(damage)
        with pytest.raises(UserError, match="progress.json is damaged"):
            refuse_if_checkpoints_vanished(tmp_path)


def test_leftovers_are_moved_aside_and_nothing_else(tmp_path: Path):
    assert move_leftovers_aside(tmp_path) is None
    ours = (
        "log.jsonl",
        "snapshots/00000002/averages.safetensors",
        "samples/step_00000002.png",
        "skipped/a.npz",
    )
    others = ("samples/pc.png", "notes.txt", "checkpoints/x", "leftovers-1")
    for name in (*ours, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    folder = move_leftovers_aside(tmp_path)
    assert folder == tmp_path / "leftovers-2"
    for name in ours:
        assert not (tmp_path / name).exists() and (folder / name).read_text() == name
    for name in others:
        assert (tmp_path / name).read_text() == name
    assert preview_path(tmp_path, 2) == tmp_path / "samples/step_00000002.png"
