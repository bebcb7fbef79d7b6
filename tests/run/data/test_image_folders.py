from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.run.errors import UserError
from tests.run.data.helpers import PIXELS, folder_of_images, load, numbers, write_images, zipped


def test_folders_and_zips_of_images(tmp_path: Path):
    """The same images, with their folders as classes, whichever way they come."""
    folder = folder_of_images(tmp_path / "pets")
    for path in (folder, zipped(folder, tmp_path / "pets.zip")):
        data = load(path)
        assert (data.name, data.shape, data.levels) == ("pets", (3, 6, 9), 256)
        assert data.classes == ("cats", "dogs")
        pixels, labels = torch.cat([data.train, data.test]), torch.cat([data.labels, data.test_labels])
        for image, label in zip(pixels, labels, strict=True):
            same = [i for i in range(12) if (PIXELS[i].transpose(2, 0, 1) == image.numpy()).all()]
            assert len(same) == 1 and data.classes[label] == ("cats" if same[0] % 3 else "dogs")


def test_layouts_of_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """train and test below any number of folders; hidden folders are none, linked ones are."""
    root = tmp_path / "pets/all"
    folder_of_images(root / "train", PIXELS[:8])
    folder_of_images(root / "test", PIXELS[8:12])
    folder_of_images(root / ".ipynb_checkpoints")
    for path in (tmp_path / "pets", zipped(tmp_path / "pets", tmp_path / "pets.zip")):
        data = load(path)
        assert (len(data.train), len(data.test), data.classes) == (8, 4, ("cats", "dogs"))
    (tmp_path / "linked").mkdir()
    for name in ("cats", "dogs"):
        (tmp_path / "linked" / name).symlink_to(root / "train" / name)
    data = load(tmp_path / "linked")
    assert len(data.train) + len(data.test) == 8 and data.classes == ("cats", "dogs")
    folder_of_images(root / "more", PIXELS[8:12])
    with pytest.raises(UserError, match="holds more, test, train side by side"):
        load(tmp_path / "pets")


def test_images_are_cropped_and_resized(tmp_path: Path):
    flat = np.zeros((1, 4, 8, 3), np.uint8)
    flat[:, :, 2:6] = 200  # the middle square
    folder = folder_of_images(tmp_path / "flat", np.concatenate([flat, flat // 2]))
    data = load(folder, image_size=(2, 2))
    assert sorted(data.train.unique().tolist() + data.test.unique().tolist()) == [100, 200]
    assert load(folder, image_size=(2, 2), crop="none").shape == (3, 2, 2)
    with pytest.raises(UserError, match="crop must be one of center, none"):
        load(folder, image_size=(2, 2), crop="left")


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "val", "test"),
        ("Train", "Valid", "Test"),
        ("training", "validation", "testing"),
        ("TRAIN", None, "TEST"),
        ("train", "valid", None),
        ("training", None, "testing"),
        ("pets/Training", "pets/Dev", "pets/Testing"),
    ],
)
@pytest.mark.parametrize("layout", ["folder", "zip", "zip of Windows", "class first"])
def test_held_out_images_are_not_trained_on(
    train: str, validation: str | None, test: str | None, layout: str, tmp_path: Path
):
    path = tmp_path / "set"
    for name, images in ((train, range(12)), (validation, range(12, 18)), (test, range(18, 24))):
        for k, animal in enumerate(("cats", "dogs")):
            if name is not None:
                folders = Path(animal, Path(name).name) if layout == "class first" else Path(name, animal)
                write_images(path / folders, images[k::2])
    if layout.startswith("zip"):
        path = zipped(path, tmp_path / "set.zip", "\\" if "Windows" in layout else "/")
    for memory_gib in (4.0, 0.0):
        data = load(path, memory_gib=memory_gib)
        assert data.classes == ("cats", "dogs") and numbers(data.train) == set(range(12))
        scored = range(18, 24) if test else range(12, 18)
        assert numbers(data.test) == set(scored)
        for samples, labels in ((data.train, data.labels), (data.test, data.test_labels)):
            for i in range(len(samples)):
                assert numbers(samples[i : i + 1]) <= set(range(labels[i], 24, 2))
        if validation and test:
            assert numbers(data.validation) == set(range(12, 18)) and data.held_out is data.validation
        else:
            assert data.validation is None and data.held_out is data.test


def test_folders_that_leave_it_open_are_refused(tmp_path: Path):
    write_images(tmp_path / "a/train", range(3)), write_images(tmp_path / "a/Training", range(3, 6))
    write_images(tmp_path / "a/test", range(6, 9))
    with pytest.raises(UserError, match="holds folders Training and train, which both mean train data"):
        load(tmp_path / "a")
    write_images(tmp_path / "b/val", range(3)), write_images(tmp_path / "b/test", range(3, 6))
    with pytest.raises(UserError, match="holds test, val side by side"):
        load(tmp_path / "b")
    (
        write_images(tmp_path / "c/train", range(3)),
        write_images(tmp_path / "c/test", range(3, 6)),
        write_images(tmp_path / "c", range(6, 7)),
    )
    with pytest.raises(UserError, match="holds 06.png, test, train side by side"):
        load(tmp_path / "c")
    write_images(tmp_path / "d/train", range(3)), write_images(tmp_path / "d/car", range(3, 6))  # vehicles
    assert load(tmp_path / "d").classes == ("car", "train")


def test_classes_of_held_out_images_alone_are_no_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for folder, images in (("train/a", range(4)), ("train/b", range(4, 8)), ("test/c", range(8, 10))):
        write_images(tmp_path / folder, images)
    data = load(tmp_path)
    assert data.classes == ("a", "b") and data.test_labels is None and len(data.test) == 2
    assert "2 test images are in folders that no training image is in" in capsys.readouterr().err


def test_edm_archives(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Numbered shelves are no classes: dataset.json says them."""
    for shelf in range(3):
        write_images(tmp_path / f"set/0000{shelf}", range(shelf * 4, shelf * 4 + 4))
    labels = [[f"0000{i // 4}/{i:02d}.png", 7 * (i % 3)] for i in range(12)]
    cases = {
        "labels": ({"labels": labels}, ("0", "7", "14")),
        "none": ({"labels": None}, ()),
        "vectors": ({"labels": [[name, [0.5, label]] for name, label in labels]}, ()),
    }
    for content, classes in cases.values():
        (tmp_path / "set/dataset.json").write_text(json.dumps(content))
        for path in (tmp_path / "set", zipped(tmp_path / "set", tmp_path / "set.zip")):
            data = load(path)
            assert data.classes == classes and len(data.train) + len(data.test) == 12
            for image, label in zip(data.train, data.labels if classes else (), strict=False):
                assert numbers(image[None]).pop() % 3 == label
    assert "labels that are no class indices: they are not used" in capsys.readouterr().err
    for content, message in (
        (json.dumps({"labels": labels[:5]}), "has no label for 00001/05.png"),
        (json.dumps({"labels": 5}), "must hold pairs"),
        ("[" * 100_000, "cannot be read"),
        ("{", "cannot be read"),
    ):
        (tmp_path / "set/dataset.json").write_text(content)
        with pytest.raises(UserError, match=f"dataset.json of .*{message}"):
            load(tmp_path / "set")
