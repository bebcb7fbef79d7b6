"""Checkpoints: what is read is what was written, damage is named, and nothing intact is lost."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.checkpoints.checkpoint import Checkpoint
from score_diffusion.run.errors import UserError
from score_diffusion.run.main import main

ROOT = Path(checkpoint.__file__).parents[2]
FILES = ("model.safetensors", "ema.safetensors", "averages.safetensors", "training.pt")


def make(step: int, held_out_loss: float | None = None) -> Checkpoint:
    weights = {"weight": torch.full((3, 2), float(step))}
    optimizer = {
        "state": {0: {"step": torch.tensor(1.0)}},
        "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999)}],
    }
    averages = {"ema_0.9/weight": weights["weight"]}
    return Checkpoint(step, weights, weights, optimizer, 1.5, step, averages, held_out_loss=held_out_loss)


def renew_digest(path: Path) -> None:
    """Writes a file's digest anew, as somebody does who made the file."""
    digests = path.with_name("sha256.json")
    changed = json.loads(digests.read_text()) | {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    digests.write_text(json.dumps(changed))


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path):
    folder = checkpoint.save(tmp_path, make(4), keep=3)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "sha256.json", "summary.json"])
    read = checkpoint.latest(tmp_path)
    assert torch.equal(read.model["weight"], torch.full((3, 2), 4.0))
    assert (read.step, read.seconds, read.ema_updates) == (4, 1.5, 4)
    assert read.optimizer == make(4).optimizer
    assert torch.equal(read.average("ema_0.9")["weight"], torch.full((3, 2), 4.0))


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


@pytest.mark.parametrize(
    "content", ["", "[]", "null", '{"training.pt": "0"}', "[" * 10**5, " " * (2**24 + 1)]
)
def test_damaged_digests_are_named(content: str, tmp_path: Path):
    (checkpoint.save(tmp_path, make(2), keep=3) / "sha256.json").write_text(content)
    with pytest.raises(UserError, match="(sha256.json|training.pt) is damaged"):
        checkpoint.latest(tmp_path)


def test_a_checkpoint_without_digests_is_passed_over_unless_it_is_asked_for(tmp_path: Path, capsys):
    """A missing or empty sha256.json would switch every check off."""
    checkpoint.save(tmp_path, make(2), keep=3)
    checkpoint.save(tmp_path, make(6), keep=3)
    digests = checkpoint.save(tmp_path, make(4), keep=3) / "sha256.json"
    for content in (None, "{}"):
        digests.unlink() if content is None else digests.write_text(content)
        (tmp_path / "checkpoints/00000006").rename(tmp_path / "06")
        assert checkpoint.latest(tmp_path).step == 2
        assert "sha256.json" in capsys.readouterr().err
        (tmp_path / "06").rename(tmp_path / "checkpoints/00000006")
    digests.unlink()
    assert checkpoint.at_step(tmp_path, 4).step == 4
    assert "00000004 has no sha256.json" in capsys.readouterr().err
    with pytest.raises(UserError, match="no checkpoint of step 5: its steps are 2, 4, 6"):
        checkpoint.at_step(tmp_path, 5)


class Bomb:
    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path: Path):
    bomb = Bomb()
    bomb.path = str(tmp_path / "executed")
    folder = checkpoint.save(tmp_path, make(2), keep=3)
    torch.save({"step": 2, "optimizer": bomb, "seconds": 0.0, "ema_updates": 1}, folder / "training.pt")
    renew_digest(folder / "training.pt")
    with pytest.raises(UserError, match="holds more than tensors and numbers"):
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


# Under a root of its own, a process mounts a real disk of 64 KiB, fills it with a checkpoint, and makes room.
ON_A_SMALL_DISK = """
import subprocess, sys
from pathlib import Path
import torch
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.checkpoints.checkpoint import Checkpoint

disk = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], check=True)
def make(step):
    optimizer = {"state": {}, "param_groups": []}
    return Checkpoint(step, {"w": torch.zeros(4000)}, {"w": torch.zeros(2000)}, optimizer, 0.0, step)
checkpoint.save(disk, make(2), keep=1)
try:
    checkpoint.save(disk, make(4), keep=1)
except OSError as error:
    print(error.strerror)
print([path.name for path in (disk / "checkpoints").iterdir()], checkpoint.latest(disk).step)
subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
checkpoint.save(disk, make(4), keep=1)
print(checkpoint.latest(disk).step)
"""


