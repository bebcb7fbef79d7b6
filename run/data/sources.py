"""Where samples come from, and how they are indexed: held in memory, or read when a batch needs them.

`Samples` is a `Tensor` (N, *shape) or a `Stream` over a source larger than memory, which has the same length,
shape and indexing and reads at each access.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeAlias

import torch
from torch import Tensor

from score_diffusion.run.console import progress_bar

GIB = 2**30
TASK_BYTES = 2**20  # that one task of a thread reads, roughly
SUBSET_SAMPLES, SUBSET_BYTES = 10_000, 2**28  # of a stream that statistics look at, at most


class Source(ABC):
    """Samples that any number of threads read at a time."""

    shape: tuple[int, ...]
    """Of one sample: (D,), or channels first."""
    dtype: torch.dtype = torch.uint8

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, indices: Tensor) -> Tensor:
        """The samples with the given indices (n,), shape (n, *shape).

        Raises:
            UserError: If one cannot be read; it is named.
        """

    @abstractmethod
    def fingerprints(self, indices: Tensor) -> Iterator[bytes]:
        """For each of the samples, bytes that depend on nothing but its content."""

    def check_before_streaming(self) -> None:
        """Raises a UserError for what would otherwise be found in the middle of training."""
        return None

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample in memory."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Stream:
    """Some samples of a source."""

    source: Source
    indices: Tensor
    """Their indices in the source, int64 (N,)."""
    workers: int
    """Threads that read batches ahead."""

    @classmethod
    def of_all(cls, source: Source, workers: int) -> Stream:
        return cls(source, torch.arange(len(source)), workers)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.indices), *self.source.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.source.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all samples once they are in memory."""
        return len(self) * self.source.sample_bytes

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Some of the samples, (n, *shape of one sample); not to be written to."""
        return self.source.read(self.indices[index])

    def select(self, chosen: Tensor) -> Stream:
        """The samples for which `chosen`, bool (N,), is true, or with the indices `chosen`; reads nothing."""
        return replace(self, indices=self.indices[chosen])


Samples: TypeAlias = Tensor | Stream


def chunks(samples: Samples, size: int) -> Iterator[Tensor]:
    """All samples in order, `size` at a time; the threads of a stream read ahead."""
    spans = (slice(start, start + size) for start in range(0, len(samples), size))
    if isinstance(samples, Tensor):
        yield from map(samples.__getitem__, spans)
        return
    pool = ThreadPoolExecutor(samples.workers)
    try:
        waiting = [pool.submit(samples.__getitem__, span) for span in islice(spans, samples.workers)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(samples.__getitem__, span) for span in islice(spans, 1)]
    finally:
        pool.shutdown(cancel_futures=True)


def load_into_memory(stream: Stream) -> Tensor:
    """All samples of a stream, read by its threads, with a progress bar."""
    loaded = torch.empty(stream.shape, dtype=stream.dtype)
    count = min(max(1, TASK_BYTES // max(1, stream.source.sample_bytes)), 2**16)
    spans = [slice(first, first + count) for first in range(0, len(stream), count)]

    def fill(span: slice) -> int:
        some = stream[span]
        loaded[span] = some
        return len(some)

    pool = ThreadPoolExecutor(stream.workers)
    try:
        with progress_bar(len(stream), "reading samples", "sample", delay=1) as bar:
            for done in pool.map(fill, spans):
                bar.update(done)
    finally:
        pool.shutdown(cancel_futures=True)
    return loaded


def subset_in_memory(samples: Samples, most: int = SUBSET_SAMPLES) -> Tensor:
    """All samples if they are in memory; of a stream a random part of at most `most` samples and 256 MiB, the
    same every time.
    """
    if isinstance(samples, Tensor):
        return samples
    count = max(2, min(most, SUBSET_BYTES // samples.source.sample_bytes))
    generator = torch.Generator().manual_seed(0)
    return load_into_memory(
        samples.select(torch.randperm(len(samples), generator=generator)[:count].sort().values)
    )
