"""Checkpoints: one directory each, complete or absent.

    checkpoints/00004000/model.safetensors     weights
                         ema.safetensors       their exponential moving average, used for samples and scores
                         training.pt           optimizer state, step, seconds trained, averaged updates,
                                               losses behind times drawn by importance
                         sha256.json           digests of these files, checked when they are read

Where the state is in pieces (training.parallel=fsdp), shard-*.safetensors hold the tensors of all, one file
for each process; see sharded.py.

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
from dataclasses import dataclass, field, replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from run import distributed
from run.errors import UserError
from run.files import write_durable
from run.parallel import in_pieces

FOLDER = "checkpoints"
DIGESTS = "sha256.json"
PIECES = "shard-"  # of the names of files with pieces


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: read from a file on the CPU, or as it is in training."""

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

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that may be in pieces, by their paths a/b/c through the dictionaries."""
        return _flatten({"model": self.model, "ema": self.ema, "optimizer": self.optimizer})


def _flatten(tree: dict, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of nested dictionaries by their paths."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}/")
        elif isinstance(value, Tensor):
            flat[f"{prefix}{key}"] = value
    return flat


def _nest(flat: dict[str, Tensor]) -> dict:
    """The nested dictionaries that `_flatten` made flat; numbers in a path are integers."""
    tree = {}
    for path, value in flat.items():
        *folders, name = (int(part) if part.isdigit() else part for part in path.split("/"))
        branch = tree
        for part in folders:
            branch = branch.setdefault(part, {})
        branch[name] = value
    return tree


def save(workdir: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes a checkpoint, then removes all but the newest `keep`; returns its directory.

    Every process calls it. The first writes what is whole, and each its pieces of what is not.
    """
    target = workdir / FOLDER / f"{checkpoint.step:08d}"
    temporary = target.with_name(f".{target.name}")
    if distributed.is_first():
        shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed while writing
        temporary.mkdir(parents=True)
    try:
        split = any(map(in_pieces, checkpoint.model.values()))
        digests = _write_pieces(temporary, checkpoint) if split else {}
        if distributed.is_first():
            _write_whole(temporary, checkpoint, digests)
            # there is one only if it was damaged and training went on before it
            shutil.rmtree(target, ignore_errors=True)
            os.rename(temporary, target)
            _sync_folder(target.parent)
    finally:
        if distributed.is_first():
            shutil.rmtree(temporary, ignore_errors=True)
    if distributed.is_first():
        for old in _directories(workdir)[:-keep]:
            shutil.rmtree(old)
    distributed.wait()
    return target


def _write_pieces(folder: Path, checkpoint: Checkpoint) -> dict[str, str]:
    """Writes this process's pieces; returns, in the first, the digests of all files."""
    from run import sharded  # slow to import

    distributed.wait()  # for the folder
    names = sharded.write(folder, checkpoint.tensors())
    digests = distributed.gather([(name, _digest((folder / name).read_bytes())) for name in names])
    return dict(digests or ())


def _write_whole(folder: Path, checkpoint: Checkpoint, digests: dict[str, str]) -> None:
    """Writes training.pt, the weights unless they are in pieces, and the digests of all files."""
    optimizer, weights = checkpoint.optimizer, {"model": checkpoint.model, "ema": checkpoint.ema}
    if digests:
        optimizer, weights = {"param_groups": optimizer["param_groups"]}, {}
    training = {
        "step": checkpoint.step,
        "optimizer": optimizer,
        "seconds": checkpoint.seconds,
        "ema_updates": checkpoint.ema_updates,
        "times": checkpoint.times,
    }
    buffer = io.BytesIO()
    torch.save(training, buffer)
    files = {f"{name}.safetensors": safetensors.torch.save(part) for name, part in weights.items()}
    files["training.pt"] = buffer.getvalue()
    digests = {**digests, **{name: _digest(data) for name, data in files.items()}}
    for name, data in {**files, DIGESTS: json.dumps(digests).encode()}.items():
        write_durable(folder / name, data)
    _sync_folder(folder)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


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


