"""Samples in a row, held in memory or read when they are needed.

A `Tensor` (N, *shape) is such a row. So is a `Stream` over a source larger than memory: the same length,
shape and indexing, each access reads.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from score_diffusion.run.console import progress_bar
from score_diffusion.run.data.options import DataOptions

CHUNK = 64  # samples of one task of `gather`
GIB = 2**30


class Samples(Protocol):
    """N samples: a tensor, or a `Stream`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, *shape of one sample)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Some of the samples, (n, *shape of one sample); not to be written to."""


class Source(ABC):
    """Where samples are read from, by any number of threads at a time."""

    shape: tuple[int, ...]
    """Of one sample, (C, H, W) or (D,)."""
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
    def fingerprints(self) -> Iterator[bytes]:
        """What tells the samples apart, one after the other: bytes that depend on their content alone."""

    def read_all(self, workers: int) -> Tensor:
        """All samples, read by some threads."""
        return gather(Stream(self, torch.arange(len(self)), workers))

    @property
    def nbytes(self) -> int:
        """Bytes of all samples when they are held in memory."""
        return len(self) * math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Stream:
    """Some samples of a source."""

    source: Source
    indices: Tensor
    """Their indices in the source, int64 (N,)."""
    workers: int
    """Threads that read batches ahead."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.indices), *self.source.shape)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        return self.source.read(self.indices[index])

    @property
    def dtype(self) -> torch.dtype:
        return self.source.dtype


@dataclass(frozen=True)
class Splits:
    """What a source holds, before a part of it is held out."""

    train: Samples
    levels: int | None
    """Number of grey levels; None for points."""
    labels: Tensor | None = None
    """Class indices, int64 (N,)."""
    classes: tuple[str, ...] = ()
    test: Samples | None = None
    """Held-out samples, if the source has them apart."""
    test_labels: Tensor | None = None


def hold_or_stream(source: Source, options: DataOptions) -> Samples:
    """All samples of a source: in memory if they take no more than `data.memory_gib`, else a stream."""
    if source.nbytes <= options.memory_gib * GIB:
        return source.read_all(options.workers)
    return Stream(source, torch.arange(len(source)), options.workers)


def gather(samples: Stream) -> Tensor:
    """All samples of a stream, with a progress bar."""
    gathered = torch.empty(samples.shape, dtype=samples.dtype)
    spans = [slice(first, first + CHUNK) for first in range(0, len(samples), CHUNK)]

    def fill(span: slice) -> int:
        some = samples[span]
        gathered[span] = some
        return len(some)

    pool = ThreadPoolExecutor(samples.workers)
    try:
        with progress_bar(len(samples), "reading samples", "sample", delay=1) as bar:
            for count in pool.map(fill, spans):
                bar.update(count)
    finally:
        pool.shutdown(cancel_futures=True)
    return gathered


def select(samples: Samples, chosen: Tensor) -> Samples:
    """Those samples for which `chosen`, bool (N,), is true, or with the indices `chosen`; of a stream nothing
    is read.
    """
    if isinstance(samples, Tensor):
        return samples[chosen]
    return replace(samples, indices=samples.indices[chosen])


def in_memory(samples: Samples) -> Tensor:
    """All samples if they are held in memory; of a stream a random part of at most 10,000 samples and 256
    MiB, the same every time.
    """
    if isinstance(samples, Tensor):
        return samples
    count = max(2, min(10_000, 2**28 // (math.prod(samples.shape[1:]) * samples.dtype.itemsize)))
    generator = torch.Generator().manual_seed(0)
    return gather(select(samples, torch.randperm(len(samples), generator=generator)[:count].sort().values))


def fingerprints(samples: Samples) -> Iterable[bytes]:
    """Of each sample bytes that depend on its content alone; of all samples that a stream's source has."""
    if isinstance(samples, Tensor):
        return (sample.tobytes() for sample in samples.numpy())
    return samples.source.fingerprints()
