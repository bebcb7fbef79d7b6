"""`--mode sample`: draws samples with a trained model."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from ml_collections import ConfigDict

from score_diffusion.run.build import build_sampler, build_sde
from score_diffusion.run.builders.guidance import load_guided
from score_diffusion.run.builders.inference import build_trained_sampler, output_folder, sample_request
from score_diffusion.run.console import format_duration, print_result
from score_diffusion.run.data.condition_files import name_of
from score_diffusion.run.image_grids import shortened
from score_diffusion.run.inference.conditioning import NONE
from score_diffusion.run.inference.sample_files import draw_and_save
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.run.key_types import AUTO
from score_diffusion.samplers import Sampler, find_sampler

LISTED = 20  # classes or texts


def sample(config: ConfigDict, workdir: Path, device: torch.device) -> int:
    """Draws samples with a trained model; returns the exit code."""
    section = config.sampling
    build_sampler(section, build_sde(config.sde))  # for its checks, before the model is read
    output = output_folder(section, workdir)
    trained = load_guided(workdir, config, device)
    sampler = build_trained_sampler(section, trained, workdir)
    start = time.perf_counter()
    files = draw_and_save(trained, sampler, sample_request(section, trained.guided_by), output)
    if files is None:  # on all ranks except the first
        return 0
    step_size = getattr(sampler, "step_size", None)  # NCSNv2's rule may have chosen it
    rows = [
        ("samples", f"{section.num_samples:,} of shape {trained.shown.shape}, seed {section.seed}"),
        *_condition_rows(section, trained),
        ("model", f"{trained.weights} after {trained.step:,} training steps"),
        *([("guidance", trained.guided_by)] if trained.guided_by else []),
        ("nfe", f"{files.nfe:,} network evaluations per sample"),
        ("grid", _grid_in_words(section, sampler)),
        *([] if step_size is None else [("step size", f"{step_size:.4g}")]),
        ("time", format_duration(time.perf_counter() - start)),
        *files.others,
        ("array", files.array),
    ]
    print_result(f"Samples by {section.sampler}", rows)
    return 0


def _condition_rows(section: ConfigDict, trained: TrainedModel) -> list[tuple[str, object]]:
    """What the samples were drawn under; no rows for an unconditional model."""
    rows, conditions = trained.conditions.rows, trained.conditions
    words: list[tuple[str, object]] = []
    if "label" in rows:
        names = list(dict.fromkeys(conditions.names(len(rows["label"])) or []))
        listed = ", ".join(map(shortened, names[:LISTED])) + (", ..." if len(names) > LISTED else "")
        words.append(("classes", listed + (" in turn" if len(names) > 1 else "")))
    if "text" in rows and section.label != NONE:
        texts = section.prompt.splitlines()
        listed = "; ".join(texts[:LISTED]) + ("; ..." if len(texts) > LISTED else "")
        turn = " in turn" if len(texts) > 1 else ""
        words.append(("text", listed + turn or f"{section.prompts or 'held-out captions'}, line by line"))
    own = [name_of(kind) for kind in rows if kind not in ("label", "text")]
    if own and "text" not in rows and section.label != NONE:
        words.append(("conditions", f"{', '.join(own)} of {section.conditions or 'held-out samples'}"))
    return words


def _grid_in_words(section: ConfigDict, sampler: Sampler) -> str:
    name = find_sampler(section.sampler).grid if section.grid == AUTO else section.grid
    return f"{name}, {len(sampler.times) - 1:,} steps from {sampler.times[0]:g} to {sampler.times[-1]:g}"
