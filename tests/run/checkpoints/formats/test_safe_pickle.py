"""Files of torch.save: what is read, and what is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.run.checkpoints.formats.safe_pickle import (
    load_tensors,
    state_dict,
    tensor_list,
    training_step,
)
from score_diffusion.run.errors import UserError


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_tensors_numbers_and_containers_are_read(tmp_path: Path):
    content = {
        "a": torch.ones(2),
        "b": [1, 2.5, "c", None, (True,)],
        "lr": np.float64(2e-4),
        "n": np.int64(3),
    }
    for legacy in (False, True):
        torch.save(content, tmp_path / "file", _use_new_zipfile_serialization=not legacy)
        found = load_tensors(tmp_path / "file")
        assert torch.equal(found.pop("a"), torch.ones(2))
        assert found == {key: value for key, value in content.items() if key != "a"}


def test_anything_else_is_refused(tmp_path: Path):
    path = tmp_path / "file"
    with pytest.raises(UserError, match="does not exist"):
        load_tensors(path)
    torch.save({"bomb": Bomb()}, path)
    with pytest.raises(UserError, match="is refused: it holds more than tensors and numbers"):
        load_tensors(path)
    for content in (b"", b"PK", bytes(100), b"\x80\x02.", b"not a file of PyTorch's at all"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is damaged|is refused"):
            load_tensors(path)


def test_archives_that_grow_are_refused(tmp_path: Path):
    """A megabyte of zeros, compressed to a few kilobytes; the same is a gigabyte in a megabyte."""
    torch.save({"a": torch.zeros(2**18)}, tmp_path / "plain")
    with zipfile.ZipFile(tmp_path / "plain") as plain, zipfile.ZipFile(tmp_path / "bomb", "w") as bomb:
        for part in plain.infolist():
            bomb.writestr(part.filename, plain.read(part), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb").stat().st_size < 10_000
    with pytest.raises(UserError, match="its parts have .* bytes, more than its own"):
        load_tensors(tmp_path / "bomb")


def test_tensors_that_repeat_their_numbers_are_refused(tmp_path: Path):
    """One number, of stride 0, as a tensor of four terabytes."""
    torch.save({"a": torch.zeros(1).expand(2**20, 2**20)}, tmp_path / "file")
    content = load_tensors(tmp_path / "file")
    with pytest.raises(UserError, match=r"a has shape \(1048576, 1048576\) without them"):
        state_dict(content, "it")
    with pytest.raises(UserError, match=r"0 has shape \(1048576, 1048576\) without them"):
        tensor_list(list(content.values()), "it")
    assert tensor_list([torch.zeros(2, 3).T, torch.zeros(0)], "it")[0].shape == (3, 2)


def test_names_lose_what_wrappers_added():
    for name in ("a.b", "module.a.b", "_orig_mod.a.b", "module._orig_mod.a.b", "a._orig_mod.b"):
        assert list(state_dict({name: torch.zeros(1)}, "it")) == ["a.b"]
    mixed = {"module.a": torch.zeros(1), "b": torch.zeros(1)}  # a part that is called so
    assert list(state_dict(mixed, "it")) == ["module.a", "b"]


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (None, "it must be a dictionary of tensors, it is of type NoneType"),
        ({}, "it is an empty dict"),
        ([torch.zeros(1)], "it is a list"),
        ({"a": [1]}, "it holds a list under 'a'"),
        ({3: torch.zeros(1)}, "it holds of type Tensor under 3"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "a is torch.sparse_coo"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "must hold dense tensors of real numbers"),
    ],
)
def test_what_is_no_state_dict_is_named(value: object, match: str):
    with pytest.raises(UserError, match=match):
        state_dict(value, "it")


@pytest.mark.parametrize("value", [7, 7.0, np.int64(7), torch.tensor(7), torch.tensor([7.0])])
def test_steps_of_every_kind_are_read(value: object):
    step = training_step(value, "it")
    assert step == 7 and type(step) is int


@pytest.mark.parametrize(
    "value", [-1, 0.5, True, None, "7", [7], float("nan"), float("inf"), 2**60, torch.ones(2)]
)
def test_what_is_no_step_is_refused(value: object):
    with pytest.raises(UserError, match="it must be a number of training steps"):
        training_step(value, "it")
