"""The words of captions as numbers: what a text encoder reads.

A text is normalized (Unicode NFKC, lower case) and cut into words, numbers and single punctuation marks. A
row of ids holds those of a text and then zeros; a text without words is a row of zeros, the null condition.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from score_diffusion.run.console import warn
from score_diffusion.run.errors import MOST_SUGGESTED, some_of

PADDING, UNKNOWN, FIRST_WORD = 0, 1, 2  # ids
MOST_WORDS = 8192  # of a vocabulary; rarer ones are unknown
MOST_TOKENS = 64  # of a text; what comes after them is not read
TOKEN = re.compile(r"\w+|[^\w\s]")


def words_of(text: str) -> list[str]:
    """The words and punctuation marks of a text."""
    return TOKEN.findall(unicodedata.normalize("NFKC", text).lower())


@dataclass(frozen=True)
class Vocabulary:
    """The words that a model knows, and how many of them it reads in a text."""

    words: tuple[str, ...]
    """Word k has the id k + 2."""
    length: int
    """Number of ids in a row."""

    @classmethod
    def of_captions(cls, captions: Sequence[str], source: str) -> Vocabulary:
        """The words of a training set's captions, the most frequent ones if there are very many.

        Args:
            captions: The captions.
            source: What to call them in a warning.
        """
        counts: Counter[str] = Counter()
        longest = 1
        for caption in captions:
            words = words_of(caption)
            counts.update(words)
            longest = max(longest, len(words))
        if longest > MOST_TOKENS:
            warn(f"{source} has captions of up to {longest} words: only the first {MOST_TOKENS} are read")
        if len(counts) > MOST_WORDS:
            warn(f"{source} has {len(counts):,} different words: the {MOST_WORDS:,} most frequent are read")
        frequent = sorted(counts, key=lambda word: (-counts[word], word))[:MOST_WORDS]
        return cls(tuple(sorted(frequent)), min(longest, MOST_TOKENS))

    @property
    def size(self) -> int:
        """The number of different ids."""
        return len(self.words) + FIRST_WORD

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: k + FIRST_WORD for k, word in enumerate(self.words)}

    def encode(self, captions: Sequence[str]) -> Tensor:
        """The ids of texts, int64 (N, length); words beyond the length are left out."""
        rows = torch.zeros(len(captions), self.length, dtype=torch.int64)
        for row, caption in zip(rows, captions, strict=True):
            ids = [self._ids.get(word, UNKNOWN) for word in words_of(caption)[: self.length]]
            row[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return rows

    def decode(self, ids: Tensor) -> str:
        """The text of a row of ids (length,), without capitals and with single spaces."""
        words = [
            self.words[k - FIRST_WORD] if k >= FIRST_WORD else "[?]" for k in ids.tolist() if k != PADDING
        ]
        return re.sub(r" (?=[,.;:!?])", "", " ".join(words))

    def problem(self, text: str) -> str | None:
        """Why a text is no prompt for a model with this vocabulary, as a clause; None if it is one."""
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
