"""Checkpoints: one directory each, complete or absent (see directory.py).

    checkpoints/00004000/model.safetensors     weights
                         ema.safetensors       their moving average, used for samples and scores
                         averages.safetensors  further averages, if there are any: "NAME/WEIGHT"
                         shard-*.safetensors   instead of these three, and of the optimizer's state, where
                                               training was sharded (see sharded.py)
                         training.pt           all other state: see `Checkpoint`
                         summary.json          step and held-out loss
                         sha256.json           digests of these, checked when they are read

The newest few are kept, and the one with the lowest held-out loss. The batch and the noise of a step are
functions of the seed and the step, so that nothing else is needed to resume exactly.
"""

from __future__ import annotations

import functools
import io
import json
import math
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from score_diffusion.run.checkpoints.contents import (
    FORMAT,
    check_finite,
    check_not_compressed,
    check_tensors,
    check_training_file,
)
from score_diffusion.run.checkpoints.directory import (
    file_names,
    move_aside,
    numbered,
    read_file,
    remove_or_warn,
    remove_temporaries,
    write_directory,
)
from score_diffusion.run.console import warn
from score_diffusion.run.distributed import processes
from score_diffusion.run.distributed.model import is_sharded
from score_diffusion.run.errors import UserError
from score_diffusion.run.json_files import parse_json
from score_diffusion.run.key_types import Values

FOLDER = "checkpoints"
MODEL, EMA, AVERAGES = "model.safetensors", "ema.safetensors", "averages.safetensors"
TRAINING, SUMMARY = "training.pt", "summary.json"
SUMMARY_FIELDS = {"step": Values(kind=int, least=0), "held_out_loss": Values(kind=float | None)}
SHARD = "shard-"  # how the names of files with shards begin
WEIGHTS = ("model", "ema", "averages")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, on the CPU once it is read, unless it is read into a sharded state."""

    step: int
    """Optimizer steps done, skipped ones included."""
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict
    seconds: float
    """Wall-clock time of training so far."""
    ema_updates: int
    """Steps that entered the averages: all but the skipped ones."""
    averages: dict[str, Tensor] = field(default_factory=dict)
    """The weights of further averages as "NAME/WEIGHT"."""
    times: dict[str, Tensor] = field(default_factory=dict)
    """State of the choice of times; empty for choices without any."""
    objective: dict[str, Tensor] = field(default_factory=dict)
    """The objective's own parameters."""
    scaler: dict = field(default_factory=dict)
    """The loss scale of fp16."""
    running: dict[str, Tensor] = field(default_factory=dict)
    """Sums since the last point of the log."""
    held_out_loss: float | None = None

    def average(self, name: str) -> dict[str, Tensor]:
        """The weights of a further average; empty if there is none of this name."""
        prefix = f"{name}/"
        return {key.removeprefix(prefix): w for key, w in self.averages.items() if key.startswith(prefix)}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that may be sharded, by their paths a:b:c through the dictionaries."""
        return _flatten({"state": self.optimizer["state"], **{part: getattr(self, part) for part in WEIGHTS}})

    def with_tensors(self, tensors: dict[str, Tensor]) -> Checkpoint:
        """The checkpoint with other tensors in the places of `tensors`."""
        parts = {"state": {}, **{part: {} for part in WEIGHTS}, **_nest(tensors)}
        return replace(self, optimizer={**self.optimizer, "state": parts.pop("state")}, **parts)


IN_TRAINING_FILE = (
    *("step", "optimizer", "seconds", "ema_updates"),
    *("times", "objective", "scaler", "running", "held_out_loss"),
)


def _flatten(tree: dict, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of nested dictionaries by their paths."""
    flat: dict[str, Tensor] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat |= _flatten(value, f"{path}:") if isinstance(value, dict) else {path: value}
    return flat


def _nest(flat: dict[str, Tensor]) -> dict:
    """The nested dictionaries that `_flatten` made flat; numbers in a path are integers."""
    tree: dict = {}
    for path, value in flat.items():
        *folders, name = (int(part) if part.isdecimal() else part for part in path.split(":"))
        branch = tree
        for part in folders:
            branch = branch.setdefault(part, {})
        branch[name] = value
    return tree


