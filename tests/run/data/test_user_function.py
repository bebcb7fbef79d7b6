from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.user_function import absolute
from score_diffusion.run.errors import UserError
from score_diffusion.run.main import main

TINY = str(Path(__file__).parents[1] / "tiny.py")

MODULE = """
import numpy as np, torch
images = np.arange(20 * 12, dtype=np.uint8).reshape(20, 3, 4)
def alone(): return images
def pair(): return images[:15], images[15:]
def named(): return dict(x_train=images, y_train=np.arange(20) % 2, x_test=images[:2], y_test=[1, 0])
def tensors(): return torch.arange(40.0).reshape(20, 2)
def broken(): raise RuntimeError("no such\\nserver")
def number(): return 3
def ragged(): return [[1.0], [2.0, 3.0]]
def nothing(): return {}
def objects(): return np.array([None, None])
constant = 5
"""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MODULE)
    return tmp_path / "mine.py"


def load(path: str, **keys: object) -> Dataset:
    return load_dataset(DataOptions(path=absolute(path), **keys))


def test_a_function_gives_what_an_npz_holds(module: Path):
    images = torch.arange(20 * 12, dtype=torch.uint8).reshape(20, 1, 3, 4)
    alone, pair, named, tensors = (load(f"{module}:{name}") for name in ("alone", "pair", "named", "tensors"))
    assert torch.equal(torch.cat([alone.train, alone.test]).sort(0).values, images.sort(0).values)
    assert torch.equal(pair.train, images[:15]) and torch.equal(pair.test, images[15:])
    assert torch.equal(named.train, images) and torch.equal(named.test, images[:2])
    assert named.labels.tolist() == [0, 1] * 10 and named.test_labels.tolist() == [1, 0]
    assert tensors.shape == (2,) and tensors.levels is None and alone.levels == 256
    assert pair.name == "pair"
    streamed = load(f"{module}:pair", memory_gib=0.0)
    assert torch.equal(streamed.train[:], pair.train)


def test_a_function_of_a_module_beside_the_user(module: Path, monkeypatch: pytest.MonkeyPatch):
    module.rename(module.with_name("my_module_of_data.py"))
    monkeypatch.chdir(module.parent)
    assert len(load("my_module_of_data:pair").train) == 15


def test_paths_of_functions_hold_in_other_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("mine.py:load") == f"{tmp_path / 'mine.py'}:load"
    assert absolute("package.module:load") == "package.module:load"
    assert absolute("images") == str(tmp_path / "images")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute("~/images") == str(tmp_path / "images")
    assert absolute("~/mine.py:load") == f"{tmp_path / 'mine.py'}:load"
    (tmp_path / "odd:name").mkdir()  # a folder, whatever its name
    assert absolute("odd:name") == str(tmp_path / "odd:name")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", r"must define a function missing\(\)"),
        ("constant", r"must define a function constant\(\)"),
        ("broken", "the function raised RuntimeError: no such server"),
        ("number", "must be an array, .*; it is array: int"),
        ("nothing", "it is nothing"),
        ("ragged", "is no array: ValueError"),
        ("objects", "dtype object"),
    ],
)
def test_what_a_function_does_wrong_is_one_sentence(name: str, message: str, module: Path):
    with pytest.raises(UserError, match=message) as error:
        load(f"{module}:{name}")
    assert "mine.py" in str(error.value) and "\n" not in str(error.value)


def test_modules_that_are_missing_or_do_not_run(tmp_path: Path):
    with pytest.raises(UserError, match="there is no such file"):
        load(f"{tmp_path}/none.py:f")
    with pytest.raises(UserError, match="raised ModuleNotFoundError"):
        load("no_such_package.data:f")
    (tmp_path / "bad.py").write_text("1/0")
    with pytest.raises(UserError, match="bad.py, which raised ZeroDivisionError"):
        load(f"{tmp_path}/bad.py:f")


def test_mapped_arrays_of_a_function_are_streamed(tmp_path: Path):
    np.save(tmp_path / "big.npy", np.arange(80, dtype=np.float32).reshape(40, 2))
    (tmp_path / "mapped.py").write_text(
        f"import numpy as np\ndef load(): return np.load({str(tmp_path / 'big.npy')!r}, mmap_mode='r')"
    )
    data = load(f"{tmp_path}/mapped.py:load", memory_gib=0.0)
    points = data.scaling.stored_to_user(torch.cat([data.train[:], data.test[:]]))
    np.testing.assert_allclose(sorted(points[:, 0].tolist()), np.arange(0, 80, 2), atol=1e-5)


def test_a_run_that_somebody_sent_calls_no_function(
    trained: Path, module: Path, tmp_path: Path, refused: Callable
):
    """Nor does it import the module; a function on the command line or in a configuration file is called."""
    marker = tmp_path / "executed"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\ndef load(): open({str(marker)!r}, 'w')\n")
    config = json.loads((trained / "config.json").read_text())
    for function in (f"{tmp_path / 'evil.py'}:load", "antigravity:fly_away", "os.path:exists"):
        config["data"]["path"] = function
        (trained / "config.json").write_text(json.dumps(config))
        for mode in ("likelihood", "evaluate", "train", "data"):
            run = ["--mode", mode, "--workdir", str(trained)]
            for arguments in (run, [*run, "--dry_run"]):
                sentence = refused(main(arguments))
                assert f"names the Python function {function} as its data" in sentence
        assert main(["--mode", "sample", "--workdir", str(trained)]) == 0  # reads no data
    assert not marker.exists() and "antigravity" not in sys.modules
    named = f"--config.data.path={tmp_path / 'evil.py'}:load"
    assert "it is array: NoneType" in refused(main(["--mode", "data", "--workdir", str(trained), named]))
    assert marker.exists()
    (tmp_path / "mine_config.py").write_text(
        f"import runpy\nconfig = runpy.run_path({TINY!r})['get_config']()\n"
        f"config.data.path = {str(module) + ':pair'!r}\ndef get_config(): return config\n"
    )
    own = ["--config", str(tmp_path / "mine_config.py"), "--workdir", str(tmp_path / "own")]
    assert main(["--mode", "data", *own]) == 0
