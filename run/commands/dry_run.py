"""`--dry_run`: what a command would work with, measured without writing anything."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from ml_collections import ConfigDict

from score_diffusion.run.build import build_sampler, build_sde
from score_diffusion.run.builders.data import load_run_data
from score_diffusion.run.builders.encoders import check_network
from score_diffusion.run.builders.training import (
    Model,
    build_network,
    build_objective,
    build_times,
    build_trainer,
    check_batch_size,
    needed_memory,
    total_training_steps,
)
from score_diffusion.run.config import config_text
from score_diffusion.run.console import format_duration, print_result
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.info import DataInfo, read_data_info
from score_diffusion.run.machine import LOWER, in_words, machine_memory
from score_diffusion.run.resolve_auto import resolve_conditions, resolve_levels, resolve_precision
from score_diffusion.run.training.memory import TrainingMemory
from score_diffusion.sde_lib import ScoreModel

TIMED_STEPS, TIMED_SECONDS = 5, 10.0  # at most


def dry_run(mode: str, config: ConfigDict, workdir: Path) -> int:
    """Prints the configuration, the parameter count and the memory of training; returns the exit code."""
    dataset = None
    if mode in ("train", "data"):
        check_batch_size(config.training)
        dataset = load_run_data(config.data, keep=False)
        config, data = resolve_conditions(resolve_levels(config, dataset), dataset), DataInfo.of(dataset)
    else:
        data = read_data_info(workdir)
    sde, shape = build_sde(config.sde), data.shape
    build_sampler(config.sampling, sde)  # this and what follows for their checks
    check_network(config)
    model = build_network(config, shape)
    if isinstance(model, ScoreModel):
        build_objective(config.training, model, build_times(config.training, sde), data.levels)
    print(config_text(config))
    memory = needed_memory(config.training, model, shape)
    rows = [("data", f"samples of shape {tuple(shape)}"), *_costs(config, model, memory)]
    if dataset is not None and memory.total < machine_memory("cuda")[0]:
        rows += _time(config, dataset)
    print_result("Dry run: nothing was written", rows)
    return 0


def _costs(config: ConfigDict, model: Model, memory: TrainingMemory) -> list[tuple[str, object]]:
    """Size and memory of a training, next to what the machine has."""
    micro_batch = config.training.batch_size // config.training.accumulate
    available, where = machine_memory("cuda")
    advice = "" if memory.total < available else f": {LOWER['train']}"
    return [
        ("parameters", f"{sum(p.numel() for p in model.parameters()):,}"),
        ("weights", in_words(memory.weights)),
        ("gradients", in_words(memory.weights)),
        ("Adam", in_words(2 * memory.weights)),
        ("moving averages", in_words(memory.averages)),
        ("activations", f"{in_words(memory.activations)} for a batch of {micro_batch}"),
        (
            "memory, estimated",
            f"{in_words(memory.total)} in training, without libraries and data, of the {where}'s "
            f"{in_words(available)}{advice}",
        ),
    ]


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
