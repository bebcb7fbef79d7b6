from __future__ import annotations

import os
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.sources import Source, Stream, subset_in_memory
from score_diffusion.run.errors import UserError
from score_diffusion.run.training.trainer import Trainer

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 4, 6, 3), np.uint8)


def load(path: Path, memory_gib: float, **keys: object) -> Dataset:
    return load_dataset(DataOptions(path=str(path), memory_gib=memory_gib, workers=3, **keys))


def image_folder(root: Path) -> Path:
    for i, image in enumerate(PIXELS):
        folder = root / ("cats" if i % 3 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    return root


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    return path


@pytest.mark.parametrize(
    "array",
    [PIXELS, PIXELS[..., 0], PIXELS[..., :2], np.random.default_rng(1).normal(size=(60, 3))],
    ids=["colour", "grey", "two channels", "points"],
)
def test_a_mapped_array_is_split_and_read_like_one_in_memory(array: np.ndarray, tmp_path: Path):
    np.save(tmp_path / "a.npy", array)
    held, mapped = load(tmp_path / "a.npy", 4.0), load(tmp_path / "a.npy", 0.0)
    assert isinstance(held.train, torch.Tensor) and isinstance(mapped.train, Stream)
    assert (mapped.shape, mapped.levels) == (held.shape, held.levels)
    for ours, theirs in ((mapped.train, held.train), (mapped.test, held.test)):
        assert len(ours) == len(theirs) and ours.shape == theirs.shape and ours.dtype == theirs.dtype
        assert torch.equal(ours[:], theirs) and torch.equal(ours[2:5], theirs[2:5])
        chosen = torch.tensor([4, 0, 4])
        assert torch.equal(ours[chosen], theirs[chosen])


def test_a_folder_of_arrays_is_an_npz_that_is_mapped(tmp_path: Path):
    arrays = dict(
        x_train=PIXELS[:50], y_train=np.arange(50) % 4, x_test=PIXELS[50:], y_test=np.arange(10) % 4
    )
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.savez(tmp_path / "all.npz", **arrays)
    mapped, held = load(tmp_path, 0.0), load(tmp_path / "all.npz", 4.0)
    assert torch.equal(mapped.train[:], held.train) and torch.equal(mapped.test[:], held.test)
    assert torch.equal(mapped.labels, held.labels) and torch.equal(mapped.test_labels, held.test_labels)
    with pytest.raises(
        UserError, match="all.npz takes .* GiB and data.memory_gib is 0: save its arrays as x_train"
    ):
        load(tmp_path / "all.npz", 0.0)


@pytest.mark.parametrize("keys", [{}, {"image_size": (3, 5)}, {"channels": 1}], ids=str)
def test_streamed_images_are_those_in_memory(keys: dict, tmp_path: Path):
    folder = image_folder(tmp_path / "pets")
    held = load(folder, 4.0, **keys)
    streams = [load(path, 0.0, **keys) for path in (folder, zipped(folder))]
    expected = {}
    for part, labels in ((held.train, held.labels), (held.test, held.test_labels)):
        expected |= {image.numpy().tobytes(): label.item() for image, label in zip(part, labels, strict=True)}
    for data in streams:
        assert (
            isinstance(data.train, Stream) and data.shape == held.shape and data.classes == ("cats", "dogs")
        )
        found = {}
        for part, labels in ((data.train, data.labels), (data.test, data.test_labels)):
            assert len(part) == len(labels) > 0
            found |= {
                image.numpy().tobytes(): label.item() for image, label in zip(part[:], labels, strict=True)
            }
        assert found == expected
    assert torch.equal(streams[0].test.indices, streams[1].test.indices)  # folder and zip are split alike


def test_an_image_stays_on_its_side_of_the_split_as_others_come(tmp_path: Path):
    many = image_folder(tmp_path / "many")
    few = Path(shutil.copytree(many, tmp_path / "few"))
    for file in sorted(few.rglob("*.png"))[::2]:
        file.unlink()
    names = {
        path: {data.test.source._images.name(int(i)).split()[1] for i in data.test.indices}
        for path, data in ((path, load(path, 0.0)) for path in (few, many))
    }
    remaining = {file.relative_to(few).as_posix() for file in few.rglob("*.png")}
    assert names[few] and names[few] == names[many] & remaining


@pytest.mark.parametrize("memory_gib", [4.0, 0.0])
def test_folders_train_and_test_are_the_two_parts(memory_gib: float, tmp_path: Path):
    pets = image_folder(tmp_path / "pets")
    for name, moved in (("train", slice(40)), ("test", slice(40, 60))):
        for i in range(60)[moved]:
            file = next(pets.rglob(f"{i:02d}.png"))
            target = tmp_path / "set" / name / file.parent.name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    data = load(zipped(tmp_path / "set"), memory_gib)
    assert data.classes == ("cats", "dogs") and (len(data.train), len(data.test)) == (40, 20)
    for samples, labels, first in ((data.train, data.labels, 0), (data.test, data.test_labels, 40)):
        images = {
            image.numpy().tobytes(): label.item() for image, label in zip(samples[:], labels, strict=True)
        }
        for i in range(first, first + len(samples)):
            assert images[PIXELS[i].transpose(2, 0, 1).tobytes()] == (0 if i % 3 else 1)


def test_a_grey_image_among_colour_ones_takes_their_channels(tmp_path: Path):
    for name, image in (("a", PIXELS[0, ..., 0]), ("b", PIXELS[1]), ("c", PIXELS[2, ..., 1])):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    for gib in (0.0, 4.0):
        data = load(tmp_path, gib)
        assert data.shape == (3, 4, 6)
        images = torch.cat([data.train[:], data.test[:]])
        assert sum(bool((image[0] == image[1]).all()) for image in images) == 2


def test_images_of_two_sizes_are_refused_before_they_are_streamed(tmp_path: Path):
    folder = image_folder(tmp_path / "pets")
    Image.new("RGB", (5, 5)).save(folder / "dogs/99.png")
    with pytest.raises(
        UserError, match="differ in size: image cats/01.png .* is 4x6 and image dogs/99.png .* 5x5"
    ):
        load(folder, 0.0)
    assert load(folder, 0.0, image_size=(4, 4)).shape == (3, 4, 4)


def test_points_that_are_no_numbers_are_refused_though_they_are_streamed(tmp_path: Path):
    points = np.zeros((9000, 2))
    points[8999, 1] = np.nan
    np.save(tmp_path / "points.npy", points)
    with pytest.raises(UserError, match="points.npy:array holds NaN"):
        load(tmp_path / "points.npy", 0.0)


def test_a_mapped_file_that_is_cut_is_one_sentence(tmp_path: Path):
    """And no SIGBUS, which would end the training without a word."""
    for array in (np.zeros((5000, 4, 4, 3), np.uint8), np.random.default_rng(0).normal(size=(5000, 4))):
        np.save(tmp_path / "a.npy", array)
        data = load(tmp_path / "a.npy", 0.0)
        os.truncate(tmp_path / "a.npy", 4096)
        with pytest.raises(UserError, match="a.npy has become shorter since it was opened"):
            data.train[torch.tensor([len(data.train) - 1])]


def test_of_a_large_stream_a_part_is_looked_at():
    class Numbers(Source):
        shape, dtype = (1,), torch.float32

        def __len__(self) -> int:
            return 30_000

        def read(self, indices: torch.Tensor) -> torch.Tensor:
            return indices[:, None].float()

        def fingerprints(self, indices: torch.Tensor) -> Iterator[bytes]:
            return iter(())

    stream = Stream(Numbers(), torch.arange(30_000), 2)
    some = subset_in_memory(stream)
    assert some.shape == (10_000, 1) and len(some.unique()) == 10_000
    assert abs(some.mean() - 15_000) < 500 and torch.equal(subset_in_memory(stream), some)


@pytest.mark.slow
def test_a_stream_trains_as_memory_does_bit_for_bit(
    cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """Though it is stopped and goes on in between. And all the modes work on it."""
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8))
    keys = (f"--config.data.path={tmp_path / 'a.npy'}", "--config.data.flip=true")
    held, streamed = tmp_path / "held", tmp_path / "streamed"
    assert cli("train", held, *keys) == 0
    keys += ("--config.data.memory_gib=0",)
    advance = Trainer.advance

    def stopped(trainer: Trainer) -> None:
        if trainer.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        advance(trainer)

    monkeypatch.setattr(Trainer, "advance", stopped)
    assert cli("train", streamed, *keys) == 143
    monkeypatch.setattr(Trainer, "advance", advance)
    assert cli("train", streamed, *keys, "--config.data.workers=2") == 0  # on which nothing depends
    weights, expected = (checkpoint.latest(workdir).model for workdir in (streamed, held))
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    assert cli("data", streamed, *keys) == cli("likelihood", streamed) == cli("evaluate", streamed) == 0
    printed = capsys.readouterr().out
    assert "read from the disk" in printed and (streamed / "data.png").exists()


def test_an_image_damaged_after_the_start_stops_training_with_its_name(
    cli: Callable, tmp_path: Path, refused: Callable
):
    folder = image_folder(tmp_path / "pets")
    content = (folder / "cats/01.png").read_bytes()
    (folder / "cats/01.png").write_bytes(content[: len(content) // 2])  # its header is whole
    keys = (f"--config.data.path={folder}", "--config.data.memory_gib=0", "--config.data.image_size=8")
    sentence = refused(cli("train", tmp_path / "run", *keys, "--config.training.batch_size=64"))
    assert "image cats/01.png of" in sentence and "truncated" in sentence