def save(workdir: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes a checkpoint, then removes all but the newest `keep` and the best; returns its directory.

    Every process calls it; where the state is sharded, each writes its own shards.
    """
    folder = workdir / FOLDER
    target = folder / f"{checkpoint.step:08d}"
    if processes.is_rank_0():
        remove_temporaries(folder)
    if any(map(is_sharded, checkpoint.model.values())):
        from score_diffusion.run.checkpoints import sharded  # slow to import

        small, tensors = _small_files(checkpoint.with_tensors({})), checkpoint.tensors()
        write_directory(target, small, lambda folder: sharded.write(folder, tensors))
    else:
        write_directory(target, _files(checkpoint) if processes.is_rank_0() else {})
    if processes.is_rank_0():
        _remove_old(numbered(folder), keep)
    return target


def _small_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The files of a checkpoint besides its weights."""
    buffer = io.BytesIO()
    fields = {key: getattr(checkpoint, key) for key in IN_TRAINING_FILE}
    torch.save({"format": FORMAT, **fields}, buffer)
    summary = {"step": checkpoint.step, "held_out_loss": checkpoint.held_out_loss}
    return {TRAINING: buffer.getvalue(), SUMMARY: json.dumps(summary).encode()}


def _files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """All files of a checkpoint, by name."""
    files = {MODEL: pack(checkpoint.model), EMA: pack(checkpoint.ema)}
    if checkpoint.averages:
        files[AVERAGES] = pack(checkpoint.averages)
    return files | _small_files(checkpoint)


def pack(weights: dict[str, Tensor]) -> bytes:
    """Weights as the bytes of a safetensors file, in the usual order of memory."""
    return safetensors.torch.save({key: weight.contiguous() for key, weight in weights.items()})


def _remove_old(directories: list[Path], keep: int) -> None:
    """Removes all but the newest `keep`, the best, and those of which it cannot be read how good they are."""
    losses, unknown = _held_out_losses(directories)
    kept = {*directories[-keep:], *losses[:1], *unknown}
    for old in directories:
        if old not in kept:
            remove_or_warn(old)


def set_aside_damaged(workdir: Path, step: int) -> None:
    """Renames the checkpoints above the step from which training resumes, which `latest` passed over: as the
    newest they would be kept instead of those to come.
    """
    for directory in numbered(workdir / FOLDER):
        if int(directory.name) > step:
            warn(f"{directory} is damaged and now called {move_aside(directory, 'damaged').name}")


def exists(workdir: Path) -> bool:
    """Whether the run directory holds any checkpoint, intact or not.

    Raises:
        UserError: As `steps`.
    """
    return bool(steps(workdir))


def steps(workdir: Path) -> list[int]:
    """The steps of the checkpoints, intact or not, ascending; empty if there is none.

    Raises:
        UserError: If that cannot be found out: the folder of checkpoints cannot be listed, or is a link to
            nothing.
    """
    return [int(directory.name) for directory in numbered(workdir / FOLDER)]


def latest(workdir: Path, into: Checkpoint | None = None) -> Checkpoint:
    """The newest intact checkpoint; damaged ones are named on stderr. Every process calls it.

    Args:
        workdir: The run directory.
        into: A sharded state, whose tensors are overwritten; None for full tensors on the CPU.

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
    ranked, unknown = _held_out_losses(directories)
    if directories and not ranked and not unknown:
        raise UserError(
            f"no checkpoint of {workdir} has a held-out loss, so none is the best: train with "
            "training.held_out above 0, or take sampling.checkpoint=latest"
        )
    return _first_intact([*ranked, *unknown], workdir)


def at_step(workdir: Path, step: int) -> Checkpoint:
    """The checkpoint of a step. It is the one way to read one without digests, which is said on stderr.

    Raises:
        UserError: If there is no such checkpoint, or it is damaged.
    """
    directories = {int(path.name): path for path in numbered(workdir / FOLDER)}
    if step not in directories:
        found = ", ".join(map(str, directories)) or "none"
        raise UserError(f"{workdir} has no checkpoint of step {step}: its steps are {found}")
    directory = directories[step]
    try:
        file_names(directory)
    except UserError as error:
        warn(f"{error}; it is read unchecked")
        return read(directory, checked=False)
    return read(directory)


def _first_intact(directories: Iterable[Path], workdir: Path, into: Checkpoint | None = None) -> Checkpoint:
    damage = None
    for directory in directories:
        try:
            found = read(directory, into)
        except UserError as error:
            damage = error
            warn(f"{error}; the checkpoint is passed over")
        else:
            return _checked_to_be_the_same(found, workdir)
    if damage is None:
        raise UserError(f"{workdir} holds no checkpoint: train first with --mode train --workdir {workdir}")
    raise UserError(
        f"no checkpoint of {workdir} is intact ({damage}): restore one, or train again in another --workdir"
    )


def _checked_to_be_the_same(found: Checkpoint, workdir: Path) -> Checkpoint:
    if processes.from_rank_0(lambda: found.step) != found.step:
        raise UserError(
            f"processes find different checkpoints in {workdir}: it must be one directory for all of them, "
            "and no training may be writing to it just now"
        )
    return found


def _held_out_losses(directories: list[Path]) -> tuple[list[Path], list[Path]]:
    """The checkpoints with a held-out loss, the lowest first (among equals the newer); and those whose loss
    cannot be read.
    """
    losses, unknown = {}, []
    for directory in reversed(directories):
        try:
            losses[directory] = _held_out_loss(directory)
        except UserError:  # named when it is read
            unknown.append(directory)
    return sorted((d for d in losses if math.isfinite(losses[d])), key=losses.__getitem__), unknown


def _held_out_loss(directory: Path) -> float:
    """A checkpoint's held-out loss, infinite if there is none: from its summary, or if that is damaged, from
    the file that it summarizes.

    Raises:
        UserError: If neither can be read.
    """
    try:
        summary = read_file(directory / SUMMARY, functools.partial(parse_json, fields=SUMMARY_FIELDS))
    except UserError:
        summary = read_file(directory / TRAINING, _load_training)
    loss = summary["held_out_loss"]
    return math.inf if loss is None else float(loss)


def read(directory: Path, into: Checkpoint | None = None, checked: bool = True) -> Checkpoint:
    """Reads one checkpoint.

    Args:
        directory: The checkpoint.
        into: A sharded state, whose tensors are overwritten; None for full tensors on the CPU.
        checked: Whether its files must have the digests that were written with them.

    Raises:
        UserError: If a file of it is missing, unreadable, truncated or corrupt, or it is one of another step.
    """
    if not checked:
        found = _read_full(directory, averages=(directory / AVERAGES).is_file(), checked=False)
    else:
        found = _read_checked(directory, into)
    if found.step != int(directory.name):
        raise UserError(f"checkpoint {directory} is another one, of step {found.step}")
    return found


def _read_checked(directory: Path, into: Checkpoint | None) -> Checkpoint:
    names = file_names(directory)
    shards = [name for name in names if name.startswith(SHARD)]
    if not shards and into is None:
        return _read_full(directory, averages=AVERAGES in names)
    from score_diffusion.run.checkpoints import sharded

    if not shards and into is not None:
        found = _with_missing_state(_read_full(directory, averages=AVERAGES in names), into)
        sharded.copy_into(directory, found.tensors(), into.tensors())
        return found.with_tensors(into.tensors())
    _check_shards([directory / name for name in shards])
    found = Checkpoint(model={}, ema={}, **read_file(directory / TRAINING, _load_training))
    if into is None:
        return found.with_tensors(sharded.read_full(directory))
    sharded.read_into(directory, into.tensors())
    return found.with_tensors(into.tensors())


def _with_missing_state(found: Checkpoint, into: Checkpoint) -> Checkpoint:
    """The checkpoint with a beginning of what those of other libraries lack: averages begin with the weights
    of the first, and the optimizer with zeros.
    """
    averages = {
        name: found.averages.get(name, found.ema.get(name.partition("/")[2], tensor))
        for name, tensor in into.averages.items()
    }
    states = {
        index: {name: torch.zeros(x.shape) for name, x in state.items()}
        for index, state in into.optimizer["state"].items()
    } | found.optimizer["state"]
    return replace(found, averages=averages, optimizer={**found.optimizer, "state": states})


def _check_shards(paths: list[Path]) -> None:
    """Checks the digests of shards, each process of some of them; what one finds, all raise."""
    damage = []
    for k in processes.own_share(len(paths)):
        try:
            read_file(paths[k], lambda data: {})
        except UserError as error:
            damage.append(error)
    gathered = processes.gather(damage)
    all_damage = processes.from_rank_0(lambda: gathered or [])
    if all_damage:
        raise all_damage[0]


def _read_full(directory: Path, averages: bool, checked: bool = True) -> Checkpoint:
    def tensors(name: str) -> dict[str, Tensor]:
        return read_file(directory / name, safetensors.torch.load, checked)

    training = read_file(directory / TRAINING, _load_training, checked)
    further = tensors(AVERAGES) if averages else {}
    return Checkpoint(model=tensors(MODEL), ema=tensors(EMA), averages=further, **training)


def _load_training(data: bytes) -> dict:
    file = io.BytesIO(data)
    check_not_compressed(file)
    try:
        training = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its message advises to load with weights_only=False
        raise ValueError("it is no file of torch.save, or holds more than tensors and numbers") from error
    check_training_file(training, IN_TRAINING_FILE)
    return {key: training[key] for key in IN_TRAINING_FILE}


def load_weights(
    module: nn.Module, weights: dict[str, Tensor], workdir: Path, must_be_finite: bool = True
) -> None:
    """Loads weights strictly.

    Args:
        module: Where to.
        weights: The tensors of its state, by name.
        workdir: The run directory that they come from.
        must_be_finite: Whether NaN and infinity are refused; False for records of what went wrong.

    Raises:
        UserError: If the tensors are not those of the configured model, or not finite.
    """
    source = f"the checkpoint in {workdir}"
    check_tensors(weights, module.state_dict(), source)
    if must_be_finite:
        check_finite(weights, source)
    module.load_state_dict(weights, strict=True)
