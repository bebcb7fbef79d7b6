"""Randomness that belongs to a sample, not to its batch.

Sample k of a run draws from a generator of its own, seeded by (seed, k). What it becomes then depends neither
on the batch that it is computed in nor on how many processes share the run.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor


def generator_for(seed: int, *keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream is a function of the seed and the keys alone."""
    digest = hashlib.blake2b(repr((seed, *keys)).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


class SampleNoise:
    """One stream of random tensors per sample.

    Args:
        seed: Seed of the run.
        first: Index k of the first sample.
        shape: Shape of a batch, (B, *shape).
        device: Where the numbers are drawn; a stream is a function of (seed, k) on one kind of device.
        dtype: Floating-point type of the numbers.
        purpose: Distinguishes streams of one seed that must be independent.
    """

    def __init__(
        self,
        seed: int,
        first: int,
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        purpose: str = "sample",
    ) -> None:
        batch, *self._shape = shape
        self._like = {"device": device, "dtype": dtype}
        # The CPU's generator keeps 32 bits of a seed: consecutive seeds are distinct where hashes of k would
        # collide.
        digest = hashlib.blake2b(repr((seed, purpose)).encode(), digest_size=4).digest()
        base = int.from_bytes(digest, "big")
        self._generators = [
            torch.Generator(device).manual_seed((base + first + k) % 2**32) for k in range(batch)
        ]
        # Small samples draw many steps' worth at once; the number must depend on the sample's shape alone.
        self._block = max(1, 512 // max(1, math.prod(self._shape)))
        self._buffer: Tensor | None = None
        self._used = 0

    def normal(self) -> Tensor:
        """Standard normal noise of the batch's shape."""
        if self._buffer is None or self._used == self._block:
            self._buffer = torch.stack(
                [torch.randn(self._block, *self._shape, generator=g, **self._like) for g in self._generators],
                dim=1,
            )  # (block, B, *shape)
            self._used = 0
        self._used += 1
        return self._buffer[self._used - 1]

    def rademacher(self) -> Tensor:
        """Signs ±1 of the batch's shape, each with probability one half."""
        return torch.where(self.normal() < 0, -1.0, 1.0).to(**self._like)
