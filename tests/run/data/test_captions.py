from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.info import DataInfo, load_data, read_data_info, write_data_info
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.errors import UserError
from tests.run.data.helpers import PIXELS, load, write_images, zipped


def caption(i: int) -> str:
    return f"Picture {i} of a {'cat' if i % 2 else 'dog'}"


def write_metadata(folder: Path, numbers: range, below: str = "") -> None:
    lines = [{"file_name": f"{below}{i:02d}.png", "text": caption(i), "more": i} for i in numbers]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")


def check(data: Dataset) -> None:
    """Each image has its own caption, whichever set it is in."""
    known = {image.transpose(2, 0, 1).tobytes(): i for i, image in enumerate(PIXELS)}
    assert data.classes == () and data.labels is None
    for images, conditions in ((data.train, data.conditions), (data.test, data.test_conditions)):
        for image, ids in zip(images[:], conditions["text"], strict=True):
            words = caption(known[image.numpy().tobytes()]).lower().split()
            expected = [word if word in data.vocabulary.words else "[?]" for word in words]
            assert data.vocabulary.decode(ids).split() == expected


def test_metadata_of_a_folder(tmp_path: Path):
    folder = tmp_path / "pets"
    write_images(folder / "a", range(6))
    write_images(folder / "b", range(6, 12))
    write_metadata(folder / "a", range(6))
    write_metadata(folder / "b", range(6, 12))
    data = load(folder)
    check(data)
    check(load(zipped(folder, tmp_path / "pets.zip")))
    other = load(folder, memory_gib=0.0)
    check(other)
    assert other.digest == data.digest


def test_metadata_above_the_images_and_splits(tmp_path: Path):
    for part, numbers in (("train", range(8)), ("test", range(8, 12))):
        write_images(tmp_path / part / "images", numbers)
        write_metadata(tmp_path / part, numbers, below="images/")
    data = load(tmp_path)
    check(data)
    assert (len(data.train), len(data.test)) == (8, 4)


def test_text_files_beside_the_images(tmp_path: Path):
    folder = write_images(tmp_path / "pets", range(12))
    for i in range(12):
        (folder / f"{i:02d}.txt").write_bytes(b"\xef\xbb\xbf" * (i == 3) + f" {caption(i)}\n".encode())
    data = load(folder)
    check(data)
    (folder / "04.txt").write_text("Picture 4 of a horse")
    assert load(folder).digest != data.digest
    (folder / "05.png").write_bytes(b"damaged")
    assert len(load(folder, skip_bad_files=True).train) + len(load(folder, skip_bad_files=True).test) == 11


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"file_name": "00.png", "text": "one"}', "1 of 2 images of .* have no caption, 01.png for one"),
        (b'{"file_name": "00.png", "text": "one"}\n{"file_name": 3, "text": ""}', "line 2 of metadata.jsonl"),
        (b'{"file_name": "00.png", "text": " "}\n{"file_name": "01.png", "text": "x"}', "00.png is empty"),
        (b'{"file_name": "00.png", "text": "one"}\nnonsense', "line 2 of metadata.jsonl .* is wrong"),
        (b'{"file_name": "00.png", "text": "\xff"}', "metadata.jsonl of .* is not UTF-8"),
        (b'{"text": "' + b"[" * 10**5 + b'"}', "lacks file_name"),
        (b"[" * 10**5, "nested more than"),
    ],
)
def test_bad_metadata(content: bytes, message: str, tmp_path: Path):
    write_images(tmp_path, range(2)).joinpath("metadata.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_bad_text_files(tmp_path: Path):
    folder = write_images(tmp_path / "pets", range(2))
    (folder / "00.txt").write_text("a dog")
    with pytest.raises(UserError, match="1 of 2 images of .* have no caption, 01.png for one"):
        load(folder)
    for content, message in ((b"x" * 2**17, "cannot be read"), (b"", "is empty"), (b"\xc3", "is not UTF-8")):
        (folder / "01.txt").write_bytes(content)
        for path in (folder, zipped(folder, tmp_path / "pets.zip")):
            with pytest.raises(UserError, match=f"01.(txt|png).*{message}"):
                load(path)


def test_metadata_without_captions_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_images(tmp_path, range(4))
    (folder / "metadata.jsonl").write_text('{"file_name": "00.png", "label": 3}\n')
    assert "text" not in load(folder).conditions
    assert "has no text on its first line" in capsys.readouterr().err


def test_the_run_keeps_the_words(tmp_path: Path):
    """The words are read back; data whose captions have others are not the run's; older files have none."""
    options = DataOptions(name="captioned_digits")
    info = DataInfo.of(load_data(options))
    write_data_info(tmp_path, info)
    assert read_data_info(tmp_path) == info and info.vocabulary == load_data(options, info).vocabulary
    assert not info.is_same(DataInfo(**{**vars(info), "words": ("a",)}))
    record = json.loads((tmp_path / "data.json").read_text())
    del record["words"], record["text_length"]
    (tmp_path / "data.json").write_text(json.dumps(record))
    assert read_data_info(tmp_path).vocabulary is None
    record |= {"words": [1], "text_length": 3}
    (tmp_path / "data.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="is damaged .*words"):
        read_data_info(tmp_path)


def test_captions_are_counted_once_for_each_image(tmp_path: Path):
    """Condition sizes are those of the vocabulary: its words, padding and unknown words."""
    folder = write_images(tmp_path, range(12))
    write_metadata(folder, range(12))
    data = load(folder)
    assert data.condition_sizes == {"text": len(data.vocabulary.words) + 2}
    assert data.conditions["text"].dtype == torch.int64
    assert len(np.unique(data.conditions["text"].numpy(), axis=0)) == len(data.train)
