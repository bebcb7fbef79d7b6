"""Other data are told apart from those that a run was trained on, whatever they come in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.info import DataInfo, load_data, read_data_info
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.errors import UserError
from tests.run.processes import job

TINY = str(Path(__file__).parents[1] / "tiny.py")
PARTS = {"train": range(12), "val": range(12, 15), "test": range(15, 20)}


def load(path: object, **keys: object) -> Dataset:
    return load_dataset(DataOptions(path=str(path), workers=2, **keys))


def as_arrays(images: np.ndarray, labels: np.ndarray, path: Path) -> Path:
    arrays = {f"x_{part}": images[list(some)] for part, some in PARTS.items()}
    np.savez(
        path.with_suffix(".npz"),
        **arrays,
        **{f"y_{part}": labels[list(some)] for part, some in PARTS.items()},
    )
    return path.with_suffix(".npz")


def as_folder(images: np.ndarray, labels: np.ndarray, path: Path) -> Path:
    for part, some in PARTS.items():
        for i in some:
            folder = path / part / f"class{labels[i]}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[i]).save(folder / f"{i:02d}.png")
    return path


def as_function(images: np.ndarray, labels: np.ndarray, path: Path) -> str:
    arrays = as_arrays(images, labels, path)
    path.with_suffix(".py").write_text(
        f"import numpy as np\ndef load(): return dict(np.load({str(arrays)!r}))"
    )
    return f"{path.with_suffix('.py')}:load"


@pytest.mark.parametrize("write", [as_arrays, as_folder, as_function])
def test_the_digest_is_of_every_part_and_of_the_classes(write: Callable, tmp_path: Path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 8, 8), np.uint8), np.arange(20) % 2
    streamed = {} if write is as_arrays else {"memory_gib": 0.0}
    ours = DataInfo.of(load(write(images, labels, tmp_path / "a")))
    assert ours.digest and (ours.num_train, ours.num_test) == (12, 5)
    assert ours.is_same(DataInfo.of(load(write(images, labels, tmp_path / "b"), **streamed)))
    for changed in (3, 13, 18):  # of training, validation and test set
        others = images.copy()
        others[changed, 4, 4] ^= 1
        theirs = DataInfo.of(load(write(others, labels, tmp_path / f"c{changed}")))
        assert ours.fits(theirs) and not ours.is_same(theirs)
    if write is not as_folder:  # where classes decide which folder is read first
        other_labels = labels.copy()
        other_labels[18] = 1 - other_labels[18]
        assert not ours.is_same(DataInfo.of(load(write(images, other_labels, tmp_path / "d"))))


def test_a_run_refuses_other_data_with_a_test_set(cli: Callable, tmp_path: Path, refused: Callable):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        as_arrays(rng.integers(0, 256, (20, 8, 8), np.uint8), np.arange(20) % 2, tmp_path / name)
    workdir, few = tmp_path / "run", ("--config.training.batch_size=4", "--config.training.steps=1")
    assert cli("train", workdir, f"--config.data.path={tmp_path / 'a.npz'}", *few) == 0
    other = f"--config.data.path={tmp_path / 'b.npz'}"
    for mode, arguments in (("train", few), ("likelihood", ()), ("evaluate", ())):
        assert "of other content" in refused(cli(mode, workdir, other, *arguments))


@pytest.mark.slow
def test_ranks_with_other_data_end_before_the_first_step(tmp_path: Path):
    """8x8 images on rank 0 and 8x16 ones, or others of 8x8, on rank 1."""
    (tmp_path / "mine.py").write_text(
        "import os, numpy as np\n"
        "rank = int(os.environ['RANK'])\n"
        "def sizes(): return np.random.default_rng(0).integers(0, 256, (20, 8, 8 + 8 * rank), np.uint8)\n"
        "def contents(): return np.random.default_rng(rank).integers(0, 256, (20, 8, 8), np.uint8)\n"
    )
    for name in ("sizes", "contents"):
        workdir = tmp_path / name
        path = f"--config.data.path={tmp_path / 'mine.py'}:{name}"
        done = job(
            2, ["--mode", "train", "--config", TINY, "--workdir", str(workdir), path], tmp_path / "said"
        )
        assert done.codes == [2, 2] and not (workdir / "log.jsonl").exists()
        assert all("rank 0 has read" in said and "of other content" in said for said in done.err)


def test_built_in_data_are_the_same_anywhere(tmp_path: Path):
    info = DataInfo.of(load_data(DataOptions(name="digits")))
    assert load_data(DataOptions(name="digits"), info).shape == (1, 8, 8)
    with pytest.raises(UserError, match="the network is for samples of shape .1, 8, 8., 17 grey levels"):
        load_data(DataOptions(name="moons"), info)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", None), ("shape", "x"), ("shape", [1, -8, 8]), ("shape", [1, "8", 8]), ("shape", []),
        ("num_train", "898"), ("num_train", -1), ("num_test", 1.5), ("num_test", None), ("name", 3),
        ("digest", 7), ("classes", [1]), ("classes", 3),
        ("scaling", None), ("scaling", []), ("scaling", {"levels": "17"}),
        ("scaling", {"levels": 1}), ("scaling", {"shift": ["a"], "scale": [1.0]}),
        ("scaling", {"shift": [0.0], "scale": [0.0]}), ("scaling", {"shift": [float("nan")], "scale": [1.0]}),
        ("scaling", {"shift": [0.0, 1.0], "scale": [1.0]}), ("scaling", {"dtype": "object"}),
        ("scaling", {"levels": 17, "more": 1}), ("scaling", {"shift": 5, "scale": 5}), ("more", 1),
    ],
    ids=str,
)  # fmt: skip
def test_data_json_is_checked(key: str, value: object, trained: Path, tmp_path: Path):
    content = json.loads((trained / "data.json").read_text())
    (tmp_path / "data.json").write_text(json.dumps(content | {key: value}))
    with pytest.raises(UserError, match="data.json is damaged"):
        read_data_info(tmp_path)


def test_a_data_json_that_is_no_object(tmp_path: Path):
    for content in ("", "[]", "null", "3", "{}", "[" * 100_000, '{"name": 1}', "\x00"):
        (tmp_path / "data.json").write_text(content)
        with pytest.raises(UserError, match="data.json is damaged"):
            read_data_info(tmp_path)
