from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from score_diffusion.run.data.sources import Source, Stream
from score_diffusion.run.errors import UserError
from score_diffusion.run.training.batches import Loader
from score_diffusion.run.training.loaders import STEPS_AHEAD, make_loader

CPU = torch.device("cpu")


class Recorded(Source):
    """Points (i, i), and a record of what was read."""

    shape, dtype = (2,), torch.float32

    def __init__(self) -> None:
        self.read_rows: list[int] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return 50

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        with self._lock:
            self.read_rows += rows.tolist()
        if (rows == 13).any():
            raise UserError("sample 13 cannot be read")
        return rows[:, None].expand(-1, 2).float()

    def fingerprints(self) -> Iterator[bytes]:
        return (bytes([i]) for i in range(50))


def pair(rows: torch.Tensor, batch_size: int, workers: int = 3) -> tuple[Loader, Loader, Recorded]:
    """Loaders of a stream and of a tensor with the same samples, and the source of the stream."""
    source = Recorded()
    held = rows[:, None].expand(-1, 2).float()
    return (
        make_loader(Stream(source, rows, workers), batch_size, 0, CPU),
        make_loader(held, batch_size, 0, CPU),
        source,
    )


def part(positions: range, r: int, parts: int) -> range:
    size = len(positions) // parts
    return positions[r * size : (r + 1) * size]


def test_a_batch_is_a_function_of_its_step_only():
    """Read ahead, again, or after a jump: as from memory."""
    stream, memory, _ = pair(torch.arange(14, 50), 7)
    for step in (0, 1, 2, 3, 3, 9, 4, 5):
        positions = memory.order.positions(step)
        expected = memory.read(positions)
        assert torch.equal(stream.read(positions), expected)
        assert torch.equal(expected[:, 0].long(), memory.order.indices(positions) + 14)


def test_parts_of_a_step_are_its_rows():
    stream, memory, _ = pair(torch.arange(14, 50), 12)
    for step in range(3):
        positions = memory.order.positions(step)
        parts = [stream.read(part(positions, r, 3)) for r in range(3)]
        assert torch.equal(torch.cat(parts), memory.read(positions))


@pytest.mark.parametrize("mine", [[0], [0, 1], [1]], ids=["whole", "two micro-batches", "the second process"])
def test_the_next_steps_are_read_ahead_once_and_nothing_else(mine: list[int]):
    stream, memory, source = pair(torch.arange(14, 50), 6)
    parts = 1 if mine == [0] else 2
    for step in range(4):
        for r in mine:
            stream.read(part(stream.order.positions(step), r, parts))
    stream._pool.shutdown()
    wanted = [part(memory.order.positions(step), r, parts) for step in range(4 + STEPS_AHEAD) for r in mine]
    ahead = torch.cat([memory.order.indices(positions) for positions in wanted]) + 14
    assert sorted(source.read_rows) == sorted(ahead.tolist())


def test_what_cannot_be_read_ends_the_step_that_needs_it():
    stream, _, _ = pair(torch.arange(50), 10)
    with_13 = next(step for step in range(5) if 13 in stream.order.indices(stream.order.positions(step)))
    for step in range(with_13):
        stream.read(stream.order.positions(step))
    with pytest.raises(UserError, match="sample 13"):
        stream.read(stream.order.positions(with_13))
