from __future__ import annotations

import errno
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.run.build import data_options
from score_diffusion.run.checkpoints import checkpoint, directory
from score_diffusion.run.config import read_config
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.training.batches import Batch
from score_diffusion.run.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture
def signal_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Sends this process a signal in the middle of a training step."""

    def install(step: int, number: int) -> None:
        advance = Trainer.advance

        def interrupted(trainer: Trainer) -> None:
            if trainer.step == step:
                os.kill(os.getpid(), number)
            advance(trainer)

        monkeypatch.setattr(Trainer, "advance", interrupted)

    return install


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_goes_on_to_the_same_bits(
    number: int,
    code: int,
    cli: Callable,
    finished_run: Path,
    tmp_path: Path,
    signal_at: Callable,
    same: Callable,
    log_of: Callable,
    capsys,
):
    workdir = tmp_path / "run"
    with pytest.MonkeyPatch.context():
        signal_at(4, number)
        assert cli("train", workdir) == code
        assert "give the same command again" in capsys.readouterr().out
        assert (
            checkpoint.latest(workdir).step == 5
        )  # the step was finished; 5 is no multiple of checkpoint_every
    assert cli("train", workdir) == 0
    resumed, straight = checkpoint.latest(workdir), checkpoint.latest(finished_run)
    assert resumed.step == 8
    for part in ("model", "ema", "optimizer", "ema_updates", "running", "held_out_loss"):
        assert same(getattr(resumed, part), getattr(straight, part)), part
    assert log_of(workdir) == log_of(finished_run)  # at 5, where it was stopped, there is no point


def test_what_training_leaves(snapshot: Callable, finished_run: Path):
    files = snapshot(finished_run)
    for name in ("config.json", "data.json", "log.jsonl", "loss_curve.png", "samples/step_00000008.png"):
        assert files[name]
    assert any(name.startswith("tensorboard/events") for name in files)
    assert {name.split("/")[1] for name in files if name.startswith("checkpoints/")} == {
        "00000004",
        "00000008",
    }
    assert files["log.jsonl"].count(b"\n") == 4  # steps 3, 4 (checkpoint), 6, 8


def test_a_finished_run_is_left_alone_and_can_be_prolonged(
    cli: Callable, trained: Path, same: Callable, capsys
):
    before = checkpoint.latest(trained)
    assert cli("train", trained) == 0
    assert same(checkpoint.latest(trained).model, before.model)
    assert cli("train", trained, "--config.training.steps=10", "--config.sampling.num_samples=2") == 0
    assert checkpoint.latest(trained).step == 10


def test_images_are_a_budget(cli: Callable, tmp_path: Path, capsys):
    assert cli("train", tmp_path / "run", "--config.training.images=41") == 0
    assert "finished, training.images=41" in capsys.readouterr().out
    assert checkpoint.latest(tmp_path / "run").step == 6  # of 8 images
    assert cli("train", tmp_path / "run", "--config.training.images=1000") == 0
    assert "finished, training.steps=8" in capsys.readouterr().out


def test_the_time_limit_stops_after_the_step(cli: Callable, tmp_path: Path, capsys):
    workdir = tmp_path / "run"
    assert cli("train", workdir, "--config.training.max_minutes=1e-9") == 0
    assert "time limit" in capsys.readouterr().out
    assert not checkpoint.exists(workdir)
    assert cli("train", workdir) == 0
    assert checkpoint.latest(workdir).step == 8


def test_a_full_disk_is_one_sentence_and_the_run_goes_on(
    cli: Callable,
    tmp_path: Path,
    finished_run: Path,
    refused: Callable,
    same: Callable,
    monkeypatch: pytest.MonkeyPatch,
):
    workdir, write = tmp_path / "run", directory.write_durable

    def full(path: Path, data: bytes) -> None:
        if "00000008" in str(path) and path.name == "training.pt":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, data)

    monkeypatch.setattr(directory, "write_durable", full)
    sentence = refused(cli("train", workdir))
    assert "is full" in sentence and "checkpoint of step 4 is intact" in sentence
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["00000004"]
    monkeypatch.setattr(directory, "write_durable", write)
    assert cli("train", workdir) == 0
    assert same(checkpoint.latest(workdir).model, checkpoint.latest(finished_run).model)


def test_other_settings_are_refused_and_nothing_changes(
    snapshot: Callable, cli: Callable, trained: Path, refused: Callable
):
    before = snapshot(trained)
    sentence = refused(cli("train", trained, "--config.training.batch_size=9", "--config.seed=1"))
    assert "training.batch_size is 8 there and 9 here" in sentence and "seed is 0" in sentence
    assert "--workdir" in sentence
    assert snapshot(trained) == before


def test_other_data_are_refused(cli: Callable, trained: Path, refused: Callable):
    text = (trained / "data.json").read_text()
    (trained / "data.json").write_text(text.replace("898", "900"))
    assert "data have changed" in refused(cli("train", trained))


def test_a_foreign_folder_is_refused(cli: Callable, tmp_path: Path, refused: Callable):
    (tmp_path / "thesis.txt").write_text("mine")
    assert "not empty" in refused(cli("train", tmp_path))
    assert list(tmp_path.iterdir()) == [tmp_path / "thesis.txt"]


def test_divergence_ends_training_and_leaves_the_batch(
    cli: Callable, tmp_path: Path, refused: Callable, monkeypatch: pytest.MonkeyPatch
):
    backward = Trainer.backward

    def broken(trainer: Trainer, batch: Batch) -> torch.Tensor:
        return backward(trainer, replace(batch, noise=batch.noise * (math.nan if trainer.step >= 4 else 1)))

    monkeypatch.setattr(Trainer, "backward", broken)
    workdir = tmp_path / "run"
    keys = ("--config.training.max_skipped=2", "--config.training.steps=20")
    sentence = refused(cli("train", workdir, *keys))
    assert "2 steps in a row by step 6" in sentence and "learning_rate" in sentence
    saved = checkpoint.latest(workdir)
    assert saved.step == 4 and all(value.isfinite().all() for value in saved.model.values())
    config = read_config(workdir)
    trainer = Trainer(config, load_dataset(data_options(config.data)), CPU)
    draw = trainer.draw(5)
    with np.load(workdir / "skipped/step_00000005.npz") as file:
        assert file["step"] == 5 and np.isnan(file["losses"]).all()
        assert np.array_equal(file["indices"], trainer.feed.order(5)) and np.array_equal(
            file["noise"], draw.noise
        )
        assert np.array_equal(file["x_0"], trainer.read(draw).x_0)
        assert np.array_equal(file["noise_levels"], trainer.sde.noise_level(draw.times.t))
    monkeypatch.setattr(Trainer, "backward", backward)  # were it a fault that passes, it would go on
    assert cli("train", workdir, *keys) == 0


def test_steps_that_are_skipped_now_and_then_are_counted(
    cli: Callable, tmp_path: Path, log_of: Callable, monkeypatch: pytest.MonkeyPatch, capsys
):
    backward = Trainer.backward

    def broken(trainer: Trainer, batch: Batch) -> torch.Tensor:
        return backward(trainer, replace(batch, noise=batch.noise / (trainer.step % 3 != 1)))

    monkeypatch.setattr(Trainer, "backward", broken)
    assert cli("train", tmp_path / "run", "--config.training.max_skipped=2") == 0
    rows = log_of(tmp_path / "run")
    assert {step: row["skipped"] for step, row in rows.items()} == {3: 1, 4: 0, 6: 1, 8: 1}
    assert all(math.isfinite(row["loss"]) for row in rows.values())
    assert checkpoint.latest(tmp_path / "run").ema_updates == 5


def test_training_goes_on_from_the_newest_intact_checkpoint(
    cli: Callable, trained: Path, finished_run: Path, same: Callable, capsys
):
    (trained / "checkpoints/00000008/training.pt").write_bytes(b"torn")
    assert cli("train", trained) == 0
    output = capsys.readouterr()
    assert "00000008/training.pt is damaged" in output.err and "at step 4" in output.out
    assert same(checkpoint.latest(trained).model, checkpoint.latest(finished_run).model)


def test_a_damaged_checkpoint_does_not_push_out_intact_ones(cli: Callable, trained: Path, capsys):
    (trained / "checkpoints/00000008/training.pt").write_bytes(b"torn")
    few = ("keep=1", "steps=6", "checkpoint_every=1")
    assert cli("train", trained, *(f"--config.training.{key}" for key in few)) == 0
    assert "now called damaged-00000008" in capsys.readouterr().err
    assert checkpoint.latest(trained).step == 6
    folders = {path.name for path in (trained / "checkpoints").iterdir()}
    assert {"00000006", "damaged-00000008"} <= folders


def test_data_are_known_by_their_content(cli: Callable, tmp_path: Path, refused: Callable, capsys):
    rng, workdir = np.random.default_rng(0), tmp_path / "run"
    np.save(tmp_path / "mine.npy", rng.integers(0, 256, (30, 8, 8), dtype=np.uint8))
    few = ("--config.training.steps=2", "--config.training.batch_size=4")
    assert cli("train", workdir, f"--config.data.path={tmp_path / 'mine.npy'}", *few) == 0
    (tmp_path / "mine.npy").rename(tmp_path / "moved.npy")
    few = ("--config.training.steps=3", "--config.training.batch_size=4")
    assert cli("train", workdir, f"--config.data.path={tmp_path / 'moved.npy'}", *few) == 0
    np.save(tmp_path / "other.npy", rng.integers(0, 256, (30, 8, 8), dtype=np.uint8))
    for mode in ("likelihood", "train"):
        arguments = [*few] if mode == "train" else []
        sentence = refused(cli(mode, workdir, f"--config.data.path={tmp_path / 'other.npy'}", *arguments))
        assert "of other content" in sentence


def test_the_precision_that_was_chosen_is_kept(
    cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A run goes on with it where the device would choose another."""
    rng, workdir = np.random.default_rng(0), tmp_path / "run"
    np.save(tmp_path / "mine.npy", rng.integers(0, 256, (30, 16, 16), dtype=np.uint8))
    arguments = (f"--config.data.path={tmp_path / 'mine.npy'}", "--config.training.batch_size=4")
    for has, steps in ((True, 1), (False, 2)):
        able = {"avx512_bf16": has}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able, raising=False)
        assert cli("train", workdir, *arguments, f"--config.training.steps={steps}") == 0
        assert read_config(workdir).training.precision == "bf16"
    assert checkpoint.latest(workdir).step == 2
