from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from run import checkpoint
from run.batches import BatchOrder
from run.config import load_config
from run.data import load_dataset
from run.ema import EMA
from run.trainer import Trainer, learning_rate

CPU = torch.device("cpu")


def same(a: object, b: object) -> bool:
    """Equality of nested containers of tensors, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


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
    number: int, code: int, cli: Callable, finished_run: Path, tmp_path: Path, signal_at: Callable, capsys
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
    for part in ("model", "ema", "optimizer", "ema_updates"):
        assert same(getattr(resumed, part), getattr(straight, part)), part


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


def test_a_finished_run_is_left_alone_and_can_be_prolonged(cli: Callable, trained: Path, capsys):
    before = checkpoint.latest(trained)
    assert cli("train", trained) == 0
    assert same(checkpoint.latest(trained).model, before.model)
    assert cli("train", trained, "--config.training.steps=10", "--config.sampling.num_samples=2") == 0
    assert checkpoint.latest(trained).step == 10


def test_the_time_limit_stops_after_the_step(cli: Callable, tmp_path: Path, capsys):
    workdir = tmp_path / "run"
    assert cli("train", workdir, "--config.training.max_minutes=1e-9") == 0
    assert "time limit" in capsys.readouterr().out
    assert not checkpoint.exists(workdir)
    assert cli("train", workdir) == 0
    assert checkpoint.latest(workdir).step == 8


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


def test_divergence_stops_and_spares_the_checkpoints(
    cli: Callable, tmp_path: Path, refused: Callable, monkeypatch: pytest.MonkeyPatch
):
    loss = Trainer.loss
    def diverging(self, step):
        return tuple(value * (math.nan if step >= 4 else 1) for value in loss(self, step))

    monkeypatch.setattr(Trainer, "loss", diverging)
    workdir = tmp_path / "run"
    sentence = refused(cli("train", workdir))
    assert "diverged by step 6" in sentence and "learning_rate" in sentence
    saved = checkpoint.latest(workdir)
    assert saved.step == 4 and all(value.isfinite().all() for value in saved.model.values())


def test_training_goes_on_from_the_newest_intact_checkpoint(
    cli: Callable, trained: Path, finished_run: Path, capsys
):
    (trained / "checkpoints/00000008/training.pt").write_bytes(b"torn")
    assert cli("train", trained) == 0
    output = capsys.readouterr()
    assert "00000008/training.pt is damaged" in output.err and "at step 4" in output.out
    assert same(checkpoint.latest(trained).model, checkpoint.latest(finished_run).model)


def test_the_loss_of_a_step_depends_on_seed_and_step_alone(tiny: str):
    config = load_config(tiny)
    trainer = Trainer(config, load_dataset(config.data), CPU)
    trainer.model.eval()
    losses = [trainer.loss(step)[0] for step in (3, 4)]
    torch.manual_seed(99)
    torch.rand(7)
    assert [trainer.loss(step)[0] for step in (3, 4)] == losses
    assert losses[0] != losses[1]


def test_the_warmup_and_the_cosine():
    section = load_config("vpsde").training
    section.update(steps=100, warmup_steps=10, learning_rate=2.0)
    rates = [learning_rate(step, section) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0) and 0 < rates[99] < 0.001
    assert max(rates) == pytest.approx(2.0)
    section.warmup_steps = 0
    assert learning_rate(0, section) == 2.0


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (10, 5), (3, 7)])
def test_every_epoch_holds_every_sample_once(n: int, batch_size: int):
    batches = BatchOrder(n, batch_size, 0, CPU)
    drawn = torch.cat([batches(step) for step in range(3 * n)])
    epochs = drawn[: len(drawn) // n * n].reshape(-1, n)
    assert (epochs.sort(1).values == torch.arange(n)).all()
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(BatchOrder(n, batch_size, 0, CPU)(5), batches(5))  # without the batches before it


def test_the_average_follows_its_formula():
    model = torch.nn.Linear(1, 1, bias=False)
    ema = EMA(model, decay=0.3)
    expected = None
    for n in range(12):
        torch.nn.init.constant_(model.weight, float(n**2))
        ema.update_parameters(model)
        decay = min(0.3, (1 + n) / (10 + n))
        expected = float(n**2) if expected is None else decay * expected + (1 - decay) * n**2
    assert ema.module.weight.item() == pytest.approx(expected, rel=1e-6)
