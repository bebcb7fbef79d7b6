"""`--mode likelihood`: scores held-out data, in bits/dim of images and nats of points."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from ml_collections import ConfigDict

from score_diffusion.run import plots
from score_diffusion.run.build import build_sde, choose, data_options
from score_diffusion.run.console import format_duration, print_result
from score_diffusion.run.data.info import load_data
from score_diffusion.run.distributed import processes
from score_diffusion.run.files import write_numbered_json
from score_diffusion.run.inference.scoring import (
    BOUND_HISTOGRAM,
    DEQUANTIZATIONS,
    FIGURES,
    HISTOGRAMS,
    METHODS,
    Scores,
    check_chain,
    gaussian_dequantization,
)
from score_diffusion.run.inference.trained_model import load_trained


def likelihood(config: ConfigDict, workdir: Path, device: torch.device) -> int:
    """Scores held-out data with the newest checkpoint of a run directory; returns the exit code."""
    section = config.likelihood
    figures = choose(METHODS, section.method, "method of likelihood")
    dequantize = choose(DEQUANTIZATIONS, section.dequantization, "dequantization")
    if "bound" in figures or dequantize is gaussian_dequantization:
        check_chain(build_sde(config.sde))
    trained = load_trained(workdir, config, device)
    dataset = load_data(data_options(config.data), trained.data)
    start = time.perf_counter()
    scores = {name: FIGURES[name](trained, dataset, section, device) for name in figures}
    if not processes.is_first():
        return 0
    seconds = time.perf_counter() - start
    quantity, unit = ("bits_per_dim", "bits/dim") if dataset.levels else ("negative_log_likelihood", "nats")
    record = {
        "seconds": seconds,
        "num_images": min(section.num_images, len(dataset.test)),
        "training_steps": trained.step,
        **trained.record(config.sampling),
        "settings": section.to_dict(),
    }
    if "ode" in scores:
        record = scores["ode"].record(quantity) | {"nfe": scores["ode"].nfe} | record
    if "bound" in scores:
        record["bound"] = _bound_record(scores["bound"], quantity)
    stem = write_numbered_json(workdir / "likelihood", record, ".png", BOUND_HISTOGRAM)
    result = stem.with_suffix(".json")
    histograms = {name: stem.with_name(stem.name + HISTOGRAMS[name]) for name in figures}
    for name, path in histograms.items():
        plots.save_histogram(path, scores[name].values, unit)
    rows = [
        *_figure_rows(scores, unit),
        ("held-out samples", f"{record['num_images']:,} of {len(dataset.test):,}"),
        ("model", f"{trained.weights} after {trained.step:,} training steps"),
        ("nfe", f"{sum(s.nfe for s in scores.values()):,} network evaluations per sample"),
        ("time", format_duration(seconds)),
        ("result", result),
        *(("histogram", path) for path in histograms.values()),
    ]
    print_result("Likelihood of held-out data", rows)
    return 0


def _figure_rows(scores: dict[str, Scores], unit: str) -> list[tuple[str, object]]:
    """The figures with their terms; for the bound's last terms the names of Ho et al., 2020, eq. 5."""
    rows: list[tuple[str, object]] = [(unit, scores["ode"])] if "ode" in scores else []
    if "bound" in scores:
        rows.append((f"bound, {unit}", scores["bound"]))
        rows += [(f"  {name}", term) for name, term in scores["bound"].terms.items()]
    return rows


def _bound_record(bound: Scores, quantity: str) -> dict:
    record = bound.record(quantity) | {"nfe": bound.nfe}
    record["terms"] = {name: term.record(quantity) for name, term in bound.terms.items()}
    if bound.steps is not None:
        record["steps"] = bound.steps.tolist()
    return record
