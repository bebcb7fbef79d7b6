"""What a checkpoint's contents must be before anything is loaded from them.

Digests tell that the bytes are those that were written, not who wrote them: a run directory may come from
anywhere, and an optimizer whose moments have the wrong shape makes fused Adam write outside its memory.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from score_diffusion.run.distributed.model import own_shard
from score_diffusion.run.errors import UserError

FORMAT = 1  # of the files of a checkpoint
MOMENTS = ("exp_avg", "exp_avg_sq")


def check_training_file(training: object, keys: Sequence[str]) -> None:
    """Checks the types and ranges of what training.pt holds.

    Raises:
        ValueError: If it is of another format, lacks a key, or a value is impossible.
    """
    if not isinstance(training, dict):
        raise ValueError(f"it holds a {type(training).__name__}, not a dictionary")
    if training.get("format") != FORMAT:
        raise ValueError(f"it has format {training.get('format')!r}, this version reads format {FORMAT}")
    missing = [key for key in keys if key not in training]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    for key in ("step", "ema_updates"):
        if type(training[key]) is not int or training[key] < 0:
            raise ValueError(f"its {key} is {training[key]!r}, not a number of steps")
    seconds, loss = training["seconds"], training["held_out_loss"]
    if not isinstance(seconds, float | int) or not 0 <= seconds < math.inf:
        raise ValueError(f"its seconds are {seconds!r}, not a duration")
    if loss is not None and not isinstance(loss, float):
        raise ValueError(f"its held_out_loss is {loss!r}, not a number")
    for key in ("times", "objective", "running"):
        if not _holds_tensors(training[key]):
            raise ValueError(f"its {key} is not a dictionary of tensors")
    if not isinstance(training["scaler"], dict):
        raise ValueError("its scaler is not a dictionary")
    _check_optimizer_structure(training["optimizer"])


def check_not_compressed(file: IO[bytes]) -> None:
    """Checks that a file of torch.save does not grow when it is read: torch.save compresses nothing.

    Raises:
        ValueError: If the parts of a zip archive are larger than the archive.
    """
    size = file.seek(0, 2)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            parts = sum(part.file_size for part in archive.infolist())
        if parts > size:
            raise ValueError(f"its parts have {parts} bytes, more than its own {size}")
    file.seek(0)


def has_all_its_numbers(x: Tensor) -> bool:
    """Whether a tensor has a number in memory for each of its own, which one of stride 0 has not."""
    local = own_shard(x)
    return local.numel() * local.element_size() <= local.untyped_storage().nbytes()


def _holds_tensors(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(x, Tensor) for name, x in value.items()
    )


def _check_optimizer_structure(optimizer: object) -> None:
    if not isinstance(optimizer, dict) or not {"state", "param_groups"} <= set(optimizer):
        raise ValueError("its optimizer is not the state of one")
    state, groups = optimizer["state"], optimizer["param_groups"]
    if not isinstance(state, dict) or not all(
        isinstance(index, int) and _holds_tensors(entry) for index, entry in state.items()
    ):
        raise ValueError("its optimizer's state is not one dictionary of tensors for each parameter")
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise ValueError("its optimizer's param_groups are not a list of dictionaries")
    names = [name for group in groups for name in group.get("param_names") or ()]
    if not all(isinstance(name, str) for name in names):
        raise ValueError("its optimizer's param_names are not names")


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Checks that tensors have the names, shapes and kinds of numbers of others.

    Args:
        found: The tensors of a file.
        expected: Those in whose place they will be loaded.
        source: What the former belong to, for the error.

    Raises:
        UserError: If one differs.
    """
    reason = _difference(found, expected)
    if reason:
        raise UserError(f"{source} does not fit the model of its config.json ({reason}): restore that file")


def _difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected]
    if missing or extra:
        lists = ((missing, "are missing"), (extra, "are not the model's"))
        return "; ".join(f"{len(keys)} tensors {what}, such as {keys[0]}" for keys, what in lists if keys)
    for key, tensor in expected.items():
        if found[key].shape != tensor.shape:
            return f"{key} has shape {tuple(found[key].shape)} there and {tuple(tensor.shape)} here"
        if found[key].is_floating_point() != tensor.is_floating_point() or found[key].is_complex():
            return f"{key} has dtype {found[key].dtype} there and {tensor.dtype} here"
    return None


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Checks that numbers are finite.

    Raises:
        UserError: If one is not.
    """
    for key, tensor in tensors.items():
        if not is_finite(tensor):
            raise UserError(f"{source} holds NaN or infinity in {key}: use another checkpoint")


def is_finite(x: Tensor) -> bool:
    """Whether all numbers of a tensor, or of this process's shard of it, are finite."""
    return bool(own_shard(x).isfinite().all())


