from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import fields

import pytest
import torch

from run.batches import Draw
from run.errors import UserError
from run.feeds import AHEAD, Feed, make_feed
from run.samples import Source, Stream

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


def draw(feed: Feed, step: int) -> Draw:
    """That of a step, without what only the loss needs."""
    nothing = {field.name: None for field in fields(Draw)}
    return Draw(**{**nothing, "step": step, "first": 0, "indices": feed.order(step)})


def pair(rows: torch.Tensor, batch_size: int, workers: int = 3) -> tuple[Feed, Feed, Recorded]:
    """Feeds of a stream and of a tensor with the same samples, and the source of the stream."""
    source = Recorded()
    held = rows[:, None].expand(-1, 2).float()
    return (
        make_feed(Stream(source, rows, workers), batch_size, 0, CPU),
        make_feed(held, batch_size, 0, CPU),
        source,
    )


def test_a_batch_is_a_function_of_its_step_alone():
    """Read ahead, again, or after a jump: as from memory."""
    stream, memory, _ = pair(torch.arange(14, 50), 7)
    for step in (0, 1, 2, 3, 3, 9, 4, 5):
        expected = memory.read(draw(memory, step))
        assert torch.equal(stream.read(draw(stream, step)), expected)
        assert torch.equal(expected[:, 0].long(), memory.order(step) + 14)


def test_parts_of_a_step_are_its_rows():
    stream, memory, _ = pair(torch.arange(14, 50), 12)
    for step in range(3):
        whole = memory.read(draw(memory, step))
        halves = [draw(stream, step).part(r, 2) for r in range(2)]
        parts = [stream.read(half.part(r, 3)) for half in halves for r in range(3)]
        assert torch.equal(torch.cat(parts), whole)


def test_the_next_steps_are_read_ahead_and_once():
    stream, memory, source = pair(torch.arange(14, 50), 6)
    for step in range(4):
        for r in range(2):
            stream.read(draw(stream, step).part(r, 2))
    stream._pool.shutdown()
    ahead = torch.cat([memory.order(step) for step in range(4 + AHEAD)]) + 14
    assert sorted(source.read_rows) == sorted(ahead.tolist())


def test_a_process_reads_its_own_part_alone():
    stream, memory, source = pair(torch.arange(14, 50), 6)
    for step in range(4):
        stream.read(draw(stream, step).part(1, 2))
    stream._pool.shutdown()
    ahead = torch.cat([memory.order(step)[3:] for step in range(4 + AHEAD)]) + 14
    assert sorted(source.read_rows) == sorted(ahead.tolist())


def test_what_cannot_be_read_ends_the_step_that_needs_it():
    stream, _, _ = pair(torch.arange(50), 10)
    with_13 = next(step for step in range(5) if 13 in stream.order(step))
    for step in range(5):
        if step < with_13:
            stream.read(draw(stream, step))
    with pytest.raises(UserError, match="sample 13"):
        stream.read(draw(stream, with_13))
