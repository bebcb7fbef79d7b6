"""Checkpoints: one directory each, complete or absent (see directory.py).

    checkpoints/00004000/model.safetensors     weights
                         ema.safetensors       their moving average, used for samples and scores
                         averages.safetensors  further averages, if there are any: "NAME/WEIGHT"
                         shard-*.safetensors   instead of these three, and of the optimizer's state: pieces of
                                               them, where they were in pieces in training (see sharded.py)
                         training.pt           all other state: see `Checkpoint`
                         summary.json          step and held-out loss
                         sha256.json           digests of these, checked when they are read

The newest few are kept, and the one with the lowest held-out loss. The batch and the noise of a step are
functions of the seed and the step, so that nothing else is needed to resume exactly.
"""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from score_diffusion.run.checkpoints.directory import belongs, names, numbered, read_file, write_directory
from score_diffusion.run.console import warn
from score_diffusion.run.distributed import processes
from score_diffusion.run.distributed.model import in_pieces
from score_diffusion.run.errors import UserError

FOLDER = "checkpoints"
SUMMARY = "summary.json"
PIECES = "shard-"  # files with pieces begin with it


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, on the CPU once it is read, unless it is read into a state in pieces."""

    step: int
    """Optimizer steps done, those skipped included."""
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict
    seconds: float
    """Wall-clock time of training so far."""
    ema_updates: int
    """Steps in the averages, those skipped left out."""
    averages: dict[str, Tensor] = field(default_factory=dict)
    """The weights of further averages as "NAME/WEIGHT"."""
    times: dict[str, Tensor] = field(default_factory=dict)
    """State of the choice of times; empty for choices that have none."""
    objective: dict[str, Tensor] = field(default_factory=dict)
    """Parameters of the objective's own."""
    scaler: dict = field(default_factory=dict)
    """The loss scale of fp16."""
    running: dict[str, Tensor] = field(default_factory=dict)
    """Sums since the last point of the log."""
    held_out_loss: float | None = None

    def average(self, name: str) -> dict[str, Tensor]:
        """The weights of a further average; empty if there is none of this name."""
        prefix = f"{name}/"
        return {key.removeprefix(prefix): w for key, w in self.averages.items() if key.startswith(prefix)}

    def large(self) -> dict[str, Tensor]:
        """The tensors that may be in pieces, by their paths a:b:c through the dictionaries."""
        return _flatten({"state": self.optimizer["state"], **{part: getattr(self, part) for part in WEIGHTS}})

    def with_large(self, tensors: dict[str, Tensor]) -> Checkpoint:
        """The checkpoint with other tensors in the places of `large`."""
        parts = {"state": {}, **{part: {} for part in WEIGHTS}, **_nest(tensors)}
        return replace(self, optimizer={**self.optimizer, "state": parts.pop("state")}, **parts)


WEIGHTS = ("model", "ema", "averages")


