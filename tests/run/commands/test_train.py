from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.run.build import build_sde, data_options
from score_diffusion.run.builders.training import build_trainer
from score_diffusion.run.checkpoints import checkpoint, directory
from score_diffusion.run.config import read_config
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.main import main
from score_diffusion.run.training.batches import Batch
from score_diffusion.run.training.trainer import Trainer
from tests.run.processes import finish, start

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


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_resumes_to_the_same_bits(
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_the_run_can_be_resumed(
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


@pytest.mark.slow
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
    assert "2 steps in a row, by step 6" in sentence and "learning_rate" in sentence
    saved = checkpoint.latest(workdir)
    assert saved.step == 4 and all(value.isfinite().all() for value in saved.model.values())
    config = read_config(workdir)
    batches = build_trainer(config, load_dataset(data_options(config.data)), CPU).batches
    draw = batches.draw(5)
    with np.load(workdir / "skipped/step_00000005.npz") as file:
        assert file["step"] == 5 and np.isnan(file["losses"]).all()
        assert np.array_equal(file["indices"], batches.order.indices(batches.order.positions(5)))
        assert np.array_equal(file["noise"], draw.noise)
        assert np.array_equal(file["x_0"], batches.read(draw).x_0)
        assert np.array_equal(file["log_noise_levels"], build_sde(config.sde).log_noise_level(draw.times.t))
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


def test_training_resumes_from_the_newest_intact_checkpoint(
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


@pytest.mark.slow
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
    """A run resumes with it where the device would choose another."""
    rng, workdir = np.random.default_rng(0), tmp_path / "run"
    np.save(tmp_path / "mine.npy", rng.integers(0, 256, (30, 16, 16), dtype=np.uint8))
    arguments = (f"--config.data.path={tmp_path / 'mine.npy'}", "--config.training.batch_size=4")
    for has, steps in ((True, 1), (False, 2)):
        able = {"avx512_bf16": has}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able, raising=False)
        assert cli("train", workdir, *arguments, f"--config.training.steps={steps}") == 0
        assert read_config(workdir).training.precision == "bf16"
    assert checkpoint.latest(workdir).step == 2


def test_the_lock_of_a_running_training_is_respected(tiny: str, tmp_path: Path):
    """Two trainings start in one directory at about the same time: one trains, one says why it does not."""
    workdir = tmp_path / "run"
    argv = ["--mode", "train", "--config", tiny, "--workdir", str(workdir), "--config.training.steps=40"]
    first = start(1, [*argv, "--config.seed=1"], tmp_path / "first")
    second = start(1, [*argv, "--config.seed=2"], tmp_path / "second")
    ended = {
        seed: finish(ranks, tmp_path / name)
        for seed, ranks, name in ((1, first, "first"), (2, second, "second"))
    }
    codes = {seed: done.codes[0] for seed, done in ended.items()}
    assert sorted(codes.values()) == [0, 2]
    winner, loser = (next(seed for seed in codes if codes[seed] == code) for code in (0, 2))
    assert "training" in ended[loser].err[0] and "Traceback" not in ended[loser].err[0]
    assert read_config(workdir).seed == winner and checkpoint.latest(workdir).step == 40
    rows = [json.loads(line)["step"] for line in (workdir / "log.jsonl").read_text().splitlines()]
    assert rows == sorted(set(rows))


def test_a_second_training_is_refused_while_one_runs(
    cli: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    workdir, codes, advance = tmp_path / "run", [], Trainer.advance

    def busy(trainer: Trainer) -> None:
        if trainer.step == 4:
            monkeypatch.setattr(Trainer, "advance", advance)
            codes.append(cli("train", workdir, "--config.seed=2"))
        advance(trainer)

    monkeypatch.setattr(Trainer, "advance", busy)
    assert cli("train", workdir, "--config.seed=1") == 0
    said = capsys.readouterr().err
    assert (
        codes == [2] and f"error: another training is running in {workdir} (process {os.getpid()} on" in said
    )
    assert read_config(workdir).seed == 1 and checkpoint.latest(workdir).step == 8


VANISHED = {
    "moved away": lambda folder: folder.rename(folder.with_name("elsewhere")),
    "an empty mount point": lambda folder: [folder.rename(folder.with_name("elsewhere")), folder.mkdir()],
    "a link to nothing": lambda folder: [shutil.rmtree(folder), folder.symlink_to("/nonexistent")],
    "unreadable": lambda folder: folder.chmod(0),
}


@pytest.mark.parametrize("case", VANISHED)
def test_checkpoints_that_cannot_be_seen_are_not_taken_for_none(
    case: str, cli: Callable, trained: Path, refused: Callable, snapshot: Callable
):
    if case == "unreadable" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    VANISHED[case](trained / "checkpoints")
    before = snapshot(trained)
    sentence = refused(cli("train", trained, "--config.training.steps=10"))
    assert "checkpoints" in sentence and "step 0" not in sentence
    assert snapshot(trained) == before


@pytest.mark.slow
def test_a_start_without_checkpoint_moves_the_files_of_the_start_before_aside(
    cli: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    workdir, advance = tmp_path / "run", Trainer.advance

    def killed(trainer: Trainer) -> None:
        if trainer.step == 3:
            raise KeyboardInterrupt  # stands for a death: no checkpoint is written
        advance(trainer)

    early = ("--config.training.log_every=1", "--config.training.sample_every=2")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", killed)
        assert cli("train", workdir, *early) == 130
    left = (workdir / "log.jsonl").read_text()
    assert left.count("\n") == 3
    assert cli("train", workdir, *early) == 0
    assert "its files are now in" in capsys.readouterr().err
    assert (workdir / "leftovers-1/log.jsonl").read_text() == left
    assert (workdir / "leftovers-1/samples/step_00000002.png").exists()
    assert (workdir / "log.jsonl").read_text().count("\n") == 8


def test_training_starts_where_the_data_were_inspected(cli: Callable, tmp_path: Path):
    assert cli("data", tmp_path / "run") == cli("data", tmp_path / "run") == 0
    assert (tmp_path / "run/data-2.png").exists()
    assert cli("train", tmp_path / "run") == 0


def test_memory_may_change_when_a_run_is_resumed(cli: Callable, tmp_path: Path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8))
    keys = (f"--config.data.path={tmp_path / 'a.npy'}", "--config.training.steps")
    assert cli("train", tmp_path / "run", *keys, "2") == 0
    assert cli("train", tmp_path / "run", *keys, "4", "--config.data.memory_gib=0") == 0
    assert checkpoint.latest(tmp_path / "run").step == 4


@pytest.mark.slow
def test_fine_tuning_from_a_run(cli: Callable, finished_run: Path, tmp_path: Path, same: Callable):
    """It starts from the averaged weights of the other run, which it needs no more when it is resumed."""
    source, workdir = Path(shutil.copytree(finished_run, tmp_path / "source")), tmp_path / "run"
    init = f"--config.training.init_from={source}"
    assert cli("train", workdir, init, "--config.seed=5", "--config.training.learning_rate=1e-12") == 0
    weights, expected = checkpoint.latest(workdir).model, checkpoint.latest(source).ema
    for key in expected:
        torch.testing.assert_close(weights[key], expected[key], rtol=0, atol=1e-6)
    shutil.rmtree(source)
    assert main(["--mode", "train", "--workdir", str(workdir), "--config.training.steps=10"]) == 0
    assert checkpoint.latest(workdir).step == 10


@pytest.mark.slow
def test_what_is_printed_before_the_bar_is_what_was_set(
    cli: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli("train", tmp_path / "run", "--config.training.grad_clip=0.5") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "training.grad_clip = 0.5" in lines and "training.steps = 8" in lines
    assert not any(line.startswith("training.max_minutes") for line in lines) and len(lines) < 60


@pytest.mark.slow
def test_classes_that_are_not_used_are_named(
    cli: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    classes = "--config.model.num_classes=10"
    assert cli("train", tmp_path / "run", classes) == 0
    said = capsys.readouterr().err
    assert "the network takes conditions, and the model will be unconditional" in said
    conditional = "--config.training.conditional=true"
    assert cli("train", tmp_path / "other", classes, conditional) == 0
    assert "conditions" not in capsys.readouterr().err
    a, b = (checkpoint.latest(tmp_path / name).model for name in ("run", "other"))
    assert any(not torch.equal(a[key], b[key]) for key in a)


def test_a_class_can_be_drawn_only_where_labels_were_trained(
    cli: Callable, tmp_path: Path, refused: Callable
):
    classes = ("--config.model.num_classes=10", "--config.training.steps=2")
    assert cli("train", tmp_path / "false", *classes) == 0
    conditional = ("--config.training.conditional=true", classes[1])
    assert cli("train", tmp_path / "true", *conditional) == 0
    assert read_config(tmp_path / "true").model.num_classes == 10  # follows from the data
    assert cli("train", tmp_path / "true", conditional[0], "--config.training.steps=3") == 0  # resumes
    assert checkpoint.latest(tmp_path / "true").step == 3
    assert cli("sample", tmp_path / "true", "--label=3") == 0
    assert "trained without" in refused(cli("sample", tmp_path / "false", "--config.sampling.label=3"))
