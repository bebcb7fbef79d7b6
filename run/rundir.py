"""A run directory, from which `sample`, `likelihood` and `evaluate` take all they need.

It holds

    config.json                                the resolved configuration
    data.json                                  shape and grey levels of the data
    checkpoints/, snapshots/                   see checkpoint.py and post_hoc.py
    skipped/                                   a batch of training that diverged, see faults.py
    log.jsonl, tensorboard/, loss_curve.png    the course of training
    samples/                                   pictures and sample files
    likelihood*, evaluation*                   results as JSON, a histogram as PNG
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from ml_collections import ConfigDict
from torch import Tensor

from run import checkpoint
from run.build import build_model, build_sde, choose
from run.checkpoint import Checkpoint
from run.data import Dataset, load_dataset
from run.ema import exponential_name
from run.errors import UserError
from run.files import write_json
from run.objectives import build_times
from run.post_hoc import reconstruct
from sde_lib import SDE, ConditionalScore, ScoreModel

DATA_FILE = "data.json"


@dataclass(frozen=True)
class DataInfo:
    """What must be known of the data to sample without them, and to tell whether they are still the same."""

    name: str
    shape: tuple[int, ...]
    levels: int | None
    num_train: int
    """0 for weights from another library, which were not trained here."""
    num_test: int
    digest: str = ""
    """Of the contents; empty where their source does not tell it cheaply."""

    @classmethod
    def of(cls, dataset: Dataset) -> DataInfo:
        counts = len(dataset.train), len(dataset.test)
        return cls(dataset.name, dataset.shape, dataset.levels, *counts, dataset.digest)

    def __str__(self) -> str:
        kind = f"{self.levels} grey levels" if self.levels else "points"
        counts = f"{self.num_train} and {self.num_test} held-out samples" if self.num_train else "samples"
        return f"{counts} of shape {self.shape}, {kind}"

    def fits(self, other: DataInfo) -> bool:
        """Whether a network for these data is one for other data."""
        return (self.shape, self.levels) == (other.shape, other.levels)

    def is_same(self, other: DataInfo) -> bool:
        """Whether other data are these, under whatever name, as far as can be told."""
        counts = (self.num_train, self.num_test) == (other.num_train, other.num_test)
        return self.fits(other) and counts and len({self.digest, other.digest} - {""}) <= 1


@dataclass(frozen=True)
class TrainedModel:
    """A trained score model with what belongs to it."""

    score: ScoreModel | ConditionalScore
    """The averaged weights, in evaluation mode, on the device asked for."""
    sde: SDE
    data: DataInfo
    step: int
    """Training steps behind the weights."""
    first_time: float
    """The earliest time at which the model was trained."""
    weights: str = "averaged weights"
    """Which weights they are, in words."""

    def record(self, sampling: ConfigDict) -> dict[str, object]:
        """Which weights a result is of, for its JSON file."""
        return {"weights": self.weights, "checkpoint": sampling.checkpoint, "label": sampling.label}


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
        return DataInfo(**{**fields, "shape": tuple(fields["shape"])})
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: restore it, or train in another --workdir") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged: restore it, or train in another --workdir") from error


def load_data(config: ConfigDict, info: DataInfo) -> Dataset:
    """The data of a run.

    Raises:
        UserError: If they cannot be read, are no data for its network, or not those that it was trained on.
    """
    dataset = load_dataset(config.data)
    found = DataInfo.of(dataset)
    if not found.fits(info):
        raise UserError(
            f"the network is for {replace(info, num_train=0)}, the data are {found}: "
            "name others with --config.data.path="
        )
    if info.num_train and not found.is_same(info):
        raise UserError(
            f"the data have changed since the run was trained on {info}, now they are {found}, of other "
            "content: name those with --config.data.path=, or give another --workdir"
        )
    return dataset


def load_trained(workdir: Path, config: ConfigDict, device: torch.device) -> TrainedModel:
    """The averaged model that `sampling` chooses: of the newest intact checkpoint, unless it says otherwise.

    Raises:
        UserError: If the choice is unknown or was not tracked in training, or no checkpoint is intact.
    """
    info = read_data_info(workdir)
    sde = build_sde(config.sde)
    model = build_model(config.model, sde, info.shape)
    saved = choose(CHECKPOINTS, config.sampling.checkpoint, "choice of sampling.checkpoint")(workdir)
    weights, words = _average(workdir, saved, config)
    checkpoint.load_weights(model, weights, workdir)
    first_time = build_times(config.training, sde).first
    score = _of_class(model.to(device).eval(), config.sampling.label)
    return TrainedModel(score, sde, info, saved.step, first_time, words)


def _of_class(model: ScoreModel, label: int) -> ScoreModel | ConditionalScore:
    """The model, or its score of one class."""
    if label == -1:
        return model
    classes = getattr(model.net, "condition_sizes", {}).get("label", 0)
    if not 0 <= label < classes:
        raise UserError(
            f"sampling.label must be one of the network's {classes} classes, 0 to {classes - 1}, got {label}"
            if classes
            else f"sampling.label={label} needs a network with classes, which this one has not"
        )
    return ConditionalScore(model, {"label": torch.tensor([label])})


CHECKPOINTS = {"latest": checkpoint.latest, "best": checkpoint.best}


def _average(workdir: Path, saved: Checkpoint, config: ConfigDict) -> tuple[dict[str, Tensor], str]:
    """The weights that `sampling` chooses, and what they are in words."""
    decay, sigma_rel, training = config.sampling.ema, config.sampling.ema_sigma_rel, config.training
    if decay and sigma_rel:
        raise UserError("set one of sampling.ema and sampling.ema_sigma_rel, both choose an average")
    if sigma_rel:
        weights = reconstruct(workdir, saved, training.ema_sigma_rels, sigma_rel)
        return weights, f"averaged weights of σ_rel = {sigma_rel:g}"
    if decay in (0, training.ema_decay):
        return saved.ema, "averaged weights"
    if decay not in training.extra_ema_decays:
        kept = ", ".join(f"{d:g}" for d in (training.ema_decay, *training.extra_ema_decays))
        raise UserError(f"sampling.ema must be an average that was kept in training, {kept}; got {decay:g}")
    weights = saved.average(exponential_name(decay))
    if not weights:
        raise UserError(f"the checkpoint of step {saved.step} has no average of decay {decay:g}: train on")
    return weights, f"averaged weights of decay {decay:g}"
