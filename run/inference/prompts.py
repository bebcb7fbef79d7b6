"""Texts to draw samples under: one prompt, a file with a prompt on each line, or held-out captions.

A run on data with captions keeps those of its first held-out samples as captions.txt, such a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from score_diffusion.run.data.vocabulary import Vocabulary
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import write_atomic

CAPTIONS_FILE = "captions.txt"
MOST_KEPT = 1000  # captions that a run keeps
LARGEST_FILE = 2**24  # bytes of a file of prompts


def write_captions(workdir: Path, ids: Tensor, vocabulary: Vocabulary) -> None:
    """Keeps the first captions of a set whose words are all known in a run directory."""
    captions = [vocabulary.decode(row) for row in ids[:MOST_KEPT]]
    known = [caption for caption in captions if vocabulary.problem(caption) is None]
    write_atomic(workdir / CAPTIONS_FILE, "".join(f"{caption}\n" for caption in known).encode())


def read_prompts(path: Path) -> list[str]:
    """The lines of a file that are not blank.

    Raises:
        UserError: If the file is missing, too large or not UTF-8, or has no such line.
    """
    if not path.is_file():
        raise UserError(f"the file of prompts {path} does not exist: name one in sampling.prompts")
    if path.stat().st_size > LARGEST_FILE:
        raise UserError(f"the file of prompts {path} has more than {LARGEST_FILE:,} bytes: shorten it")
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(
            f"the file of prompts {path} is not UTF-8 (byte {error.start}): convert it"
        ) from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"the file of prompts {path} has no text: write a prompt on each line")
    return prompts


def encoded_prompts(prompts: Sequence[str], vocabulary: Vocabulary, key: str) -> Tensor:
    """The ids of prompts, int64 (n, L).

    Args:
        prompts: The texts.
        vocabulary: What the model knows.
        key: The key that they are the value of, in a message.

    Raises:
        UserError: If one is empty, has words that the model does not know, or more than it reads.
    """
    for prompt in prompts:
        problem = vocabulary.problem(prompt)
        if problem is not None:
            shown = prompt if len(prompt) <= 60 else prompt[:59] + "…"
            raise UserError(
                f"{key}={shown!r} {problem}: word it otherwise, as the captions of the training data"
            )
    return vocabulary.encode(prompts)
