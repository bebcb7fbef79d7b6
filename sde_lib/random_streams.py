"""Randomness that belongs to a sample, not to its batch.

Sample k of a run draws from its own generator, seeded by (seed, k). What it becomes then depends neither on
the batch that it is computed in nor on how many processes share the run.

A seed is an integer of any type, sign and size: the stream is a function of its decimal digits.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Sequence
from typing import SupportsIndex

import torch
from torch import Tensor

from score_diffusion.sde_lib.errors import InputError


def _integer(seed: SupportsIndex) -> int:
    """Python's integer of one of any type: np.int64(3) is 3.

    Raises:
        InputError: If it is no integer.
    """
    try:
        return int(operator.index(seed))
    except TypeError:
        pass
    if isinstance(seed, torch.Generator):
        raise InputError("a seed must be an integer, got a torch.Generator: take generator.initial_seed()")
    raise InputError(f"a seed must be an integer, got {seed!r} of type {type(seed).__name__}: take int(seed)")


def _hash(seed: SupportsIndex, *keys: SupportsIndex | str, size: int) -> int:
    words = (_integer(seed), *(key if isinstance(key, str) else _integer(key) for key in keys))
    return int.from_bytes(hashlib.blake2b(repr(words).encode(), digest_size=size).digest(), "big")


def generator_for(
    seed: SupportsIndex, *keys: SupportsIndex | str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator whose stream is a function of the seed and the keys only.

    Raises:
        InputError: If the seed is no integer.
    """
    return torch.Generator(device).manual_seed(_hash(seed, *keys, size=8) >> 1)


class SampleNoise:
    """One stream of random tensors per sample.

    Args:
        seed: Seed of the run, an integer.
        first: Index k of the first sample.
        shape: Shape of a batch, (B, *shape).
        device: Where the numbers are drawn; a stream is a function of (seed, k) on one kind of device.
        dtype: Floating-point type of the numbers.
        purpose: Distinguishes streams of one seed that must be independent.

    Raises:
        InputError: If the seed or the index is no integer.
    """

    def __init__(
        self,
        seed: SupportsIndex,
        first: SupportsIndex,
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        purpose: str = "sample",
    ) -> None:
        batch, *self._shape = shape
        self._device, self._dtype = device, dtype
        # The CPU's generator keeps 32 bits of a seed: consecutive seeds are distinct where hashes of k would
        # collide.
        base = _hash(seed, purpose, size=4) + _integer(first)
        self._generators = [torch.Generator(device).manual_seed((base + k) % 2**32) for k in range(batch)]
        # Small samples draw many steps' worth at once; the number must depend only on the sample's shape.
        self._block = max(1, 512 // max(1, math.prod(self._shape)))
        self._buffer: Tensor | None = None
        self._used = 0

    def normal(self) -> Tensor:
        """Standard normal noise of the batch's shape."""
        if self._buffer is None or self._used == self._block:
            self._buffer = torch.stack([self._draw(generator) for generator in self._generators], dim=1)
            self._used = 0
        self._used += 1
        return self._buffer[self._used - 1]

    def _draw(self, generator: torch.Generator) -> Tensor:
        """Noise of one sample, shape (block, *shape)."""
        size = (self._block, *self._shape)
        return torch.randn(size, generator=generator, device=self._device, dtype=self._dtype)
