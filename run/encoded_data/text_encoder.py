"""Frozen text encoders of a folder of transformers: captions as their encodings, computed once for each.

    tokens    the last hidden states of the tokens, (B, L, D), which a network attends to
    vector    one of the whole text, (B, D), with mean 0 and deviation 1: of CLIP the state at the end of the
              text, of T5 the mean over the tokens

As in Imagen, the encoder is not trained, and the network learns the projections of both: tokens are projected
by its cross-attention, the vector is projected and added to the embedding of the noise. So its weights are in
no checkpoint and no average: a run records the path of the folder and its digest.

References:
    Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding (Saharia et al., 2022),
        https://arxiv.org/abs/2205.11487: Section 2.1, frozen encoders; Section 2.4, pooled and attended.
    Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021),
        https://arxiv.org/abs/2103.00020.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from score_diffusion.run.console import warn
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.vocabulary import MOST_TOKENS, PADDING, Vocabulary
from score_diffusion.run.errors import UserError
from score_diffusion.run.machine import refuse_beyond_memory

TEXT_ENCODER = "text_encoder"
"""The name of the encoder in `Dataset.encoders`."""
KEY = f"data.{TEXT_ENCODER}"
CLASSES = {"clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel", "t5": "T5EncoderModel"}
"""The class of transformers by the `model_type` of a folder."""
DIGESTED = (".json", ".safetensors", ".txt", ".model")  # files of weights, settings and tokenizers
FLOAT_BYTES = 4  # of an entry of an encoding
BATCH = 32  # texts that are encoded at a time, always as many: an encoding depends on no other text


class TextEncoderFolder:
    """A model of transformers that encodes texts, with its tokenizer.

    Args:
        path: The folder.

    Raises:
        UserError: If transformers is not installed, or the folder holds no such model.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / "config.json").is_file():
            raise UserError(
                f"{KEY}={path} holds no model of transformers: name a folder with a CLIP text model or a T5 "
                "encoder, and its tokenizer"
            )
        self._transformers = _transformers()
        self._config = self._read("AutoConfig")
        if self._config.model_type not in CLASSES:
            raise UserError(
                f"{KEY}={path} holds a model of type {self._config.model_type!r}: name one of type "
                f"{', '.join(CLASSES)}"
            )
        self.tokenizer = self._read("AutoTokenizer")
        text = self._config.get_text_config()
        self.width: int = text.hidden_size
        """D, the size of an encoding."""
        self.longest: int = getattr(text, "max_position_embeddings", MOST_TOKENS["frozen"])
        """Tokens of a text that it reads at most."""

    @cached_property
    def digest(self) -> str:
        """Of the files with its weights, settings and tokenizer."""
        digest = hashlib.sha256()
        for path in sorted(self.path.iterdir()):
            if path.suffix in DIGESTED:
                digest.update(f"{path.name} {path.stat().st_size} ".encode())
                with path.open("rb") as file:
                    while part := file.read(2**20):
                        digest.update(part)
        return digest.hexdigest()

    @cached_property
    def model(self) -> nn.Module:
        """The encoder, in evaluation mode and without gradients.

        Raises:
            UserError: If the folder lacks some of its weights.
        """
        options = dict(use_safetensors=True, output_loading_info=True)
        model, found = self._read(CLASSES[self._config.model_type], **options)
        if found["missing_keys"]:  # transformers draws them at random
            raise UserError(
                f"{KEY}={self.path} lacks the weights {sorted(found['missing_keys'])[0]}: restore the folder"
            )
        return model.float().eval().requires_grad_(False)

    def _read(self, name: str, **options: object) -> Any:  # noqa: ANN401 - classes of transformers
        """What a class of transformers reads in the folder, of which nothing is executed."""
        bars = self._transformers.utils.logging
        shown = bars.is_progress_bar_enabled()
        bars.disable_progress_bar()
        try:
            return getattr(self._transformers, name).from_pretrained(
                self.path, local_files_only=True, **options
            )
        except Exception as error:  # of JSON, of files that are missing, of weights of other shapes
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{KEY}={self.path} cannot be read ({reason}): restore the folder") from error
        finally:
            if shown:
                bars.enable_progress_bar()


