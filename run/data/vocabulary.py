"""Texts of captions as numbers: what a text encoder reads.

    words   a text in lower case, cut into words, numbers and single punctuation marks, each with an id of its
            own; words that no training caption had are unknown
    bytes   the UTF-8 bytes of a text, b with the id b + 1, so that any text can be read

Before that a text is normalized: Unicode NFKC, single spaces. A row of ids holds those of a text and then
zeros; an empty text is a row of zeros, the null condition.
"""

from __future__ import annotations

import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from score_diffusion.run.console import warn
from score_diffusion.run.errors import MOST_SUGGESTED, some_of

PADDING, UNKNOWN, FIRST_WORD = 0, 1, 2  # ids
MOST_WORDS = 8192  # of a vocabulary; rarer ones are unknown
MOST_TOKENS = {"words": 64, "bytes": 512, "frozen": 256}  # of a text; what comes after them is not read
TOKEN = re.compile(r"\w+|[^\w\s]")


class Vocabulary(ABC):
    """How a model reads texts."""

    tokenizer: ClassVar[str]
    """Its name in `VOCABULARIES`."""
    words: tuple[str, ...]
    """The words that it knows; empty where it reads no words."""
    length: int
    """Number of ids in a row."""

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of different ids."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """What there is to know about the training captions, in words."""

    @abstractmethod
    def ids(self, text: str) -> list[int]:
        """All ids of a text."""

    @abstractmethod
    def decode(self, ids: Tensor) -> str:
        """The text of a row of ids, (length,)."""

    @abstractmethod
    def problem(self, text: str) -> str | None:
        """Why a text is no prompt for a model with this vocabulary, as a clause; None if it is one."""

    @property
    def condition_sizes(self) -> dict[str, int]:
        """What a network takes for texts, by the names of models/conditions.py, with the sizes."""
        return {"text": self.size}

    def conditions(self, ids: Tensor) -> dict[str, Tensor]:
        """What a network is given for texts, ids (B, length)."""
        return {"text": ids}

    def encode(self, captions: Sequence[str]) -> Tensor:
        """The ids of texts, int64 (N, length); ids beyond the length are left out."""
        rows = torch.zeros(len(captions), self.length, dtype=torch.int64)
        for row, caption in zip(rows, captions, strict=True):
            ids = self.ids(caption)[: self.length]
            row[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return rows


def normalized(text: str) -> str:
    """A text as Unicode NFKC with single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def words_of(text: str) -> list[str]:
    """The words and punctuation marks of a text, in lower case."""
    return TOKEN.findall(normalized(text).lower())


def fitted_vocabulary(tokenizer: str, captions: Sequence[str], source: str) -> Words | Bytes:
    """The vocabulary of a training set.

    Args:
        tokenizer: A name in `VOCABULARIES`.
        captions: The captions of the training set.
        source: What to call them in a warning.
    """
    return VOCABULARIES[tokenizer].of_captions(captions, source)


@dataclass(frozen=True)
class Words(Vocabulary):
    """The words that a model knows, and how many of them it reads in a text."""

    tokenizer = "words"
    words: tuple[str, ...]
    """Word k has the id k + 2."""
    length: int

    @classmethod
    def of_captions(cls, captions: Sequence[str], source: str) -> Words:
        """The words of captions, the most frequent ones if there are very many; arguments as for
        `fitted_vocabulary`.
        """
        counts: Counter[str] = Counter()
        longest = 1
        for caption in captions:
            words = words_of(caption)
            counts.update(words)
            longest = max(longest, len(words))
        if len(counts) > MOST_WORDS:
            warn(f"{source} has {len(counts):,} different words: the {MOST_WORDS:,} most frequent are read")
        frequent = sorted(counts, key=lambda word: (-counts[word], word))[:MOST_WORDS]
        return cls(tuple(sorted(frequent)), _limited(longest, "words", source))

    @property
    def size(self) -> int:
        return len(self.words) + FIRST_WORD

    @property
    def summary(self) -> str:
        return f"{len(self.words):,} different words, up to {self.length} in a caption"

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: k + FIRST_WORD for k, word in enumerate(self.words)}

    def ids(self, text: str) -> list[int]:
        return [self._ids.get(word, UNKNOWN) for word in words_of(text)]

    def decode(self, ids: Tensor) -> str:
        """The text of a row of ids (length,), without capitals and with single spaces."""
        words = [
            self.words[k - FIRST_WORD] if k >= FIRST_WORD else "[?]" for k in ids.tolist() if k != PADDING
        ]
        return re.sub(r" (?=[,.;:!?])", "", " ".join(words))

    def problem(self, text: str) -> str | None:
        words = words_of(text)
        if not words:
            return "has no word"
        if len(words) > self.length:
            return f"has {len(words)} words, and the model reads at most {self.length}"
        unknown = list(dict.fromkeys(word for word in words if word not in self._ids))
        if unknown:
            these = ", ".join(map(repr, unknown[:MOST_SUGGESTED]))
            return f"has {these}, which no training caption had; those had {some_of(unknown[0], self.words)}"
        return None


@dataclass(frozen=True)
class Bytes(Vocabulary):
    """How many bytes a model reads in a text."""

    tokenizer = "bytes"
    length: int
    words: tuple[str, ...] = field(default=(), init=False)

    @classmethod
    def of_captions(cls, captions: Sequence[str], source: str) -> Bytes:
        """For captions; arguments as for `fitted_vocabulary`."""
        longest = max((len(normalized(caption).encode()) for caption in captions), default=1)
        return cls(_limited(longest, "bytes", source))

    @property
    def size(self) -> int:
        return 257

    @property
    def summary(self) -> str:
        return f"up to {self.length} bytes in a caption"

    def ids(self, text: str) -> list[int]:
        return [byte + 1 for byte in normalized(text).encode()]

    def decode(self, ids: Tensor) -> str:
        """The text of a row of ids (length,); a character that is cut off at the end is left out."""
        return bytes(k - 1 for k in ids.tolist() if k != PADDING).decode(errors="ignore")

    def problem(self, text: str) -> str | None:
        count = len(self.ids(text))
        if not count:
            return "is empty"
        if count > self.length:
            return f"has {count} bytes, and the model reads at most {self.length}"
        return None


VOCABULARIES: dict[str, type[Words] | type[Bytes]] = {"words": Words, "bytes": Bytes}
"""By the value of data.tokenizer."""


def _limited(longest: int, tokenizer: str, source: str) -> int:
    """The number of ids that is read of captions whose longest has so many."""
    most = MOST_TOKENS[tokenizer]
    if longest > most:
        warn(f"{source} has captions of up to {longest} {tokenizer}: only the first {most} are read")
    return min(longest, most)
