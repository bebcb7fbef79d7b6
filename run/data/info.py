"""What a run directory records about its data (data.json), and the check that data are still the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from score_diffusion.run.data.checks import warn_of_oddities
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.data.vocabulary import Bytes, Vocabulary, Words
from score_diffusion.run.distributed import processes
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import write_json
from score_diffusion.run.json_files import check_fields, read_json
from score_diffusion.run.key_types import Values

DATA_FILE = "data.json"
FIELDS = {
    "name": Values(kind=str),
    "shape": Values(kind=tuple[int, ...], least=1),
    "scaling": Values(kind=dict),
    "num_train": Values(kind=int, least=0),
    "num_test": Values(kind=int, least=0),
    "classes": Values(kind=tuple[str, ...]),
    "digest": Values(kind=str),
}
LATER_FIELDS = {
    "words": Values(kind=tuple[str, ...]),
    "text_length": Values(kind=int, least=0),
    "tokenizer": Values(kind=Literal["words", "bytes", "frozen"]),
    "encoders": Values(kind=dict),
    "decoded": Values(kind=dict | None),
}
"""Fields that older files lack."""
SCALING_FIELDS = {
    "levels": Values(kind=int | None, least=2, below=2**32 + 1),
    "shift": Values(kind=tuple[float, ...]),
    "scale": Values(kind=tuple[float, ...], above=0),
    "dtype": Values(kind=Literal["float32", "float64"]),
}
DATA_PICTURE = "data"  # stem of the picture that --mode data draws: data.png, data-2.png, ...


@dataclass(frozen=True)
class DataInfo:
    """What sampling needs to know about the data, and what tells other data apart."""

    name: str
    shape: tuple[int, ...]
    scaling: Scaling
    """How they become model inputs; data that are read again are scaled in the same way."""
    num_train: int
    """Number of training samples; 0 for weights from another library."""
    num_test: int
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of their indices; empty for data without labels."""
    digest: str = ""
    """Of all contents; empty for built-in data sets."""
    words: tuple[str, ...] = ()
    """The vocabulary of the captions; empty for data without, and for captions that are read as bytes."""
    text_length: int = 0
    """Words or bytes of a caption that are read at most; 0 for data without."""
    encoders: Mapping[str, str] = field(default_factory=dict)
    """Digests of the networks of other runs that parts of the data were computed by, see encoded_data/."""
    decoded: DataInfo | None = None
    """Of latents, the data that an autoencoder has encoded, which samples are decoded to."""
    tokenizer: str = "words"
    """How captions are read: a name in `VOCABULARIES`, or "frozen", see encoded_data/text_encoder.py."""

    @classmethod
    def of(cls, dataset: Dataset) -> DataInfo:
        counts = len(dataset.train), len(dataset.test)
        texts, decoded = dataset.vocabulary, dataset.decoded
        return cls(
            dataset.name,
            dataset.shape,
            dataset.scaling,
            *counts,
            dataset.classes,
            dataset.digest,
            words=() if texts is None else texts.words,
            text_length=0 if texts is None else texts.length,
            encoders=dict(dataset.encoders),
            decoded=None if decoded is None else cls.of(decoded),
            tokenizer="words" if texts is None else texts.tokenizer,
        )

    @property
    def vocabulary(self) -> Vocabulary | None:
        """How captions are read; None for data without, and where a frozen encoder reads them."""
        if not self.text_length or self.tokenizer == "frozen":
            return None
        return Bytes(self.text_length) if self.tokenizer == "bytes" else Words(self.words, self.text_length)

    def reads_texts_as(self, other: DataInfo) -> bool:
        """Whether an id of a caption stands for the same as in other data."""
        same_words = (self.tokenizer, self.words) == (other.tokenizer, other.words)
        return same_words and self.encoders.get("text_encoder") == other.encoders.get("text_encoder")

    @property
    def levels(self) -> int | None:
        """Number of grey levels; None for numbers."""
        return self.scaling.levels

    @property
    def kind(self) -> str:
        """What one sample is, in words."""
        if self.decoded is not None:
            return f"latents of {self.decoded.kind}"
        if self.levels:
            return f"{self.levels} grey levels"
        return {1: "points", 2: "signals", 3: "images of numbers", 4: "fields"}[len(self.shape)]

    def __str__(self) -> str:
        counts = f"{self.num_train} and {self.num_test} held-out samples" if self.num_train else "samples"
        return f"{counts} of shape {self.shape}, {self.kind}"

    def fits(self, other: DataInfo) -> bool:
        """Whether a network for these data is one for other data."""
        return (self.shape, self.levels) == (other.shape, other.levels)

    def is_same(self, other: DataInfo) -> bool:
        """Whether other data are the same by counts and digest, under whatever name."""
        counts = (self.num_train, self.num_test) == (other.num_train, other.num_test)
        content = len({self.digest, other.digest} - {""}) <= 1 and self.reads_texts_as(other)
        return self.fits(other) and counts and content