class FrozenTextEncoder(Vocabulary):
    """Texts as a frozen encoder reads them: token k of its tokenizer has the id k + 1.

    Args:
        folder: The encoder.
        length: Number of ids in a row.
    """

    tokenizer = "frozen"

    def __init__(self, folder: TextEncoderFolder, length: int) -> None:
        self.folder, self.length = folder, length
        self.words: tuple[str, ...] = ()

    @classmethod
    def of_captions(
        cls, folder: TextEncoderFolder, captions: Sequence[str], source: str
    ) -> FrozenTextEncoder:
        """The encoder for the captions of a training set.

        Args:
            folder: The encoder.
            captions: The captions.
            source: What to call them in a warning.
        """
        longest = max(map(len, folder.tokenizer([*captions], verbose=False).input_ids))
        most = min(folder.longest, MOST_TOKENS["frozen"])
        if longest > most:
            warn(f"{source} has captions of up to {longest} tokens: only the first {most} are read")
        return cls(folder, min(longest, most))

    @property
    def size(self) -> int:
        return len(self.folder.tokenizer) + 1

    @property
    def summary(self) -> str:
        return f"up to {self.length} tokens in a caption, encoded by {self.folder.path}"

    @property
    def condition_sizes(self) -> dict[str, int]:
        return {"tokens": self.folder.width, "vector": self.folder.width}

    def ids(self, text: str) -> list[int]:
        return [k + 1 for k in self.folder.tokenizer(text, verbose=False).input_ids]

    def encode(self, captions: Sequence[str]) -> Tensor:
        """The ids of texts, int64 (N, length); longer texts are cut, and end as the tokenizer ends a text."""
        found = self.folder.tokenizer([*captions], truncation=True, max_length=self.length).input_ids
        rows = torch.zeros(len(captions), self.length, dtype=torch.int64)
        for row, ids in zip(rows, found, strict=True):
            row[: len(ids)] = torch.tensor(ids) + 1
        return rows

    def decode(self, ids: Tensor) -> str:
        tokens = [k - 1 for k in ids.tolist() if k != PADDING]
        return self.folder.tokenizer.decode(tokens, skip_special_tokens=True).strip()

    def problem(self, text: str) -> str | None:
        if not text.strip():
            return "is empty"
        count = len(self.ids(text))
        if count > self.length:
            return f"has {count} tokens, and the model reads at most {self.length}"
        return None

    def conditions(self, ids: Tensor) -> dict[str, Tensor]:
        """The encodings of texts: tokens (B, L, D), mask, bool (B, L), and vector (B, D); 0 for no text.

        Raises:
            UserError: If they take more memory than there is.
        """
        different, index = torch.unique(ids, dim=0, return_inverse=True)
        refuse_beyond_memory(
            FLOAT_BYTES * (len(different) + len(ids)) * self.length * self.folder.width,
            f"the encodings of {len(different):,} texts",
            f"take fewer or shorter captions, or a narrower encoder than {self.folder.path}",
            ids.device.type,
        )
        padded = F.pad(different, (0, 0, 0, -len(different) % BATCH))
        parts = [self._encoded(rows) for rows in padded.split(BATCH)]
        tokens, vector = (torch.cat(part)[index] for part in zip(*parts, strict=True))
        return {"tokens": tokens, "mask": ids != PADDING, "vector": vector}

    @torch.no_grad()
    def _encoded(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, D) and vectors (B, D) of rows of ids, on their device."""
        valid, model = ids != PADDING, self.folder.model.to(ids.device)
        given = torch.where(valid, ids - 1, self.folder.tokenizer.pad_token_id or 0)
        attended = valid.clone()
        attended[:, 0] = True  # a row without tokens has something to attend to, and is set to 0 below
        out = model(input_ids=given, attention_mask=attended.long())
        tokens = out.last_hidden_state.masked_fill(~valid[..., None], 0)
        whole = getattr(out, "pooler_output", None)
        if whole is None:
            whole = tokens.sum(1) / valid.sum(1, keepdim=True).clamp_min(1)
        return tokens, F.layer_norm(whole, whole.shape[1:]) * valid.any(1, keepdim=True)


def with_text_encoder(dataset: Dataset, folder: TextEncoderFolder) -> Dataset:
    """The same data set with captions as a frozen encoder reads them.

    Args:
        dataset: A data set whose captions are read as bytes.
        folder: The encoder.

    Raises:
        UserError: If the data set has no captions.
    """
    read_before = dataset.vocabulary
    if read_before is None:
        raise UserError(f"{KEY} encodes captions, and {dataset.name!r} has none: name data with captions")

    def captions(rows: Tensor) -> list[str]:
        return [read_before.decode(row) for row in rows]

    parts = (dataset.conditions, dataset.test_conditions, dataset.validation_conditions)
    vocabulary = FrozenTextEncoder.of_captions(folder, captions(parts[0]["text"]), dataset.name)
    train, test, validation = (
        {**of, "text": vocabulary.encode(captions(of["text"]))} if "text" in of else dict(of) for of in parts
    )
    return replace(
        dataset,
        conditions=train,
        test_conditions=test,
        validation_conditions=validation,
        vocabulary=vocabulary,
        encoders={**dataset.encoders, TEXT_ENCODER: folder.digest},
    )


def _transformers() -> Any:  # noqa: ANN401 - a module that may be missing
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"{KEY} needs the package transformers: pip install 'score-diffusion[transformers]'"
        ) from error
    return transformers