def renumber_parameters(saved: Mapping, optimizer: torch.optim.Optimizer) -> dict:
    """A saved state of an optimizer with its parameters, by their names, in the order that they have now.

    A network may define its layers in another order than the version that saved it. States without names, of
    earlier versions, are returned as they are.

    Args:
        saved: What `optimizer.state_dict()` returned when it was saved.
        optimizer: The optimizer that will load it.
    """
    now = optimizer.state_dict()["param_groups"]
    names = [[*(group.get("param_names") or ())] for group in saved["param_groups"]]
    orders = [[*group.get("param_names", ())] for group in now]
    if [sorted(group) for group in names] != [sorted(group) for group in orders]:
        return {**saved}  # without names, or refused for its shapes
    before = [name for group in names for name in group]
    index = {name: i for i, name in enumerate(name for group in orders for name in group)}
    state = {index[before[i]] if i < len(before) else i: entry for i, entry in saved["state"].items()}
    groups = [
        group | {"param_names": order} for group, order in zip(saved["param_groups"], orders, strict=True)
    ]
    return {**saved, "state": state, "param_groups": groups}


def check_optimizer(saved: Mapping, optimizer: torch.optim.Optimizer, workdir: Path) -> None:
    """Checks a saved state of Adam against the optimizer that will load it.

    Args:
        saved: What `optimizer.state_dict()` returned when it was saved.
        optimizer: The optimizer.
        workdir: The run directory, for errors.

    Raises:
        UserError: If a moment is not of its parameter's shape, a number is impossible, or a setting differs
            (besides the learning rate, which each step sets).
    """
    source = f"the optimizer's state of the checkpoint in {workdir}"
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, entry in saved["state"].items():
        if not 0 <= index < len(parameters):
            raise UserError(f"{source} is for more than the model's {len(parameters)} parameters")
        _check_moments(entry, parameters[index], f"{source} (parameter {index})")
    now = optimizer.state_dict()["param_groups"]
    if len(saved["param_groups"]) != len(now):
        raise UserError(f"{source} has {len(saved['param_groups'])} groups of parameters, not {len(now)}")
    for before, group in zip(saved["param_groups"], now, strict=True):
        if "params" not in before:
            raise UserError(f"{source} does not list the model's parameters")
        other = set(before.get("param_names") or ()) ^ set(group.get("param_names") or ())
        if other and "param_names" in before and "param_names" in group:
            raise UserError(f"{source} is not for the model's parameters: only one has {min(other)}")
        for key in sorted(set(group) & set(before) - {"lr"}):
            if not _same_setting(before[key], group[key]):
                raise UserError(f"{source} has {key}={before[key]!r}, training has {group[key]!r}")


def _same_setting(a: object, b: object) -> bool:
    return type(a) in (bool, int, float, str, tuple, list, type(None)) and (
        a == b or isinstance(a, tuple | list) and isinstance(b, tuple | list) and list(a) == list(b)
    )


def _check_moments(entry: Mapping[str, Tensor], parameter: Tensor, source: str) -> None:
    if set(entry) != {"step", *MOMENTS}:
        raise UserError(f"{source} holds {', '.join(entry) or 'nothing'}, not step, {', '.join(MOMENTS)}")
    for name in MOMENTS:
        moment = entry[name]
        if moment.shape != parameter.shape or moment.dtype != parameter.dtype:
            raise UserError(
                f"{source}: {name} has shape {tuple(moment.shape)} and dtype {moment.dtype}, not "
                f"{tuple(parameter.shape)} and {parameter.dtype}"
            )
        if not has_all_its_numbers(moment):
            raise UserError(f"{source}: {name} repeats its numbers")
        if not is_finite(moment):
            raise UserError(f"{source}: {name} holds NaN or infinity")
    step = entry["step"]
    if step.numel() != 1 or not step.is_floating_point() or not 0 <= float(step) < math.inf:
        raise UserError(f"{source}: step is {step}, not a number of steps")
