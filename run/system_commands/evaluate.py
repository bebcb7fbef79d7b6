"""`--mode evaluate` of a system: measures what it draws in the end against the data of its last model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from ml_collections import ConfigDict

from score_diffusion.run.builders.data import load_shown_data
from score_diffusion.run.builders.evaluation import build_evaluator
from score_diffusion.run.builders.inference import output_folder
from score_diffusion.run.commands.evaluate import compare_with_data
from score_diffusion.run.inference.sample_files import read_sample_file
from score_diffusion.run.systems.kinds import load_chain
from score_diffusion.run.systems.samples import find_or_draw
from score_diffusion.run.systems.system import System


def evaluate(system: System, configs: Mapping[str, ConfigDict], device: torch.device) -> int:
    """Measures samples of a system; returns the exit code.

    They are drawn first, unless a file of these weights and settings is there.
    """
    chain = load_chain(system, configs, device)
    output, config = output_folder(chain.sampling, system.path), configs[system.stages[-1]]
    dataset = load_shown_data(config.data, chain.last.data)
    evaluator = build_evaluator(config.evaluation, dataset, output, device)
    path = find_or_draw(chain, system.kind, output)
    if path is not None:  # on rank 0
        compare_with_data(read_sample_file(path), chain.last, evaluator, dataset, output)
    return 0