def latest(workdir: Path, into: Checkpoint | None = None) -> Checkpoint:
    """The newest intact checkpoint; damaged ones are named on stderr. Every process calls it.

    Args:
        workdir: The run directory.
        into: A state in pieces, which is overwritten; None for whole tensors of its own.

    Raises:
        UserError: If there is no checkpoint, none is intact, or processes find different ones.
    """
    directories = _directories(workdir)
    if not directories:
        raise UserError(f"{workdir} holds no checkpoint: train first with --mode train --workdir {workdir}")
    for directory in reversed(directories):
        try:
            found = read(directory, into)
        except UserError as error:
            damage = error
            if distributed.is_first():
                print(f"warning: {error}", file=sys.stderr)
        else:
            if distributed.from_first(lambda found=found: found.step) != found.step:
                raise UserError(
                    f"processes find different checkpoints in {workdir}: it must be one directory for all, "
                    "and no training may be writing to it just now"
                )
            return found
    raise UserError(
        f"no checkpoint of {workdir} is intact ({damage}): restore one, or train again in another --workdir"
    )


def read(directory: Path, into: Checkpoint | None = None) -> Checkpoint:
    """Reads one checkpoint, into a state in pieces if there is one.

    Raises:
        UserError: If a file of it is missing, truncated or corrupt.
    """
    digests = {}  # checkpoints from before there were digests have none
    if (directory / DIGESTS).is_file():
        digests = _read_file(directory / DIGESTS, json.loads, {})
    training = _read_file(directory / "training.pt", _load_training, digests)
    pieces = [name for name in digests if name.startswith(PIECES)]
    if pieces:
        _check_pieces(directory, pieces, digests)
        return _read_pieces(directory, training, into)
    model = _read_file(directory / "model.safetensors", safetensors.torch.load, digests)
    ema = _read_file(directory / "ema.safetensors", safetensors.torch.load, digests)
    found = Checkpoint(model=model, ema=ema, **training)
    if into is None:
        return found
    from run import sharded

    sharded.take_pieces(found.tensors(), into.tensors())
    return _with_tensors(found, into)


def _with_tensors(found: Checkpoint, into: Checkpoint) -> Checkpoint:
    """The checkpoint with the tensors of a state in pieces."""
    optimizer = {**found.optimizer, "state": into.optimizer["state"]}
    return replace(found, model=into.model, ema=into.ema, optimizer=optimizer)


def _read_pieces(directory: Path, training: dict, into: Checkpoint | None) -> Checkpoint:
    """The rest of a checkpoint of which training.pt has been read."""
    from run import sharded

    if into is None:
        tensors = _nest(sharded.read_whole(directory))
        training["optimizer"] |= tensors.pop("optimizer")
        return Checkpoint(**tensors, **training)
    sharded.read_pieces(directory, into.tensors())
    return _with_tensors(Checkpoint(model={}, ema={}, **training), into)


def _check_pieces(directory: Path, pieces: list[str], digests: dict[str, str]) -> None:
    """Checks the pieces' digests, each process some of them; what one finds, all raise."""
    found = []
    for k in distributed.share(len(pieces)):
        try:
            _read_file(directory / pieces[k], lambda data: {}, digests)
        except UserError as error:
            found.append(error)
    found = distributed.gather(found)
    for error in distributed.from_first(lambda: found):
        raise error


def _load_training(data: bytes) -> dict:
    training = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    fields = {key: training[key] for key in ("step", "optimizer", "seconds", "ema_updates")}
    return fields | {"times": training.get("times", {})}  # older checkpoints have none


def _read_file(path: Path, parse: Callable[[bytes], dict], digests: dict[str, str]) -> dict:
    if not path.is_file():
        raise UserError(f"checkpoint file {path} is missing")
    data = path.read_bytes()
    if path.name in digests and _digest(data) != digests[path.name]:
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
