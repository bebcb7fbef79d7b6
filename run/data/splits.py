"""Training, validation and test set: which samples are held out, and a digest that tells sets apart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from score_diffusion.run.data.sources import Stream
from score_diffusion.run.data.vocabulary import Vocabulary, fitted_vocabulary
from score_diffusion.run.errors import UserError
from score_diffusion.sde_lib import generator_for


@dataclass(frozen=True)
class Split:
    """Samples with what they may be conditioned on."""

    samples: Stream
    labels: Tensor | None = None
    """Class indices, int64 (N,); None where the source has none."""
    conditions: Mapping[str, Tensor] = field(default_factory=dict)
    """The user's own conditions: vector, tokens, mask and image, N rows each; the ids of captions, text."""
    captions: np.ndarray | None = None
    """The captions, str (N,); None where the source has none."""

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def all_conditions(self) -> dict[str, Tensor]:
        """The class indices as "label", and the user's own conditions."""
        labels = {} if self.labels is None else {"label": self.labels}
        return labels | dict(self.conditions)

    def select(self, chosen: Tensor) -> Split:
        """The part for which `chosen`, bool (N,), is true."""
        labels = None if self.labels is None else self.labels[chosen]
        conditions = {kind: value[chosen] for kind, value in self.conditions.items()}
        captions = None if self.captions is None else self.captions[chosen.numpy()]
        return Split(self.samples.select(chosen), labels, conditions, captions)

    def with_captions(self, captions: np.ndarray | None) -> Split:
        """The same samples with captions, one for each sample of their source."""
        return self if captions is None else replace(self, captions=captions[self.samples.indices.numpy()])


@dataclass(frozen=True)
class Splits:
    """What a source holds."""

    parts: dict[str, Split]
    """The training set, "train", and the source's held-out sets: "test", and "validation" only next to it."""
    levels: int | None = 256
    """Number of grey levels; None for numbers."""
    classes: tuple[str, ...] = ()
    """Names of the classes."""

    @property
    def train(self) -> Split:
        return self.parts["train"]

    def map(self, change: Callable[[Stream], Stream]) -> Splits:
        """The same splits of changed streams."""
        changed = {name: replace(part, samples=change(part.samples)) for name, part in self.parts.items()}
        return replace(self, parts=changed)


def hold_out(splits: Splits, seed: int, source: str) -> tuple[Splits, str]:
    """Holds out a tenth if the source has no test set; also returns a digest of all contents and classes.

    Held out are the samples with the lowest hashes of their contents: as data are added, a sample stays on
    its side, and copies of it are on the same side.

    Raises:
        UserError: If there are fewer than two samples.
    """
    key = generator_for(seed, "held-out split").initial_seed().to_bytes(8, "big")
    digest = hashlib.blake2b(digest_size=16)
    hashes = {name: list(_hashes(part.samples, key)) for name, part in splits.parts.items()}
    for name, part in sorted(splits.parts.items()):
        digest.update(f"{name} {len(part)} ".encode() + b"".join(hashes[name]))
        for _, values in sorted(part.all_conditions.items()):
            digest.update(values.numpy().tobytes())
        if part.captions is not None:
            digest.update("\0".join(part.captions).encode())
    if "test" not in splits.parts:
        train = splits.train
        if len(train) < 2:
            raise UserError(f"{source} must hold at least 2 samples, one to hold out, got {len(train)}")
        held_out = _lowest_tenth(hashes["train"])
        splits = replace(splits, parts={"train": train.select(~held_out), "test": train.select(held_out)})
    return splits, digest.hexdigest()


def encode_captions(splits: Splits, tokenizer: str, source: str) -> tuple[Splits, Vocabulary | None]:
    """The splits with captions as ids, `text`, and the training set's vocabulary, None without captions."""
    if splits.train.captions is None:
        return splits, None
    vocabulary = fitted_vocabulary(tokenizer, [*splits.train.captions], source)
    parts = {
        name: replace(part, conditions={**part.conditions, "text": vocabulary.encode([*part.captions])})
        for name, part in splits.parts.items()
        if part.captions is not None  # as the training set
    }
    return replace(splits, parts=parts), vocabulary


def _hashes(samples: Stream, key: bytes) -> Iterator[bytes]:
    for content in samples.source.fingerprints(samples.indices):
        yield hashlib.blake2b(content, digest_size=8, key=key).digest()


def _lowest_tenth(hashes: list[bytes]) -> Tensor:
    """Which samples are held out, bool (N,)."""
    limit = (2**64 // 10).to_bytes(8, "big")
    held_out = torch.tensor([h < limit for h in hashes])
    if held_out.all() or not held_out.any():  # of very few samples: the one with the lowest hash
        held_out = torch.zeros(len(hashes), dtype=torch.bool)
        held_out[min(range(len(hashes)), key=hashes.__getitem__)] = True
    return held_out
