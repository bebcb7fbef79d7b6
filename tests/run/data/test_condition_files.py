"""Files of conditions to draw samples under."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.run.data import condition_files
from score_diffusion.run.data.condition_files import read_conditions, write_conditions
from score_diffusion.run.errors import UserError

CONDITIONS = {
    "vector": torch.randn(9, 3),
    "tokens": torch.randn(9, 4, 2),
    "mask": torch.rand(9, 4) < 0.5,
    "image": torch.randn(9, 2, 8, 6),
    "label": torch.arange(9),
}
SHAPE = (1, 8, 6)


def test_what_is_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_conditions(tmp_path, CONDITIONS)
    found = read_conditions(tmp_path / "conditions.npz", SHAPE)
    assert found.keys() == CONDITIONS.keys()
    assert all(torch.equal(found[kind], values) for kind, values in CONDITIONS.items())
    monkeypatch.setattr(condition_files, "MOST_ROWS", 4)  # of many, the first
    write_conditions(tmp_path, CONDITIONS)
    found = read_conditions(tmp_path / "conditions.npz", SHAPE)
    assert torch.equal(found["image"], CONDITIONS["image"][:4]) and len(found["label"]) == 4


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (dict(x=np.zeros(3)), "must hold one of cond_vector, cond_tokens, cond_mask, cond_image, it holds x"),
        (dict(cond_vector=np.zeros((2, 3)), cond_tokens=np.zeros((3, 4, 2))), "N = 2, the number of samples"),
        (dict(cond_vector=np.float32(1)), "cond_vector of .* must be numbers of shape (N, V)"),
        (
            dict(cond_vector=np.zeros(2), label=np.zeros(2)),
            "label of .* must be 2 class indices, got float64",
        ),
        (dict(cond_vector=np.zeros(2), label=np.array([0, -2])), "must be 2 class indices"),
        (dict(cond_image=np.zeros((2, 1, 9, 9))), "of the size of the samples, (8, 6)"),
        (dict(cond_vector=np.array([None, 1])), "cannot be read"),
    ],
)
def test_what_does_not_fit_is_one_sentence(arrays: dict[str, np.ndarray], message: str, tmp_path: Path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=re.escape(message).replace(r"\.\*", ".*").replace(r"\ ", " ")):
        read_conditions(tmp_path / "a.npz", SHAPE)


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="does not exist: name one in sampling.conditions"):
        read_conditions(tmp_path / "a.npz", SHAPE)
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(UserError, match="cannot be read"):
        read_conditions(tmp_path / "a.npz", SHAPE)
    monkeypatch.setattr(condition_files, "LARGEST_FILE", 1000)
    write_conditions(tmp_path, CONDITIONS)
    with pytest.raises(UserError, match="and at most 1,000 are read"):
        read_conditions(tmp_path / "conditions.npz", SHAPE)