def is_data_picture(path: Path) -> bool:
    """Whether `--mode data` drew this file, which no run is made of."""
    return re.fullmatch(rf"{DATA_PICTURE}(-\d+)?\.png", path.name) is not None


def write_data_info(workdir: Path, info: DataInfo) -> None:
    write_json(workdir / DATA_FILE, asdict(info))


def read_data_info(workdir: Path) -> DataInfo:
    """The data of a run directory.

    Raises:
        UserError: If the file is missing or damaged.
    """
    path, advice = workdir / DATA_FILE, "restore it, or train in another --workdir"
    record = read_json(path, FIELDS, advice)
    try:
        return _from_record(record)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {advice}") from error


def _from_record(record: dict[str, Any], prefix: str = "") -> DataInfo:
    """The data of a record as it is in the file; ValueError if something is wrong."""
    fields = FIELDS | {name: values for name, values in LATER_FIELDS.items() if name in record}
    check_fields(record, fields, prefix, others=False)
    check_fields(record["scaling"], SCALING_FIELDS, f"{prefix}scaling.", others=False)
    scaling = Scaling(**{key: _as_tuple(record["scaling"][key]) for key in SCALING_FIELDS})
    if not 1 <= len(record["shape"]) <= 4:
        raise ValueError(f"{prefix}shape must have 1 to 4 axes, got {len(record['shape'])}")
    encoders, decoded = record.get("encoders", {}), record.get("decoded")
    check_fields(encoders, dict.fromkeys(encoders, Values(kind=str)), f"{prefix}encoders.")
    if decoded is not None:
        if prefix:
            raise ValueError("latents of latents")
        decoded = _from_record(decoded, "decoded.")
    plain = {key: _as_tuple(record[key]) for key in fields}
    return DataInfo(**plain | {"scaling": scaling, "decoded": decoded})


def _as_tuple(value: Any) -> Any:  # noqa: ANN401
    """JSON has lists where we have tuples."""
    return tuple(value) if isinstance(value, list) else value


def load_data(
    options: DataOptions,
    info: DataInfo | None = None,
    load: Callable[[DataOptions, Scaling | None], Dataset] | None = None,
) -> Dataset:
    """Loads the data of a run, and warns if they look wrong.

    Args:
        options: Which data to load.
        info: What the run has recorded about its data; None for a new run.
        load: Loads them, with the scaling of the run; None for `load_dataset`.

    Raises:
        UserError: If they cannot be read, do not fit the network, are not those that the run was trained on,
            or differ between ranks.
    """
    dataset = (load or load_dataset)(options, None if info is None else info.scaling)
    found = DataInfo.of(dataset)
    if info is not None and not found.fits(info):
        raise UserError(
            f"the network is for {replace(info, num_train=0)}, the data are {found}: "
            "name others with --config.data.path="
        )
    if info is not None and info.num_train and not found.is_same(info):
        raise UserError(
            f"the data have changed since the run was trained on {info}, now they are {found}, of other "
            "content: name those with --config.data.path=, or give another --workdir"
        )
    _check_same_on_all_ranks(found)
    warn_of_oddities(dataset)
    return dataset


def _check_same_on_all_ranks(found: DataInfo) -> None:
    of_ranks = processes.gather([found])

    def compare() -> None:
        for rank, other in enumerate(of_ranks or ()):
            if not other.is_same(found):
                raise UserError(
                    f"rank 0 has read {found}, and rank {rank} {other}, of other content: data.path must "
                    "name the same data on every machine"
                )

    processes.from_rank_0(compare)
