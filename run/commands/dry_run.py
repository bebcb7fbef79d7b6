"""`--dry_run`: what a command would work with, measured without writing anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from ml_collections import ConfigDict
from torch import Tensor

from score_diffusion.run.build import build_model, build_sampler, build_sde, data_options
from score_diffusion.run.build_training import build_objective, build_times, check_batch_size
from score_diffusion.run.config import config_text
from score_diffusion.run.console import print_result
from score_diffusion.run.data.info import DataInfo, read_data_info
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.resolve_auto import resolve_levels
from score_diffusion.sde_lib import ScoreModel, denoising_score_matching


def dry_run(mode: str, config: ConfigDict, workdir: Path) -> int:
    """Prints the configuration, the parameter count and the memory of training; returns the exit code."""
    if mode in ("train", "data"):
        check_batch_size(config.training)
        dataset = load_dataset(data_options(config.data))
        config, data = resolve_levels(config, dataset), DataInfo.of(dataset)
    else:
        data = read_data_info(workdir)
    sde, shape = build_sde(config.sde), data.shape
    model = build_model(config.model, sde, shape)
    build_sampler(config.sampling, sde)  # these two for their checks
    build_objective(config.training, model, build_times(config.training, sde), data.levels)
    batch_size = config.training.batch_size
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    micro_batch = batch_size // config.training.accumulate
    averages = 1 + len(config.training.extra_ema_decays) + len(config.training.ema_sigma_rels)
    activations = micro_batch * activation_bytes(model, shape)
    total = (4 + averages) * weights + activations  # weights, gradients, Adam's two, averages
    print(config_text(config))
    print_result(
        "Dry run: nothing was written",
        [
            ("data", f"samples of shape {tuple(shape)}"),
            ("parameters", f"{sum(p.numel() for p in model.parameters()):,}"),
            ("weights", _mebibytes(weights)),
            ("gradients", _mebibytes(weights)),
            ("Adam", _mebibytes(2 * weights)),
            ("moving averages", _mebibytes(averages * weights)),
            ("activations", f"{_mebibytes(activations)} for a batch of {micro_batch}"),
            (
                "memory, estimated",
                f"{_mebibytes(total)} in training, without libraries and data",
            ),
        ],
    )
    return 0


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
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        denoising_score_matching(model.sde, model, x, t, torch.zeros_like(x))
    return total


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