@pytest.mark.slow
def test_a_disk_that_is_really_full_loses_nothing(tmp_path: Path):
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-Urm", "true"]).returncode:
        pytest.skip("no disk can be mounted here")
    command = ["unshare", "-Urm", sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines() == ["No space left on device", "['00000002'] 2", "4"], done.stderr


def test_the_best_is_kept_besides_the_newest(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for step, loss in {2: 0.5, 4: 0.3, 6: None, 8: 0.4, 10: float("nan"), 12: 0.35}.items():
        checkpoint.save(tmp_path, make(step, loss), keep=2)
    assert checkpoint.steps(tmp_path) == [4, 10, 12]
    assert checkpoint.best(tmp_path).step == 4 and checkpoint.latest(tmp_path).step == 12
    (tmp_path / "checkpoints/00000004/ema.safetensors").write_bytes(b"torn")
    assert checkpoint.best(tmp_path).step == 12
    assert "00000004/ema.safetensors is damaged" in capsys.readouterr().err


def test_without_held_out_losses_there_is_no_best(tmp_path: Path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint.best(tmp_path)
    checkpoint.save(tmp_path, make(2), keep=1)
    with pytest.raises(UserError, match="training.held_out above 0"):
        checkpoint.best(tmp_path)


def test_a_checkpoint_under_the_name_of_another_step_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    checkpoint.save(tmp_path, make(2), keep=3)
    checkpoint.save(tmp_path, make(4), keep=3).rename(tmp_path / "checkpoints/00000099")
    assert checkpoint.latest(tmp_path).step == 2
    assert "00000099 is another one, of step 4" in capsys.readouterr().err
    checkpoint.set_aside_damaged(tmp_path, 2)
    assert checkpoint.steps(tmp_path) == [2] and (tmp_path / "checkpoints/damaged-00000099").is_dir()


def test_foreign_files_among_the_checkpoints_are_not_read(tmp_path: Path):
    folder = checkpoint.save(tmp_path, make(2), keep=1)
    (folder / "notes.txt").write_text("mine")
    (folder.parent / "notes.txt").write_text("mine")
    (folder.parent / "00000009").write_text("a file where a checkpoint would be")
    (folder.parent / "best").mkdir()
    assert checkpoint.latest(tmp_path).step == 2


@pytest.mark.parametrize("file", FILES)
def test_a_file_of_another_kind_is_named(file: str, tmp_path: Path):
    """A valid file of PyTorch's, with a digest that fits it."""
    folder = checkpoint.save(tmp_path, make(2), keep=1)
    torch.save([1, 2, 3] if file == "training.pt" else {"weight": torch.zeros(3)}, folder / file)
    renew_digest(folder / file)
    with pytest.raises(UserError, match=f"{file} is damaged"):
        checkpoint.latest(tmp_path)


def test_weights_of_another_model_are_refused(tmp_path: Path):
    layer = torch.nn.Linear(2, 3)
    for weights, match in (
        (make(1).model, "does not fit .*1 tensors are missing, such as bias"),
        (
            {"weight": torch.zeros(2, 2), "bias": torch.zeros(3)},
            r"weight has shape \(2, 2\) there and \(3, 2\)",
        ),
        ({"weight": torch.zeros(3, 2).int(), "bias": torch.zeros(3)}, "weight has dtype torch.int32 there"),
        ({"weight": torch.zeros(3, 2).log(), "bias": torch.zeros(3)}, "holds NaN or infinity in weight"),
    ):
        with pytest.raises(UserError, match=match):
            checkpoint.load_weights(layer, weights, tmp_path)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_a_flipped_bit_in_the_summary_of_the_best_does_not_cost_its_weights(tmp_path: Path):
    best = checkpoint.save(tmp_path, make(2, 0.1), keep=1)
    flip_a_bit(best / "summary.json")
    checkpoint.save(tmp_path, make(4, 0.3), keep=1)
    checkpoint.save(tmp_path, make(6, 0.2), keep=1)
    assert checkpoint.steps(tmp_path) == [2, 6]
    assert checkpoint.best(tmp_path).step == 2


def test_a_checkpoint_of_which_it_is_not_known_how_good_it_is_is_kept(tmp_path: Path):
    unknown = checkpoint.save(tmp_path, make(2, 0.1), keep=1)
    flip_a_bit(unknown / "summary.json")
    flip_a_bit(unknown / "training.pt")
    checkpoint.save(tmp_path, make(4, 0.3), keep=1)
    checkpoint.save(tmp_path, make(6, 0.2), keep=1)
    assert checkpoint.steps(tmp_path) == [2, 6]
    assert checkpoint.best(tmp_path).step == 6


def test_an_error_in_reading_the_newest_names_the_file_and_passes_it_over(
    tmp_path: Path, monkeypatch, capsys
):
    checkpoint.save(tmp_path, make(2), keep=3)
    broken = checkpoint.save(tmp_path, make(4), keep=3) / "ema.safetensors"
    read_bytes = Path.read_bytes

    def on_a_bad_disk(path: Path) -> bytes:
        if path == broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", on_a_bad_disk)
    assert checkpoint.latest(tmp_path).step == 2
    assert f"{broken} cannot be read (Input/output error)" in capsys.readouterr().err


def test_linked_checkpoints_are_read_and_only_the_link_is_pruned(tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    checkpoint.save(tmp_path, make(2), keep=1).rename(elsewhere)
    (tmp_path / "checkpoints/00000002").symlink_to(elsewhere)
    assert checkpoint.latest(tmp_path).step == 2
    checkpoint.save(tmp_path, make(4), keep=1)
    assert checkpoint.steps(tmp_path) == [4]
    assert (elsewhere / "model.safetensors").is_file()


def test_a_checkpoint_that_cannot_be_pruned_does_not_end_the_training(tmp_path: Path, monkeypatch, capsys):
    checkpoint.save(tmp_path, make(2), keep=1)

    def refuse(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    checkpoint.save(tmp_path, make(4), keep=1)
    assert checkpoint.latest(tmp_path).step == 4
    assert "00000002 is no longer needed and cannot be removed" in capsys.readouterr().err


def test_temporaries_of_killed_processes_are_removed(tmp_path: Path):
    checkpoint.save(tmp_path, make(2), keep=1)
    (tmp_path / "checkpoints/.00000003").mkdir()
    (tmp_path / "checkpoints/.00000003/model.safetensors").write_bytes(b"torn")
    (tmp_path / "checkpoints/.mine").mkdir()
    checkpoint.save(tmp_path, make(4), keep=1)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [".mine", "00000004"]


def test_checkpoints_that_cannot_be_seen_are_not_taken_for_none(tmp_path: Path, monkeypatch):
    assert not checkpoint.exists(tmp_path) and checkpoint.steps(tmp_path) == []
    (tmp_path / "checkpoints").symlink_to(tmp_path / "unmounted")
    with pytest.raises(UserError, match="is a link to .*unmounted, which does not exist"):
        checkpoint.exists(tmp_path)
    (tmp_path / "checkpoints").unlink()
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(UserError, match="cannot be listed .Not a directory"):
        checkpoint.exists(tmp_path)
    (tmp_path / "checkpoints").unlink()
    checkpoint.save(tmp_path, make(2), keep=1)

    def refuse(folder: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "scandir", refuse)
    for ask in (checkpoint.exists, checkpoint.steps, checkpoint.latest, checkpoint.best):
        with pytest.raises(UserError, match="cannot be listed .Permission denied"):
            ask(tmp_path)


def test_a_link_to_nothing_under_the_name_of_a_step_is_named(tmp_path: Path, capsys):
    checkpoint.save(tmp_path, make(2), keep=1)
    (tmp_path / "checkpoints/00000004").symlink_to(tmp_path / "gone")
    assert checkpoint.latest(tmp_path).step == 2
    assert "00000004 has no sha256.json" in capsys.readouterr().err
    checkpoint.set_aside_damaged(tmp_path, 2)
    assert checkpoint.steps(tmp_path) == [2] and (tmp_path / "checkpoints/damaged-00000004").is_symlink()


def test_what_is_set_aside_does_not_replace_what_was_set_aside_before(tmp_path: Path):
    for content in ("first", "second"):
        (checkpoint.save(tmp_path, make(4), keep=1) / "model.safetensors").write_text(content)
        checkpoint.set_aside_damaged(tmp_path, 2)
    aside = [tmp_path / "checkpoints" / name for name in ("damaged-00000004", "damaged-00000004-2")]
    assert [(path / "model.safetensors").read_text() for path in aside] == ["first", "second"]


@pytest.mark.slow
def test_the_weights_of_a_step_can_be_asked_for(trained: Path, capsys, refused):
    """By sampling.checkpoint: it is the way to use a checkpoint without digests."""
    draw = ["--mode", "sample", "--workdir", str(trained), "--config.sampling.num_samples=2"]
    assert main([*draw, "--config.sampling.checkpoint=4"]) == 0
    (trained / "checkpoints/00000004/sha256.json").unlink()
    assert main([*draw, "--config.sampling.checkpoint=4"]) == 0
    assert "00000004 has no sha256.json" in capsys.readouterr().err
    assert "no checkpoint of step 5: its steps are 4, 8" in refused(
        main([*draw, "--config.sampling.checkpoint=5"])
    )
    with_4, with_8 = (main([*draw, f"--config.sampling.checkpoint={name}"]) for name in (4, "latest"))
    files = sorted((trained / "samples").glob("*.npz"), key=lambda path: path.stat().st_mtime)
    first, *_, last = (np.load(path)["samples"] for path in files)
    assert with_4 == with_8 == 0 and not np.array_equal(first, last)
