"""`--mode interpolate`: paths of samples from one sample to another, through their codes."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from ml_collections import ConfigDict

from score_diffusion.run.builders.inference import output_folder
from score_diffusion.run.builders.interpolation import Pairs, build_flow, build_pairs, load_for_paths
from score_diffusion.run.console import format_duration, print_result, warn
from score_diffusion.run.distributed import processes
from score_diffusion.run.inference.costs import refuse_too_many_samples
from score_diffusion.run.inference.latents import paths_between
from score_diffusion.run.inference.path_files import DrawnPaths, save_paths
from score_diffusion.run.inference.trained_model import TrainedModel

LARGEST_ERROR = 0.05  # of the ends of paths, in the units of the model, without a warning


def interpolate(config: ConfigDict, workdir: Path, device: torch.device) -> int:
    """Draws paths between pairs of samples; returns the exit code."""
    section, output = config.interpolate, output_folder(config.sampling, workdir)
    trained = load_for_paths(workdir, config, device)
    pairs = build_pairs(config, trained)
    count = len(pairs) * section.num_samples
    refuse_too_many_samples(trained, count, "lower interpolate.num_pairs or interpolate.num_samples")
    start = time.perf_counter()
    drawn = _draw(config, trained, pairs)
    if drawn is None:  # on all ranks except the first
        return 0
    if drawn.rms_error > LARGEST_ERROR:
        warn(
            "the ends of the paths differ from the samples that were given: these may be unlike the data "
            "that the model was trained on, or interpolate.rtol and interpolate.atol are too large"
        )
    stem = save_paths(drawn, trained, section.to_dict(), output)
    names = trained.conditions.names(len(pairs))
    spread = "in a range from -1 to 1" if trained.data.levels else "standard deviations of the data"
    rows = [
        ("pairs", f"{len(pairs):,} of {pairs.found:,} samples of {section.input}"),
        *([] if names is None else [("conditions", ", ".join(dict.fromkeys(names)))]),
        ("samples", f"{section.num_samples:,} on each path, of shape {trained.shown.shape}"),
        ("model", f"{trained.weights} after {trained.step:,} training steps"),
        ("nfe", f"{drawn.nfe:,} network evaluations to decode a sample"),
        (
            "end points",
            f"come back with a root mean square error of {drawn.rms_error:.1e} {spread}, "
            f"{drawn.largest_error:.1e} at most",
        ),
        ("time", format_duration(time.perf_counter() - start)),
        ("picture", stem.with_suffix(".png")),
        ("array", stem.with_suffix(".npz")),
    ]
    print_result("Interpolations", rows)
    return 0


def _draw(config: ConfigDict, trained: TrainedModel, pairs: Pairs) -> DrawnPaths | None:
    """The paths, each rank a share of them; None on all ranks except the first."""
    section, share = config.interpolate, processes.own_share(len(pairs))
    parts = []
    if share:
        ends = pairs.ends[share.start : share.stop]
        flow = build_flow(section, trained)
        parts = [paths_between(trained, flow, ends, section.num_samples, section.batch_size, share.start)]
    gathered = processes.gather(parts)
    if gathered is None:
        return None
    samples = torch.cat([paths.samples for paths in gathered])
    codes = torch.cat([paths.codes for paths in gathered])
    return DrawnPaths(pairs.ends, pairs.names, samples, codes, max(paths.nfe for paths in gathered))
