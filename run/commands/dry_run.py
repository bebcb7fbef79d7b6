"""`--dry_run`: what a command would work with, measured without writing anything."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from ml_collections import ConfigDict
from torch import Tensor

from score_diffusion.models.conditions import null_condition
from score_diffusion.run.build import build_model, build_sampler, build_sde, condition_sizes, data_options
from score_diffusion.run.build_training import (
    build_objective,
    build_times,
    build_trainer,
    check_batch_size,
    total_training_steps,
)
from score_diffusion.run.config import config_text
from score_diffusion.run.console import format_duration, print_result
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.info import DataInfo, read_data_info
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.resolve_auto import resolve_conditions, resolve_levels, resolve_precision
from score_diffusion.sde_lib import ConditionalScore, ScoreModel, denoising_score_matching

TIMED_STEPS, TIMED_SECONDS = 5, 10.0  # at most


def dry_run(mode: str, config: ConfigDict, workdir: Path) -> int:
    """Prints the configuration, the parameter count and the memory of training; returns the exit code."""
    dataset = None
    if mode in ("train", "data"):
        check_batch_size(config.training)
        dataset = load_dataset(data_options(config.data))
        config, data = resolve_conditions(resolve_levels(config, dataset), dataset), DataInfo.of(dataset)
    else:
        data = read_data_info(workdir)
    sde, shape = build_sde(config.sde), data.shape
    model = build_model(config.model, sde, shape)
    build_sampler(config.sampling, sde)  # these two for their checks
    build_objective(config.training, model, build_times(config.training, sde), data.levels)
    print(config_text(config))
    rows = [("data", f"samples of shape {tuple(shape)}"), *_costs(config, model, shape)]
    if dataset is not None:
        rows += _time(config, dataset)
    print_result("Dry run: nothing was written", rows)
    return 0


def _costs(config: ConfigDict, model: ScoreModel, shape: Sequence[int]) -> list[tuple[str, object]]:
    """Size and memory of a training, next to what the machine has."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    micro_batch = config.training.batch_size // config.training.accumulate
    averages = 1 + len(config.training.extra_ema_decays) + len(config.training.ema_sigma_rels)
    activations = micro_batch * activation_bytes(model, shape)
    total = (4 + averages) * weights + activations  # weights, gradients, Adam's two, averages
    memory, where = machine_memory()
    advice = "" if total < memory else ": lower training.batch_size, or raise training.accumulate"
    return [
        ("parameters", f"{sum(p.numel() for p in model.parameters()):,}"),
        ("weights", _mebibytes(weights)),
        ("gradients", _mebibytes(weights)),
        ("Adam", _mebibytes(2 * weights)),
        ("moving averages", _mebibytes(averages * weights)),
        ("activations", f"{_mebibytes(activations)} for a batch of {micro_batch}"),
        (
            "memory, estimated",
            f"{_mebibytes(total)} in training, without libraries and data, of the {where}'s "
            f"{_mebibytes(memory)}{advice}",
        ),
    ]


def machine_memory() -> tuple[int, str]:
    """Bytes of memory where a training would run, and where that is: the GPU if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory, "GPU"
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "machine"


def _time(config: ConfigDict, dataset: Dataset) -> list[tuple[str, object]]:
    """How long training would take, from a few steps, which change nothing that is kept."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = build_trainer(resolve_precision(config, device, dataset.shape), dataset, device)
    trainer.advance()  # the first step allocates
    start, steps = time.perf_counter(), 0
    while steps < TIMED_STEPS and (steps == 0 or time.perf_counter() - start < TIMED_SECONDS):
        trainer.advance()
        if device.type == "cuda":
            torch.cuda.synchronize()
        steps += 1
    each = (time.perf_counter() - start) / steps
    total = total_training_steps(config.training)
    return [
        (
            "time, estimated",
            f"{format_duration(each * total)} for {total:,} steps of {each:.3g} s, as {steps} steps took "
            f"on this {device.type}",
        )
    ]


def activation_bytes(model: ScoreModel, shape: Sequence[int]) -> int:
    """Bytes that autograd keeps for the backward pass of one sample."""
    seen = {p.untyped_storage().data_ptr() for p in model.parameters()}
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
        return tensor

    x, t = torch.zeros(1, *shape), torch.full((1,), model.sde.T)
    cond = null_condition(condition_sizes(model), shape[1:])
    score = ConditionalScore(model, cond) if cond else model
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        denoising_score_matching(model.sde, score, x, t, torch.zeros_like(x))
    return total


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
