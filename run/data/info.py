"""What a run directory records about its data (data.json), and the check that data are still the same."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from score_diffusion.run.data.checks import warn_of_oddities
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.data.options import DataOptions
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.distributed import processes
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import write_json

DATA_FILE = "data.json"
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

    def __post_init__(self) -> None:
        lengths = (*self.shape, self.num_train + 1, self.num_test + 1)
        if not self.shape or not all(type(n) is int and n > 0 for n in lengths):
            raise ValueError(f"shape and counts must be whole numbers, got {self.shape} and {lengths[-2:]}")
        if not all(isinstance(text, str) for text in (self.name, self.digest, *self.classes)):
            raise TypeError("name, digest and classes must be text")

    @classmethod
    def of(cls, dataset: Dataset) -> DataInfo:
        counts = len(dataset.train), len(dataset.test)
        return cls(dataset.name, dataset.shape, dataset.scaling, *counts, dataset.classes, dataset.digest)

    @property
    def levels(self) -> int | None:
        """Number of grey levels; None for numbers."""
        return self.scaling.levels

    @property
    def kind(self) -> str:
        """What one sample is, in words."""
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
        return self.fits(other) and counts and len({self.digest, other.digest} - {""}) <= 1


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
    path = workdir / DATA_FILE
    try:
        fields = json.loads(path.read_text())
        scaling = dict(fields["scaling"])
        scaling |= {key: tuple(scaling[key]) for key in ("shift", "scale")}
        fields |= {"shape": tuple(fields["shape"]), "classes": tuple(fields["classes"])}
        return DataInfo(**fields | {"scaling": Scaling(**scaling)})
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: restore it, or train in another --workdir") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({str(error).splitlines()[0]}): restore it, or train in another --workdir"
        ) from error


def load_data(options: DataOptions, info: DataInfo | None = None) -> Dataset:
    """Loads the data of a run, and warns if they look wrong.

    Args:
        options: Which data to load.
        info: What the run has recorded about its data; None for a new run.

    Raises:
        UserError: If they cannot be read, do not fit the network, are not those that the run was trained on,
            or differ between ranks.
    """
    dataset = load_dataset(options, None if info is None else info.scaling)
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
