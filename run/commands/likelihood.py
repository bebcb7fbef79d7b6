"""`--mode likelihood`: scores held-out data, in bits/dim of images and nats of points."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from ml_collections import ConfigDict
from torch import Tensor

from score_diffusion.run import plots
from score_diffusion.run.build import build_sde, data_options
from score_diffusion.run.build_inference import build_dequantization, load_trained
from score_diffusion.run.console import format_duration, print_result
from score_diffusion.run.data.info import load_data
from score_diffusion.run.files import write_numbered_json
from score_diffusion.run.inference.scoring import Scores, bound_held_out, check_chain, score_held_out
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.samplers import clip_bounds

FIGURES = {"ode": ("ode",), "bound": ("bound",), "both": ("bound", "ode")}  # what can be refused comes first
HISTOGRAMS = {"ode": ".png", "bound": "-bound.png"}


def likelihood(config: ConfigDict, workdir: Path, device: torch.device) -> int:
    """Scores held-out data with a trained model; returns the exit code."""
    section, figures = config.likelihood, FIGURES[config.likelihood.method]
    if "bound" in figures or section.dequantization == "gaussian":
        check_chain(build_sde(config.sde))
    trained = load_trained(workdir, config, device)
    held_out = load_data(data_options(config.data), trained.data).test
    data = held_out[: section.num_images]
    start = time.perf_counter()
    scores: dict[str, Scores] = {}
    for name in figures:
        scored = _score(name, section, trained, data)
        if scored is not None:
            scores[name] = scored
    if not scores:  # on all ranks except the first
        return 0
    seconds = time.perf_counter() - start
    record = _record(scores, section, trained, len(data), seconds)
    stem = write_numbered_json(workdir / "likelihood", record, *HISTOGRAMS.values())
    histograms = {name: stem.with_name(stem.name + HISTOGRAMS[name]) for name in figures}
    for name, path in histograms.items():
        plots.save_histogram(path, scores[name].values, _quantity(trained))
    rows = [
        *_score_rows(scores, _quantity(trained)),
        ("held-out samples", f"{len(data):,} of {len(held_out):,}"),
        ("model", f"{trained.weights} after {trained.step:,} training steps"),
        ("nfe", f"{sum(s.nfe for s in scores.values()):,} network evaluations per sample"),
        ("time", format_duration(seconds)),
        ("result", stem.with_suffix(".json")),
        *(("histogram", path) for path in histograms.values()),
    ]
    print_result("Likelihood of held-out data", rows)
    return 0


def _score(name: str, section: ConfigDict, trained: TrainedModel, data: Tensor) -> Scores | None:
    """One of the two figures; None on all ranks except the first."""
    if name == "ode":
        return score_held_out(
            trained,
            data,
            build_dequantization(section, trained),
            batch_size=section.batch_size,
            seed=section.seed,
            divergence=section.divergence,
            n_probes=section.n_probes,
            rtol=section.rtol,
            atol=section.atol,
        )
    return bound_held_out(
        trained,
        data,
        batch_size=section.batch_size,
        seed=section.seed,
        variance=section.variance,
        clip=clip_bounds(section.clip),
        n_terms=section.bound_terms or None,
        n_draws=section.bound_draws,
    )


def _quantity(trained: TrainedModel) -> str:
    """What is measured, and in which unit."""
    return "bits/dim" if trained.data.levels else "negative log-likelihood, nats"


def _score_rows(scores: dict[str, Scores], quantity: str) -> list[tuple[str, object]]:
    """The figures, and the terms of the bound."""
    rows: list[tuple[str, object]] = [(quantity, scores["ode"])] if "ode" in scores else []
    if "bound" in scores:
        rows.append((f"bound, {quantity}", scores["bound"]))
        rows += [(f"  {name}", term) for name, term in scores["bound"].terms.items()]
    return rows


def _record(
    scores: dict[str, Scores], section: ConfigDict, trained: TrainedModel, num_images: int, seconds: float
) -> dict[str, object]:
    """The result as it stands in the JSON file."""
    key = "bits_per_dim" if trained.data.levels else "negative_log_likelihood"
    record: dict[str, object] = {}
    if "ode" in scores:
        record |= scores["ode"].record(key) | {"nfe": scores["ode"].nfe}
    record |= {
        "seconds": seconds,
        "num_images": num_images,
        "training_steps": trained.step,
        **trained.record(),
        "settings": section.to_dict(),
    }
    if "bound" in scores:
        bound = scores["bound"]
        record["bound"] = {
            **bound.record(key),
            "nfe": bound.nfe,
            "terms": {name: term.record(key) for name, term in bound.terms.items()},
            **({} if bound.steps is None else {"steps": bound.steps.tolist()}),
        }
    return record
