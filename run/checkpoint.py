"""Checkpoints: one directory each, complete or absent.

    checkpoints/00004000/model.safetensors     weights
                         ema.safetensors       their exponential moving average, used for samples and scores
                         training.pt           optimizer state, step, seconds trained, averaged updates,
                                               losses behind times drawn by importance
                         sha256.json           digests of the three, checked when they are read

The directory is written under a temporary name, flushed to the disk and renamed. The batch and the noise of a
step are functions of the seed and the step, so that nothing else is needed to resume exactly.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from run.errors import UserError
from run.files import write_durable

FOLDER = "checkpoints"
DIGESTS = "sha256.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, on the CPU."""

    step: int
    """Optimizer steps done."""
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict
    seconds: float
    """Wall-clock time of training so far."""
    ema_updates: int
    times: dict[str, Tensor] = field(default_factory=dict)
    """State of the choice of times; empty for choices that have none."""


def save(workdir: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes a checkpoint, then removes all but the newest `keep`; returns its directory."""
    folder = workdir / FOLDER
    target = folder / f"{checkpoint.step:08d}"
    temporary = folder / f".{target.name}"
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed while writing
    temporary.mkdir(parents=True)
    try:
        training = {
            "step": checkpoint.step,
            "optimizer": checkpoint.optimizer,
            "seconds": checkpoint.seconds,
            "ema_updates": checkpoint.ema_updates,
            "times": checkpoint.times,
        }
        buffer = io.BytesIO()
        torch.save(training, buffer)
        files = {
            "model.safetensors": safetensors.torch.save(checkpoint.model),
            "ema.safetensors": safetensors.torch.save(checkpoint.ema),
            "training.pt": buffer.getvalue(),
        }
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        for name, data in {**files, DIGESTS: json.dumps(digests).encode()}.items():
            write_durable(temporary / name, data)
        _sync_folder(temporary)
        shutil.rmtree(
            target, ignore_errors=True
        )  # there is one only if it was damaged and training went on before it
        os.rename(temporary, target)
        _sync_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in _directories(workdir)[:-keep]:
        shutil.rmtree(old)
    return target


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _directories(workdir: Path) -> list[Path]:
    """The checkpoint directories, oldest first."""
    return sorted(path for path in (workdir / FOLDER).glob("[0-9]*") if path.name.isdigit())


def exists(workdir: Path) -> bool:
    """Whether the run directory holds any checkpoint, intact or not."""
    return bool(_directories(workdir))


def latest(workdir: Path) -> Checkpoint:
    """The newest intact checkpoint; damaged ones are named on stderr.

    Raises:
        UserError: If there is no checkpoint, or none is intact.
    """
    directories = _directories(workdir)
    if not directories:
        raise UserError(f"{workdir} holds no checkpoint: train first with --mode train --workdir {workdir}")
    for directory in reversed(directories):
        try:
            return read(directory)
        except UserError as error:
            damage = error
            print(f"warning: {error}", file=sys.stderr)
    raise UserError(
        f"no checkpoint of {workdir} is intact ({damage}): restore one, or train again in another --workdir"
    )


def read(directory: Path) -> Checkpoint:
    """Reads one checkpoint.

    Raises:
        UserError: If a file of it is missing, truncated or corrupt.
    """
    digests = {}  # checkpoints from before there were digests have none
    if (directory / DIGESTS).is_file():
        digests = _read_file(directory / DIGESTS, json.loads, {})
    model = _read_file(directory / "model.safetensors", safetensors.torch.load, digests)
    ema = _read_file(directory / "ema.safetensors", safetensors.torch.load, digests)
    training = _read_file(directory / "training.pt", _load_training, digests)
    return Checkpoint(model=model, ema=ema, **training)


def _load_training(data: bytes) -> dict:
    training = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    fields = {key: training[key] for key in ("step", "optimizer", "seconds", "ema_updates")}
    return fields | {"times": training.get("times", {})}  # older checkpoints have none


def _read_file(path: Path, parse: Callable[[bytes], dict], digests: dict[str, str]) -> dict:
    if not path.is_file():
        raise UserError(f"checkpoint file {path} is missing")
    data = path.read_bytes()
    if path.name in digests and hashlib.sha256(data).hexdigest() != digests[path.name]:
        raise UserError(f"checkpoint file {path} is damaged: its bytes are not those that were written")
    try:
        return parse(data)
    except Exception as error:  # torn bytes make a parser raise anything, IndexError among them
        raise UserError(f"checkpoint file {path} is damaged") from error


def load_weights(module: nn.Module, weights: dict[str, Tensor], workdir: Path) -> None:
    """Loads weights strictly.

    Raises:
        UserError: If the checkpoint's tensors are not those of the configured model.
    """
    try:
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"the checkpoint in {workdir} does not fit the model of its config.json, "
            "which must have been edited: restore it"
        ) from error
