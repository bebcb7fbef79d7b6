"""What a training step works on: which samples, in which order, and everything random about them.

    BatchOrder     which samples the batch of step k holds
    BatchDraw      the positions of a batch in that order, and its random numbers
    Batch          a draw with its samples read: what an objective is called with
    BatchSource    makes both: `source.read(source.draw(step))`

All of it is a function of (seed, step), drawn for the whole batch at once. A step in micro-batches or by
several processes works on equal shares of one `BatchDraw`, with the samples, noise and times that one process
has.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor

from score_diffusion.models.conditions import drop_conditions
from score_diffusion.run.data.vocabulary import Vocabulary
from score_diffusion.run.training.low_resolution import LowResolution
from score_diffusion.sde_lib import DrawnTimes, TrainingTimes, generator_for
from score_diffusion.sde_lib.per_sample import flags_like

T = TypeVar("T", bound="Sliceable")


class BatchOrder:
    """An endless sequence of epochs, each a permutation of the n samples; no sample is dropped.

    The batch of step k holds positions k batch_size to (k + 1) batch_size of the sequence.
    """

    def __init__(self, n: int, batch_size: int, seed: int, device: torch.device) -> None:
        self.n, self.batch_size, self.seed, self.device = n, batch_size, seed, device
        self._epoch, self._permutation = -1, torch.empty(0)

    def _permutation_of(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = generator_for(self.seed, "epoch", epoch)
            self._epoch = epoch
            self._permutation = torch.randperm(self.n, generator=generator).to(self.device)
        return self._permutation

    def positions(self, step: int) -> range:
        """The positions of the batch of a step."""
        return range(step * self.batch_size, (step + 1) * self.batch_size)

    def indices(self, positions: range) -> Tensor:
        """Indices of the samples at consecutive positions, shape (len(positions),)."""
        parts, position = [], positions.start
        while position < positions.stop:
            epoch, offset = divmod(position, self.n)
            count = min(self.n - offset, positions.stop - position)
            parts.append(self._permutation_of(epoch)[offset : offset + count])
            position += count
        return torch.cat(parts)


class Sliceable:
    """Base of dataclasses whose fields hold B rows each, of which `batch[2:5]` takes some: tensors, ranges,
    None, and dictionaries, tuples or dataclasses of these.
    """

    @abstractmethod
    def __len__(self) -> int: ...

    def __getitem__(self: T, rows: slice) -> T:
        return cast(T, _sliced(self, rows))

    def share(self: T, k: int, shares: int) -> T:
        """The k-th of a number of equal, consecutive shares."""
        size = len(self) // shares
        return self[k * size : (k + 1) * size]


def _sliced(value: object, rows: slice) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: _sliced(getattr(value, field.name), rows) for field in fields(value)}
        return type(value)(**parts)
    if isinstance(value, Mapping):
        return {key: _sliced(item, rows) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_sliced(item, rows) for item in value)
    return value[rows] if isinstance(value, Tensor | range) else value


@dataclass(frozen=True)
class BatchDraw(Sliceable):
    """The samples of a batch by their positions, and all that is random about them."""

    positions: range
    """Which samples: B positions in a `BatchOrder`."""
    mirrored: Tensor | None
    """Which are mirrored left to right, bool (B,); None where none is."""
    dropped: Tensor | None
    """Which are not conditioned on anything, bool (B,); None where none is."""
    u: Tensor
    """Uniform noise in [0, 1) for dequantization, shape (B, *shape)."""
    times: DrawnTimes | None
    """The times; None for objectives without times."""
    noise: Tensor | None
    """Standard normal noise, shape (B, *shape); None for objectives without times."""
    augmentation: tuple[Tensor, ...] = ()
    """Of the small images of a model that enlarges them, see `LowResolution`; empty without such."""

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True)
class Batch(Sliceable):
    """What an objective is called with: `objective(model, batch)`."""

    x_0: Tensor
    """The data in the units of the model, shape (B, *shape)."""
    conditions: dict[str, Tensor]
    """What the data come with, B rows each, under the names of models/conditions.py: label, vector, tokens,
    mask, image. A missing one is the null condition.
    """
    times: DrawnTimes | None
    """The times; None for objectives without times."""
    noise: Tensor | None
    """Standard normal noise, shape (B, *shape); None for objectives without times."""

    def __len__(self) -> int:
        return len(self.x_0)


def weighted_mean(losses: Tensor, times: DrawnTimes | None) -> Tensor:
    """The mean of losses (B,), with the weights of their times where there are times."""
    return losses.mean() if times is None else (times.weights.to(losses) * losses).mean()


class Loader(Protocol):
    """Reads samples in the order of training; see loaders.py."""

    order: BatchOrder

    def read(self, positions: range) -> Tensor:
        """The samples at some positions, on the device, shape (B, *shape)."""


class BatchSource:
    """The batches of a training set.

    Args:
        loader: Reads the samples.
        conditions: What the samples of the training set may be conditioned on, N rows each, under the names
            of models/conditions.py; empty where there is nothing.
        to_model: `to_model(samples, u)` gives samples in the units of the model, with uniform noise u for
            dequantization.
        times: Draws the times; None for objectives without times.
        shape: Shape of a sample.
        seed: Seed of everything random.
        device: Where the batches are.
        mirror: Whether each image is mirrored left to right with probability 1/2.
        dropout: Probability that a sample gets the null condition, of all kinds together.
        low_resolution: Makes the small images of a model that enlarges them; None for other models.
        vocabulary: How the model reads texts, each of which is encoded once; None to leave ids as they are.
    """

    def __init__(
        self,
        loader: Loader,
        conditions: Mapping[str, Tensor],
        to_model: Callable[[Tensor, Tensor], Tensor],
        times: TrainingTimes | None,
        shape: tuple[int, ...],
        seed: int,
        device: torch.device,
        mirror: bool = False,
        dropout: float = 0.0,
        low_resolution: LowResolution | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self.loader, self.order, self.times, self.shape = loader, loader.order, times, shape
        self._conditions = {kind: value.to(loader.order.device) for kind, value in conditions.items()}
        self._vocabulary, self._texts = vocabulary, dict[str, Tensor]()
        if vocabulary is not None and "text" in conditions:
            different, self._conditions["text"] = torch.unique(
                self._conditions["text"], dim=0, return_inverse=True
            )
            texts = vocabulary.conditions(different.to(device))
            self._texts = {kind: value.to(loader.order.device) for kind, value in texts.items()}
        self._to_model, self._seed, self._device = to_model, seed, device
        self._mirror, self._dropout = mirror, dropout if conditions else 0.0
        self._low_resolution = low_resolution

    def draw(self, step: int) -> BatchDraw:
        """The whole batch of a step."""
        positions = self.order.positions(step)
        generator = generator_for(self._seed, "step", step, device=self._device)
        size = len(positions)
        mirrored = self._draw_uniform("flip", step, size) < 0.5 if self._mirror else None
        dropped = self._draw_uniform("drop", step, size) < self._dropout if self._dropout else None
        augmentation = self._draw_augmentation(size, "augment", step)
        return BatchDraw(positions, mirrored, dropped, *self._draw_noise(size, generator), augmentation)

    def _draw_noise(
        self, size: int, generator: torch.Generator
    ) -> tuple[Tensor, DrawnTimes | None, Tensor | None]:
        """(u, times, noise) of a batch."""
        shape = (size, *self.shape)
        u = torch.rand(shape, generator=generator, device=self._device)
        if self.times is None:
            return u, None, None
        times = self.times.draw(size, generator)
        return u, times, torch.randn(shape, generator=generator, device=self._device)

    def _draw_augmentation(self, size: int, *keys: str | int) -> tuple[Tensor, ...]:
        if self._low_resolution is None:
            return ()
        generator = generator_for(self._seed, *keys, device=self._device)
        return self._low_resolution.draw((size, *self.shape), generator)

    def _draw_uniform(self, purpose: str, step: int, size: int) -> Tensor:
        generator = generator_for(self._seed, purpose, step, device=self._device)
        return torch.rand(size, generator=generator, device=self._device)

    def read(self, draw: BatchDraw) -> Batch:
        """A draw, or a share of one, with its samples and their conditions."""
        samples = self.loader.read(draw.positions)
        conditions = self._conditions_of(draw.positions)
        if draw.mirrored is not None:
            samples = _mirror(samples, draw.mirrored)
            if "image" in conditions:
                conditions["image"] = _mirror(conditions["image"], draw.mirrored)
        if draw.dropped is not None:
            conditions = drop_conditions(conditions, draw.dropped)
        if self._low_resolution is not None:
            conditions |= self._low_resolution.conditions(samples, *draw.augmentation)
        return Batch(self._to_model(samples, draw.u), conditions, draw.times, draw.noise)

    def _conditions_of(self, positions: range) -> dict[str, Tensor]:
        if not self._conditions:
            return {}
        indices = self.order.indices(positions)
        rows = {kind: value[indices] for kind, value in self._conditions.items()}
        if self._texts:
            text = rows.pop("text")
            rows |= {kind: value[text] for kind, value in self._texts.items()}
        return {kind: value.to(self._device, non_blocking=True) for kind, value in rows.items()}

    def held_out(self, samples: Tensor, conditions: Mapping[str, Tensor]) -> Batch:
        """A batch of held-out samples, with times and noise of its own that are always the same, and with no
        condition dropped.

        Args:
            samples: The samples, shape (B, *shape).
            conditions: What they may be conditioned on, B rows or more each.
        """
        generator = generator_for(self._seed, "held-out", device=self._device)
        u, times, noise = self._draw_noise(len(samples), generator)
        own = {kind: value[: len(samples)].to(self._device) for kind, value in conditions.items()}
        if self._vocabulary is not None and "text" in own:
            own |= self._vocabulary.conditions(own.pop("text"))
        samples = samples.to(self._device)
        if self._low_resolution is not None:
            augmentation = self._draw_augmentation(len(samples), "augment held-out")
            own |= self._low_resolution.conditions(samples, *augmentation)
        return Batch(self._to_model(samples, u), own, times, noise)


def _mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    """Images (B, ...) with those of `mirrored`, bool (B,), mirrored left to right."""
    return torch.where(flags_like(mirrored, images), images.flip(-1), images)
