"""Sharded tensors in one process; several processes are in tests/run/distributed."""

from __future__ import annotations

import pytest
import torch

from score_diffusion.run.checkpoints import sharded
from score_diffusion.run.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # that there is one process


@pytest.fixture
def folder(tmp_path):
    """A folder of shards."""
    names = sharded.write(
        tmp_path, {"model:a": torch.arange(6.0).reshape(3, 2), "state:0:step": torch.ones(1)}
    )
    assert len(names) == 1
    return tmp_path


def test_they_come_back_as_they_were(folder):
    tensors = sharded.read_full(folder)
    assert torch.equal(tensors["model:a"], torch.arange(6.0).reshape(3, 2)) and len(tensors) == 2
    into = {name: torch.zeros_like(x) for name, x in tensors.items()}
    sharded.read_into(folder, into)
    assert torch.equal(into["model:a"], tensors["model:a"])


@pytest.mark.parametrize("damage", [b"", b"\xff" * 300, b"\x10" + bytes(7) + b"{}" + bytes(14)])
def test_damaged_shards_are_refused(damage, folder):
    next(folder.glob("shard-*")).write_bytes(damage)
    with pytest.raises(UserError, match="shards .* are damaged"):
        sharded.read_full(folder)


def test_other_tensors_are_refused(folder):
    with pytest.raises(UserError, match="does not fit the model"):
        sharded.read_into(folder, {"model:b": torch.zeros(3, 2)})
    with pytest.raises(UserError, match="does not fit the model"):
        sharded.copy_into(folder, {"a": torch.zeros(2)}, {"a": torch.zeros(3)})


def test_full_tensors_are_copied(folder):
    mine = {"a": torch.zeros(3)}
    sharded.copy_into(folder, {"a": torch.arange(3.0)}, mine)
    assert torch.equal(mine["a"], torch.arange(3.0))
