"""`--mode sample` of a system: draws samples through all of its stages."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from ml_collections import ConfigDict

from score_diffusion.run.builders.inference import output_folder
from score_diffusion.run.console import format_duration, print_result
from score_diffusion.run.systems.kinds import load_chain
from score_diffusion.run.systems.samples import draw_and_save
from score_diffusion.run.systems.system import System


def sample(system: System, configs: Mapping[str, ConfigDict], device: torch.device) -> int:
    """Draws samples with a system; returns the exit code."""
    chain = load_chain(system, configs, device)
    output, start = output_folder(chain.sampling, system.path), time.perf_counter()
    files = draw_and_save(chain, system.kind, output)
    if files is None:  # on all ranks except the first
        return 0
    nfe = " + ".join(f"{count:,}" for count in files.nfe.values())
    rows = [
        ("samples", f"{chain.sampling.num_samples:,}, seed {chain.sampling.seed}"),
        *chain.facts(),
        ("nfe", f"{nfe} network evaluations per sample"),
        ("time", format_duration(time.perf_counter() - start)),
        *files.pictures,
        ("array", files.array),
    ]
    print_result(f"Samples of the {system.kind}", rows)
    return 0
