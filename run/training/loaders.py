"""The samples of training steps, on the device: taken from memory, or read ahead of the step by threads.

Which samples a step takes is a function of (seed, step) alone, read ahead or not, so that a run that goes on
sees the data of one that was not stopped. Threads, and not processes: reading, decoding and resampling run
without Python's lock, an error arrives as it was raised, and nothing is started, copied, or left behind when
this process is killed. The price is paid for files of very small images, whose headers, read in Python, take
longer than their pixels.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from score_diffusion.run.data.sources import Samples, Stream
from score_diffusion.run.training.batches import BatchOrder

AHEAD = 2  # steps whose samples are read while one is under way


class Feed(Protocol):
    """The samples of training steps."""

    order: BatchOrder
    """Which samples each step takes."""

    def read(self, places: range) -> Tensor:
        """The samples at some places of the order, a step's or a part of them, on the device, (B, *shape)."""


def make_feed(samples: Samples, batch_size: int, seed: int, device: torch.device) -> Feed:
    """The samples of a training set on a device, in the order of a seed."""
    kind = ResidentFeed if isinstance(samples, Tensor) else StreamFeed
    return kind(samples, batch_size, seed, device)


class ResidentFeed:
    """Of samples that are held in memory: they lie on the device, and so does their order."""

    def __init__(self, samples: Tensor, batch_size: int, seed: int, device: torch.device) -> None:
        self._samples = samples.to(device)
        self.order = BatchOrder(len(samples), batch_size, seed, device)

    def read(self, places: range) -> Tensor:
        return self._samples[self.order.at(places)]


class StreamFeed:
    """Of a stream. Who reads a part of a step will read the same part of the next: these are begun now."""

    def __init__(self, samples: Stream, batch_size: int, seed: int, device: torch.device) -> None:
        self._samples, self._device = samples, device
        self.order = BatchOrder(len(samples), batch_size, seed, torch.device("cpu"))
        self._pool = ThreadPoolExecutor(samples.workers, thread_name_prefix="data")
        self._begun: dict[range, tuple[Tensor, list[Future]]] = {}

    def read(self, places: range) -> Tensor:
        """As `Feed.read`.

        Raises:
            UserError: If a sample cannot be read.
        """
        later = [k * self.order.batch_size for k in range(AHEAD + 1)]
        self._begun = {key: begun for key, begun in self._begun.items() if key.stop > places.start}
        for wanted in (range(places.start + offset, places.stop + offset) for offset in later):
            if wanted not in self._begun:
                self._begun[wanted] = self._begin(wanted)
        batch, parts = self._begun.pop(places)
        for part in parts:
            part.result()
        return batch.to(self._device, non_blocking=True)

    def _begin(self, places: range) -> tuple[Tensor, list[Future]]:
        """A batch yet to be filled, and the work that fills it."""
        indices = self.order.at(places)
        shape = (len(indices), *self._samples.shape[1:])
        pinned = self._device.type == "cuda"  # so that the copy to the device need not be waited for
        batch = torch.empty(shape, dtype=self._samples.dtype, pin_memory=pinned)
        share = -(-len(indices) // self._samples.workers)
        pieces = zip(batch.split(share), indices.split(share), strict=True)
        return batch, [self._pool.submit(self._fill, piece, rows) for piece, rows in pieces]

    def _fill(self, piece: Tensor, rows: Tensor) -> None:
        piece.copy_(self._samples[rows])