def _flatten(tree: dict, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of nested dictionaries by their paths."""
    flat = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat |= _flatten(value, f"{path}:") if isinstance(value, dict) else {path: value}
    return flat


def _nest(flat: dict[str, Tensor]) -> dict:
    """The nested dictionaries that `_flatten` made flat; numbers in a path are integers."""
    tree = {}
    for path, value in flat.items():
        *folders, name = (int(part) if part.isdecimal() else part for part in path.split(":"))
        branch = tree
        for part in folders:
            branch = branch.setdefault(part, {})
        branch[name] = value
    return tree


IN_TRAINING_FILE = ("step", "optimizer", "seconds", "ema_updates")
SINCE_THEN = ("times", "objective", "scaler", "running", "held_out_loss")  # older checkpoints lack some


def save(workdir: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes a checkpoint, then removes all but the newest `keep` and the best; returns its directory.

    Every process calls it; where the state is in pieces, each writes its own.
    """
    target = workdir / FOLDER / f"{checkpoint.step:08d}"
    if any(map(in_pieces, checkpoint.model.values())):
        from score_diffusion.run.checkpoints import sharded  # slow to import

        small, large = _small(checkpoint.with_large({})), checkpoint.large()
        write_directory(target, small, lambda folder: sharded.write(folder, large))
    else:
        write_directory(target, _files(checkpoint) if processes.is_first() else {})
    if processes.is_first():
        _remove_old(numbered(workdir / FOLDER), keep)
    return target


def _small(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The files of a checkpoint beside its weights."""
    buffer = io.BytesIO()
    torch.save({key: getattr(checkpoint, key) for key in (*IN_TRAINING_FILE, *SINCE_THEN)}, buffer)
    summary = {"step": checkpoint.step, "held_out_loss": checkpoint.held_out_loss}
    return {"training.pt": buffer.getvalue(), SUMMARY: json.dumps(summary).encode()}


def _files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """All files of a checkpoint, by name."""
    files = {"model.safetensors": pack(checkpoint.model), "ema.safetensors": pack(checkpoint.ema)}
    if checkpoint.averages:
        files["averages.safetensors"] = pack(checkpoint.averages)
    return files | _small(checkpoint)


def _remove_old(directories: list[Path], keep: int) -> None:
    kept = {*directories[-keep:], *_by_held_out_loss(directories)[:1]}
    for old in directories:
        if old not in kept:
            shutil.rmtree(old)


def pack(weights: dict[str, Tensor]) -> bytes:
    """Weights as the bytes of a safetensors file, in the usual order of memory."""
    return safetensors.torch.save({key: weight.contiguous() for key, weight in weights.items()})


def set_aside_damaged(workdir: Path, step: int) -> None:
    """Renames the checkpoints above the step at which training goes on, which `latest` passed over: as the
    newest they would be kept instead of those to come.
    """
    for directory in numbered(workdir / FOLDER):
        if int(directory.name) > step:
            target = directory.with_name(f"damaged-{directory.name}")
            shutil.rmtree(target, ignore_errors=True)
            directory.rename(target)
            warn(f"{directory} is damaged and now called {target.name}")


def exists(workdir: Path) -> bool:
    """Whether the run directory holds any checkpoint, intact or not."""
    return bool(steps(workdir))


def steps(workdir: Path) -> list[int]:
    """The steps of the checkpoints, ascending."""
    return [int(directory.name) for directory in numbered(workdir / FOLDER)]


def latest(workdir: Path, into: Checkpoint | None = None) -> Checkpoint:
    """The newest intact checkpoint; damaged ones are named on stderr. Every process calls it.

    Args:
        workdir: The run directory.
        into: A state in pieces, whose tensors are overwritten; None for whole tensors on the CPU.

    Raises:
        UserError: If there is no checkpoint, none is intact, or processes find different ones.
    """
    return _first_intact(reversed(numbered(workdir / FOLDER)), workdir, into)


def best(workdir: Path) -> Checkpoint:
    """The intact checkpoint with the lowest held-out loss; damaged ones are named on stderr. Every process
    calls it.

    Raises:
        UserError: If there is no checkpoint with a held-out loss, or none is intact.
    """
    directories = numbered(workdir / FOLDER)
    ranked = _by_held_out_loss(directories)
    if directories and not ranked:
        raise UserError(
            f"no checkpoint of {workdir} has a held-out loss, so none is the best: train with "
            "training.held_out above 0, or take sampling.checkpoint=latest"
        )
    return _first_intact(ranked, workdir)


def _first_intact(directories: Iterable[Path], workdir: Path, into: Checkpoint | None = None) -> Checkpoint:
    damage = None
    for directory in directories:
        try:
            found = read(directory, into)
        except UserError as error:
            damage = error
            warn(f"{error}; it is passed over")
        else:
            return _checked_to_be_the_same(found, workdir)
    if damage is None:
        raise UserError(f"{workdir} holds no checkpoint: train first with --mode train --workdir {workdir}")
    raise UserError(
        f"no checkpoint of {workdir} is intact ({damage}): restore one, or train again in another --workdir"
    )


def _checked_to_be_the_same(found: Checkpoint, workdir: Path) -> Checkpoint:
    if processes.from_first(lambda: found.step) != found.step:
        raise UserError(
            f"processes find different checkpoints in {workdir}: it must be one directory for all of them, "
            "and no training may be writing to it just now"
        )
    return found


def _by_held_out_loss(directories: list[Path]) -> list[Path]:
    """Those with a held-out loss, the lowest first, of equals the newer."""
    losses = {directory: _held_out_loss(directory) for directory in reversed(directories)}
    return sorted((d for d in losses if math.isfinite(losses[d])), key=losses.__getitem__)


def _held_out_loss(directory: Path) -> float:
    try:
        loss = read_file(directory / SUMMARY, json.loads)["held_out_loss"]
    except (UserError, KeyError):  # an older checkpoint, or a damaged one: `latest` names it when it is read
        return math.inf
    return loss if isinstance(loss, float) else math.inf


def read(directory: Path, into: Checkpoint | None = None) -> Checkpoint:
    """Reads one checkpoint, into a state in pieces if one is given.

    Raises:
        UserError: If a file of it is missing, truncated or corrupt, or it is one of another step.
    """
    found = _read(directory, into)
    if found.step != int(directory.name):
        raise UserError(f"checkpoint {directory} is another one, of step {found.step}")
    return found


def _read(directory: Path, into: Checkpoint | None) -> Checkpoint:
    pieces = [name for name in names(directory) if name.startswith(PIECES)]
    if not pieces and into is None:
        return _read_whole(directory)
    from score_diffusion.run.checkpoints import sharded

    if not pieces:
        found = _read_whole(directory)
        sharded.take_pieces(directory, _completed(found, into).large(), into.large())
        return found.with_large(into.large())
    _check_pieces([directory / name for name in pieces])
    found = Checkpoint(model={}, ema={}, **read_file(directory / "training.pt", _load_training))
    if into is None:
        return found.with_large(sharded.read_whole(directory))
    sharded.read_pieces(directory, into.large())
    return found.with_large(into.large())


def _completed(found: Checkpoint, into: Checkpoint) -> Checkpoint:
    """The checkpoint with a beginning of what older ones and those of other libraries lack: averages begin
    with the first one's weights, and the optimizer with nothing.
    """
    averages = {
        name: found.averages.get(name, found.ema.get(name.partition("/")[2])) for name in into.averages
    }
    states = {
        index: {name: torch.zeros(x.shape) for name, x in state.items()}
        for index, state in into.optimizer["state"].items()
    } | found.optimizer["state"]
    return replace(found, averages=averages, optimizer={**found.optimizer, "state": states})


def _check_pieces(paths: list[Path]) -> None:
    """Checks the digests of files with pieces, each process of some of them; what one finds, all raise."""
    damage = []
    for k in processes.share(len(paths)):
        try:
            read_file(paths[k], lambda data: {})
        except UserError as error:
            damage.append(error)
    damage = processes.gather(damage)
    for error in processes.from_first(lambda: damage):
        raise error


def _read_whole(directory: Path) -> Checkpoint:
    model = read_file(directory / "model.safetensors", safetensors.torch.load)
    ema = read_file(directory / "ema.safetensors", safetensors.torch.load)
    training = read_file(directory / "training.pt", _load_training)
    path = directory / "averages.safetensors"
    averages = read_file(path, safetensors.torch.load) if belongs(path) else {}
    return Checkpoint(model=model, ema=ema, averages=averages, **training)


def _load_training(data: bytes) -> dict:
    training = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    fields = {key: training[key] for key in IN_TRAINING_FILE}
    return fields | {key: training[key] for key in SINCE_THEN if key in training}


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
