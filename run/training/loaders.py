"""Reads the samples of training steps: from memory, or from the disk by threads that run ahead of the steps.

Which samples a step takes is a function of (seed, step) only, whether they are read ahead or not, so that a
resumed run sees the data of one that was never stopped. Threads rather than processes: reading, decoding and
resampling release Python's lock, an error arrives as it was raised, and nothing is started, copied, or left
behind when this process is killed. The price is paid with files of very small images, whose headers take
longer to read in Python than their pixels.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from score_diffusion.run.data.sources import Samples, Stream
from score_diffusion.run.training.batches import BatchOrder, Loader

STEPS_AHEAD = 2


def make_loader(samples: Samples, batch_size: int, seed: int, device: torch.device) -> Loader:
    """The loader of a training set, in the order of a seed."""
    if isinstance(samples, Stream):
        return StreamLoader(samples, batch_size, seed, device)
    return MemoryLoader(samples[:], batch_size, seed, device)


class MemoryLoader:
    """Keeps all samples, and their order, on the device."""

    def __init__(self, samples: Tensor, batch_size: int, seed: int, device: torch.device) -> None:
        self._samples = samples.to(device)
        self.order = BatchOrder(len(samples), batch_size, seed, device)

    def read(self, positions: range) -> Tensor:
        """The samples at some positions of the order, on the device, shape (B, *shape)."""
        return self._samples[self.order.indices(positions)]


class StreamLoader:
    """Reads the samples of a stream, and prefetches the same share of the next batches: a rank always reads
    the same share.
    """

    def __init__(self, samples: Stream, batch_size: int, seed: int, device: torch.device) -> None:
        self._samples, self._device = samples, device
        self.order = BatchOrder(len(samples), batch_size, seed, torch.device("cpu"))
        self._pool = ThreadPoolExecutor(samples.workers, thread_name_prefix="data")
        self._pending: dict[range, tuple[Tensor, list[Future]]] = {}

    def read(self, positions: range) -> Tensor:
        """As `MemoryLoader.read`.

        Raises:
            UserError: If a sample cannot be read.
        """
        self._pending = {key: value for key, value in self._pending.items() if key.stop > positions.start}
        for ahead in range(STEPS_AHEAD + 1):
            offset = ahead * self.order.batch_size
            wanted = range(positions.start + offset, positions.stop + offset)
            if wanted not in self._pending:
                self._pending[wanted] = self._start_reading(wanted)
        batch, tasks = self._pending.pop(positions)
        for task in tasks:
            task.result()
        return batch.to(self._device, non_blocking=True)

    def _start_reading(self, positions: range) -> tuple[Tensor, list[Future]]:
        """A batch without contents, and the tasks that fill it."""
        indices = self.order.indices(positions)
        shape = (len(indices), *self._samples.shape[1:])
        pinned = self._device.type == "cuda"  # so that nothing waits for the copy to the device
        batch = torch.empty(shape, dtype=self._samples.dtype, pin_memory=pinned)
        size = -(-len(indices) // self._samples.workers)
        pieces = zip(batch.split(size), indices.split(size), strict=True)
        return batch, [self._pool.submit(self._fill, piece, rows) for piece, rows in pieces]

    def _fill(self, piece: Tensor, rows: Tensor) -> None:
        piece.copy_(self._samples[rows])
