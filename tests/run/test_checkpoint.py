from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from run import checkpoint
from run.checkpoint import Checkpoint
from run.errors import UserError

FILES = ("model.safetensors", "ema.safetensors", "training.pt")


def make(step: int) -> Checkpoint:
    weights = {"weight": torch.full((3, 2), float(step))}
    optimizer = {
        "state": {0: {"step": torch.tensor(1.0)}},
        "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999)}],
    }
    return Checkpoint(step, weights, weights, optimizer, seconds=1.5, ema_updates=step)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path):
    folder = checkpoint.save(tmp_path, make(4), keep=3)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "sha256.json"])
    read = checkpoint.latest(tmp_path)
    assert torch.equal(read.model["weight"], torch.full((3, 2), 4.0))
    assert (read.step, read.seconds, read.ema_updates) == (4, 1.5, 4)
    assert read.optimizer == make(4).optimizer


def test_only_the_newest_are_kept(tmp_path: Path):
    for step in (2, 4, 100_000_000, 6):  # also where a name has more digits than the others
        checkpoint.save(tmp_path, make(step), keep=2)
    assert checkpoint.latest(tmp_path).step == 100_000_000
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "overwritten", "flipped"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    file: str, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    checkpoint.save(tmp_path, make(2), keep=3)
    path = checkpoint.save(tmp_path, make(4), keep=3) / file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        flipped = bytearray(content)
        flipped[-5] ^= 1  # one bit of the last weight: no format notices
        damages = {"empty": b"", "cut": content[: len(content) // 2], "overwritten": b"\xff" * 300}
        path.write_bytes({**damages, "flipped": bytes(flipped)}[damage])
    with pytest.raises(UserError, match=f"00000004/{file} is (missing|damaged)"):
        checkpoint.read(path.parent)
    assert checkpoint.latest(tmp_path).step == 2
    assert f"00000004/{file}" in capsys.readouterr().err
    checkpoint.save(tmp_path, make(4), keep=3)  # training went on from step 2
    assert checkpoint.latest(tmp_path).step == 4


def test_checkpoints_from_before_there_were_digests_are_read(tmp_path: Path):
    (checkpoint.save(tmp_path, make(2), keep=3) / "sha256.json").unlink()
    assert checkpoint.latest(tmp_path).step == 2


class Bomb:
    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path: Path):
    bomb = Bomb()
    bomb.path = str(tmp_path / "executed")
    folder = checkpoint.save(tmp_path, make(2), keep=3)
    (folder / "sha256.json").unlink()
    torch.save({"step": 2, "optimizer": bomb, "seconds": 0.0, "ema_updates": 1}, folder / "training.pt")
    with pytest.raises(UserError, match="training.pt is damaged"):
        checkpoint.read(folder)
    assert not (tmp_path / "executed").exists()


def test_no_checkpoint_and_none_intact_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.latest(tmp_path)
    (checkpoint.save(tmp_path, make(2), keep=3) / "training.pt").unlink()
    with pytest.raises(UserError, match="none|no checkpoint .* is intact"):
        checkpoint.latest(tmp_path)


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint.save(tmp_path, make(2), keep=1)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError):
            checkpoint.save(tmp_path, make(4), keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000002"]
    assert checkpoint.latest(tmp_path).step == 2


def test_weights_of_another_model_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="does not fit"):
        checkpoint.load_weights(torch.nn.Linear(2, 3), make(1).model, tmp_path)
