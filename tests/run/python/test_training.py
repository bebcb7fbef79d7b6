"""`train` from Python is the command, in a script, a notebook or a thread."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from score_diffusion import load_run, train
from score_diffusion.run.config import load_config, read_config
from score_diffusion.run.errors import UserError
from score_diffusion.run.main import main
from score_diffusion.run.setting_files import dotted
from score_diffusion.run.training.loop import TrainingLoop


def weights(workdir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (workdir / "checkpoints/00000008").glob("*.safetensors")}


def test_it_trains_what_the_command_trains(finished_run: Path, tiny: str, tmp_path: Path):
    run = train(tiny, tmp_path / "run")
    assert weights(tmp_path / "run") == weights(finished_run) and run.step == 8


def test_settings_and_resuming(finished_run: Path, tiny: str, tmp_path: Path):
    first = train(tiny, tmp_path / "run", {"training.steps": 4, "training": {"schedule": "constant"}})
    assert first.step == 4
    second = train(load_config(tiny), tmp_path / "run", {"training": {"steps": 6, "schedule": "constant"}})
    assert second.step == 6
    config = read_config(tmp_path / "run")
    assert config.training.schedule == "constant" and config.training.steps == 6
    with pytest.raises(UserError, match="holds a run with other settings"):
        train(tiny, tmp_path / "run", {"training.learning_rate": 1})
    with pytest.raises(UserError) as refusal:
        train("toy2d", tmp_path / "run", {"training.steps": 30})
    message = str(refusal.value)
    assert "data.name is 'digits' there and" in message and "more): give another" in message
    assert "None there and None here" not in message and len(message) < 600


def test_values_are_checked(tiny: str, tmp_path: Path):
    with pytest.raises(UserError, match="'training.steps' must be an integer of at least 1, got 0.5"):
        train(tiny, tmp_path / "run", {"training.steps": 0.5})
    with pytest.raises(UserError, match="'training.step': did you mean training.steps"):
        train(tiny, tmp_path / "run", {"training.step": 1})
    assert not (tmp_path / "run").exists()


def test_settings_may_be_nested():
    assert dotted({"seed": 1, "a": {"b": 2, "c": {"d": 3}}, "e.f": 4}) == [
        *(("seed", 1), ("a.b", 2), ("a.c.d", 3), ("e.f", 4))
    ]


def test_ctrl_c_saves_and_interrupts(tiny: str, tmp_path: Path, monkeypatch):
    advance = TrainingLoop._agree

    def interrupt(loop: TrainingLoop) -> None:
        if loop.trainer.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        advance(loop)

    monkeypatch.setattr(TrainingLoop, "_agree", interrupt)
    with pytest.raises(KeyboardInterrupt, match="SIGINT: call it again to resume"):
        train(tiny, tmp_path / "run")
    assert load_run(tmp_path / "run").step == 2


@pytest.mark.parametrize("call", [main, None])
def test_it_works_in_a_thread(call: Callable | None, tiny: str, finished_run: Path, tmp_path: Path):
    """Where Python allows no signal handlers: a notebook's cell that runs in the background, a server."""
    results: list[object] = []

    def work() -> None:
        if call is None:
            results.append(train(tiny, tmp_path / "run").step)
        else:
            results.append(call(["--mode", "train", "--config", tiny, "--workdir", str(tmp_path / "run")]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [8 if call is None else 0]
    assert weights(tmp_path / "run") == weights(finished_run)


class NotebookStream(io.TextIOBase):
    """What stands for stdout in a notebook: no file and no terminal."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)


def test_it_works_where_the_output_is_no_file(tiny: str, tmp_path: Path, monkeypatch):
    stream = NotebookStream()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    run = train(tiny, tmp_path / "run", {"training.steps": 2})
    assert main(["--mode", "sample", "--workdir", str(tmp_path / "run")]) == 0
    assert run.sample(2)._repr_png_()
    assert "Training finished" in stream.text and "Samples by eabm" in stream.text
