"""The loop: previews that give way, limits, and threads."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.training import loop
from score_diffusion.run.training.previews import Preview
from score_diffusion.run.training.trainer import Trainer

EARLY = "--config.training.sample_every=3"  # a preview between two checkpoints


def before_previews(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    save = Preview.save

    def changed(preview: Preview, path: Path, model: nn.Module, *arguments: object) -> None:
        action()
        save(preview, path, model, *arguments)

    monkeypatch.setattr(Preview, "save", changed)


@pytest.mark.slow
def test_a_preview_gives_way_to_a_signal_and_the_run_resumes_to_the_same_bits(
    cli: Callable,
    finished_run: Path,
    tmp_path: Path,
    same: Callable,
    log_of: Callable,
    monkeypatch: pytest.MonkeyPatch,
):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        before_previews(patch, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert cli("train", workdir, EARLY) == 143
    assert checkpoint.latest(workdir).step == 3 and not (workdir / "samples/step_00000003.png").exists()
    assert cli("train", workdir) == 0
    resumed, straight = checkpoint.latest(workdir), checkpoint.latest(finished_run)
    for part in ("model", "ema", "optimizer", "ema_updates", "running", "held_out_loss"):
        assert same(getattr(resumed, part), getattr(straight, part)), part
    assert log_of(workdir) == log_of(finished_run)


def test_a_preview_gives_way_to_the_time_limit(
    cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    workdir, clock, late = tmp_path / "run", time.perf_counter, [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock() + late[0])
    before_previews(monkeypatch, lambda: late.__setitem__(0, 120.0))
    assert cli("train", workdir, EARLY, "--config.training.max_minutes=1") == 0
    assert "time limit" in capsys.readouterr().out
    assert checkpoint.latest(workdir).step == 3 and not [*workdir.glob("samples/step_*")]


def test_no_preview_is_drawn_after_the_time_limit(
    cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    advance, clock, late = Trainer.advance, time.perf_counter, [0.0]

    def slow(trainer: Trainer) -> None:
        advance(trainer)
        late[0] += 120

    monkeypatch.setattr(Trainer, "advance", slow)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock() + late[0])
    assert cli("train", tmp_path / "run", "--config.training.max_minutes=1") == 0
    assert checkpoint.latest(tmp_path / "run").step == 1 and not [*tmp_path.glob("run/samples/step_*")]


def test_a_signal_in_the_last_preview_leaves_the_training_finished(
    cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    before_previews(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert cli("train", tmp_path / "run") == 0
    assert "Training finished" in capsys.readouterr().out
    assert checkpoint.latest(tmp_path / "run").step == 8


def test_a_preview_that_is_not_finite_does_not_end_training(
    cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    save = Preview.save

    def broken(preview: Preview, path: Path, model: nn.Module, *arguments: object) -> None:
        save(preview, path, lambda x, t: x * torch.nan, *arguments)

    monkeypatch.setattr(Preview, "save", broken)
    assert cli("train", tmp_path / "run", EARLY) == 0
    said = capsys.readouterr().err
    assert "warning: no preview at step 3: " in said and "warning: no preview at step 8: " in said
    assert checkpoint.latest(tmp_path / "run").step == 8


@pytest.mark.slow
def test_a_preview_needs_no_more_memory_than_a_batch(
    cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The network sees no more samples at a time than in training, where their gradients are kept."""
    sizes, save = [], Preview.save

    def recorded(preview: Preview, path: Path, model: nn.Module, *arguments: object) -> None:
        hook = model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
        save(preview, path, model, *arguments)
        hook.remove()

    monkeypatch.setattr(Preview, "save", recorded)
    accumulate = ("--config.training.accumulate=4", "--config.training.preview_samples=5")
    assert cli("train", tmp_path / "run", *accumulate) == 0
    assert sizes == [2] * 30 + [1] * 15


@pytest.mark.slow
def test_previews_can_be_switched_off(cli: Callable, tmp_path: Path):
    assert cli("train", tmp_path / "run", EARLY, "--config.training.preview_samples=0") == 0
    assert not (tmp_path / "run/samples").exists()


def test_training_runs_in_a_thread(cli: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """As in a notebook with a background job: signal handlers can be installed in the main thread only."""
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(cli("train", tmp_path / "run")))
    thread.start()
    thread.join()
    assert codes == [0] and "Training finished" in capsys.readouterr().out
