"""What a training step is made of: which samples, and everything random beside them.

All of it is a function of (seed, step), and drawn for the whole batch at once, whoever works on it: a step in
micro-batches or by many processes takes parts of the same `Draw`, and has the samples, noise and times of one
batch in one process.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import TypeVar

import torch
from torch import Tensor

from score_diffusion.sde_lib import DrawnTimes, generator_for

Part = TypeVar("Part")


class BatchOrder:
    """An endless sequence of epochs, each a permutation of its own, of which step k takes the places from
    k batch_size on; no sample is dropped.
    """

    def __init__(self, n: int, batch_size: int, seed: int, device: torch.device) -> None:
        self.n, self.batch_size, self.seed, self.device = n, batch_size, seed, device
        self._epoch, self._order = -1, torch.empty(0)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = generator_for(self.seed, "epoch", epoch)
            self._epoch, self._order = epoch, torch.randperm(self.n, generator=generator).to(self.device)
        return self._order

    def __call__(self, step: int) -> Tensor:
        """Indices of the batch of a step, shape (batch_size,)."""
        return self.at(self.places(step))

    def places(self, step: int) -> range:
        """Where in the sequence the batch of a step is."""
        return range(step * self.batch_size, (step + 1) * self.batch_size)

    def at(self, places: range) -> Tensor:
        """Indices of the samples at consecutive places of the sequence, shape (len(places),)."""
        parts, position = [], places.start
        while position < places.stop:
            epoch, offset = divmod(position, self.n)
            take = min(self.n - offset, places.stop - position)
            parts.append(self._permutation(epoch)[offset : offset + take])
            position += take
        return torch.cat(parts)


class Rows:
    """Base of dataclasses whose fields are tensors or ranges of B rows, dataclasses of such, or None."""

    def __len__(self) -> int:
        return len(self.noise)

    def rows(self: Part, chosen: slice) -> Part:
        """Some rows of all tensors."""
        return _take(self, chosen)

    def part(self: Part, r: int, parts: int) -> Part:
        """The r-th of `parts` equal, consecutive parts."""
        size = len(self) // parts
        return self.rows(slice(r * size, (r + 1) * size))


def _take(batch: Part, rows: slice) -> Part:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    for name, value in values.items():
        if is_dataclass(value):
            values[name] = _take(value, rows)
        elif value is not None:
            values[name] = value[rows]
    return type(batch)(**values)


@dataclass(frozen=True)
class Draw(Rows):
    """The samples of a batch by their places in the order, and all that is random about them."""

    places: range
    """Which samples: B places in the sequence of a `BatchOrder`."""
    mirrored: Tensor | None
    """Whether each is flipped left to right, shape (B,); None where none is."""
    u: Tensor
    """Uniform noise in [0, 1) for dequantization, shape (B, *shape)."""
    times: DrawnTimes
    noise: Tensor
    """Standard normal noise, shape (B, *shape)."""


@dataclass(frozen=True)
class Batch(Rows):
    """A draw, or a part of one, with its samples read."""

    x_0: Tensor
    """What the model sees without noise, shape (B, *shape)."""
    times: DrawnTimes
    noise: Tensor
    """Standard normal noise, shape (B, *shape)."""
