"""`--mode likelihood`: scores held-out data, in bits/dim of images and nats of points.

A conditional model scores each sample under its own condition, next to the null condition, and as a
classifier, where it is asked to, under every class.
"""

from __future__ import annotations

import io
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor

from score_diffusion.run import plots
from score_diffusion.run.build import build_sde
from score_diffusion.run.builders.data import load_run_data
from score_diffusion.run.builders.inference import (
    load_unconditioned,
    output_folder,
    own_conditions,
    without_conditions,
)
from score_diffusion.run.builders.scoring import other_data, score_data, with_accuracy
from score_diffusion.run.console import format_duration, print_result, warn
from score_diffusion.run.data.dataset import Dataset
from score_diffusion.run.data.sample_conditions import class_name
from score_diffusion.run.errors import UserError
from score_diffusion.run.files import write_atomic, write_numbered_json
from score_diffusion.run.image_grids import shortened
from score_diffusion.run.inference.classification import (
    ClassifiedData,
    by_bayes,
    denoising_log_likelihoods,
    of_each_class,
)
from score_diffusion.run.inference.out_of_distribution import OtherData
from score_diffusion.run.inference.reverse_bounds import importance_weighted, orders_violated
from score_diffusion.run.inference.scoring import Scores, check_chain
from score_diffusion.run.inference.trained_model import TrainedModel

FIGURES = {
    "ode": ("ode",),
    "reverse_sde": ("reverse_sde",),
    "bound": ("bound",),
    "both": ("bound", "ode"),
    "all": ("bound", "reverse_sde", "ode"),
}
"""The figures of each method: what can be refused comes first, what stands for the data last."""
WORDS = {"ode": "", "reverse_sde": "reverse SDE's bound, ", "bound": "bound, "}
HISTOGRAMS = {"ode": ".png", "reverse_sde": "-reverse-sde.png", "bound": "-bound.png"}
EACH, EXTREMES, OTHER = ".npz", "-extremes.png", "-other.png"
SHOWN = 25  # images of each extreme
MOST_CLASSES = 20  # that are printed

Figures = dict[str, Scores]
"""The scores of the figures, "ode", "reverse_sde" and "bound"."""


@dataclass(frozen=True)
class Scored:
    """Everything that was computed; on ranks other than the first nothing."""

    trained: TrainedModel
    """The model under the conditions of the data."""
    figures: Figures
    unconditional: Figures
    """The same under the null condition; empty for a model that does not know it, or no other."""
    classification: ClassifiedData | None
    weighted: dict[int, Scores]
    """The importance-weighted bounds of the ODE, by the number of draws."""
    other: OtherData | None
    """Other data next to the held-out data."""


def likelihood(config: ConfigDict, workdir: Path, device: torch.device) -> int:
    """Scores held-out data with a trained model; returns the exit code."""
    section = config.likelihood
    if "bound" in FIGURES[section.method] or section.dequantization == "gaussian":
        check_chain(build_sde(config.sde))
    output = output_folder(config.sampling, workdir)
    trained = load_unconditioned(workdir, config, device)
    dataset = load_run_data(config.data, trained.data, device)
    conditioned = own_conditions(config, trained, dataset)
    if section.classify != "none" and conditioned.conditions.labels(1) is None:
        raise UserError(
            f"likelihood.classify={section.classify} needs a model that was trained with class labels: set "
            "training.conditional=True in training, or likelihood.classify=none here"
        )
    if section.dequantization == "gaussian" and dataset.levels is None:
        warn(
            "likelihood.dequantization=gaussian adds the chain's first noise to numbers, too, and the figure "
            "is a bound: uniform leaves numbers as they are"
        )
    other = other_data(config, trained)
    start = time.perf_counter()
    if "ode" in FIGURES[section.method]:
        data = dataset.test[: section.num_images]
        config.likelihood = with_accuracy(section, conditioned, data)
    scored = _score(config, conditioned, without_conditions(config, trained), dataset, other)
    if not scored.figures:  # on all ranks except the first
        return 0
    _report(scored, config, dataset, output, time.perf_counter() - start)
    return 0


def _score(
    config: ConfigDict,
    trained: TrainedModel,
    bare: TrainedModel | None,
    dataset: Dataset,
    other: Tensor | None,
) -> Scored:
    section = config.likelihood
    data = dataset.test[: section.num_images]
    if other is not None and trained.conditions.rows and bare is None:
        raise UserError(
            "likelihood.path names data without conditions, and this model knows nothing without one "
            "(training.condition_dropout=0): leave it out, or train with condition dropout"
        )
    figures = _figures(section, trained, data)
    if "ode" in FIGURES[section.method] and section.checked_images:  # on every rank
        tighter = score_data("ode", section, trained, data[: section.checked_images], tighter=True)
        if tighter is not None:
            figures["ode"] = figures["ode"].with_solver_error(tighter)
    unconditional = {} if bare is None else _figures(section, bare, data)
    chosen = FIGURES[section.method][-1]
    of_other = None if other is None else score_data(chosen, section, bare or trained, other)
    for sentence in orders_violated(figures, section.dequantization == "gaussian"):
        warn(sentence)
    return Scored(
        trained,
        figures,
        unconditional,
        None if section.classify == "none" else _classify(section, trained, dataset, data),
        _weighted(section, trained, figures, data[0].numel()),
        None if of_other is None else OtherData(section.path, (unconditional or figures)[chosen], of_other),
    )


def _weighted(
    section: ConfigDict, trained: TrainedModel, figures: Figures, dimensions: int
) -> dict[int, Scores]:
    """The importance-weighted bounds of images; none where the likelihoods of the draws are estimates."""
    if "ode" not in figures or section.divergence != "exact" or not trained.data.levels:
        return {}
    return importance_weighted(figures["ode"], dimensions * math.log(2))


def _figures(section: ConfigDict, trained: TrainedModel, data: Tensor) -> Figures:
    """The figures that the section asks for; none on all ranks except the first."""
    scores = {name: score_data(name, section, trained, data) for name in FIGURES[section.method]}
    return {name: scored for name, scored in scores.items() if scored is not None}


def _classify(
    section: ConfigDict, trained: TrainedModel, dataset: Dataset, data: Tensor
) -> ClassifiedData | None:
    """The model as a classifier of the data; None on all ranks except the first."""
    counts = torch.bincount(dataset.conditions["label"], minlength=len(dataset.classes))
    nats = data[0].numel() * math.log(2) if trained.data.levels else 1.0  # of one unit of the scores
    if section.classify == "denoising":
        log_likelihoods = denoising_log_likelihoods(
            trained,
            data,
            len(counts),
            draws=section.classify_draws,
            batch_size=section.batch_size,
            seed=section.seed,
        )
        evaluations = section.classify_draws * len(counts)
    else:
        name = FIGURES[section.method][-1]
        each = [score_data(name, section, model, data) for model in of_each_class(trained, len(counts))]
        scores = [scored for scored in each if scored is not None]
        log_likelihoods = np.stack([-nats * scored.values for scored in scores], 1) if scores else None
        evaluations = sum(scored.nfe for scored in scores)
    if log_likelihoods is None:
        return None
    labels = dataset.test_conditions["label"][: len(data)].numpy()
    return ClassifiedData(by_bayes(log_likelihoods, counts), labels, evaluations)


def _report(scored: Scored, config: ConfigDict, dataset: Dataset, output: Path, seconds: float) -> None:
    """Writes and prints the result."""
    trained, figures, count = (
        scored.trained,
        scored.figures,
        min(len(dataset.test), config.likelihood.num_images),
    )
    record = _record(scored, config.likelihood, count, seconds)
    stem = write_numbered_json(output / "likelihood", record, *HISTOGRAMS.values(), EACH, EXTREMES, OTHER)
    pictures = _save_each(stem, scored, dataset)
    histograms = {name: stem.with_name(stem.name + HISTOGRAMS[name]) for name in figures}
    for name, path in histograms.items():
        plots.save_histogram(path, figures[name].values, _quantity(trained))
    if scored.other is not None:
        histograms["other"] = stem.with_name(stem.name + OTHER)
        both = {"held-out": scored.other.held_out.values, "other": scored.other.other.values}
        plots.save_histogram(histograms["other"], both, _quantity(trained))
    all_figures = [*figures.values(), *scored.unconditional.values()]
    rows = [
        *_score_rows(scored, _quantity(trained)),
        *_condition_rows(scored, config),
        ("held-out samples", f"{count:,} of {len(dataset.test):,}"),
        *_latent_rows(trained),
        ("model", f"{trained.weights} after {trained.step:,} training steps"),
        *_solver_rows(config.likelihood),
        ("nfe", f"{sum(s.nfe for s in all_figures):,} network evaluations per sample"),
        *_classification_rows(scored),
        *_other_rows(scored),
        ("time", format_duration(seconds)),
        ("result", stem.with_suffix(".json")),
        ("each sample", stem.with_suffix(EACH)),
        *(("histogram", path) for path in histograms.values()),
        *(("least and most", path) for path in pictures),
    ]
    print_result("Likelihood of held-out data", rows)


def _save_each(stem: Path, scored: Scored, dataset: Dataset) -> list[Path]:
    """Writes the figures of each sample, and a picture of the least and the most likely image; returns it."""
    figures = scored.figures
    arrays = {name: scores.values for name, scores in figures.items()}
    arrays |= {f"{name}_estimates": s.estimates for name, s in figures.items() if s.estimates is not None}
    if scored.other is not None:
        arrays |= {"other": scored.other.other.values, "other_held_out": scored.other.held_out.values}
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    write_atomic(stem.with_suffix(EACH), file.getvalue())
    shown = dataset.decoded or dataset
    if not shown.levels:
        return []
    values = next(reversed(figures.values())).values  # of the ODE if there are both
    order = torch.from_numpy(np.argsort(-values, kind="stable"))
    count = min(SHOWN, max(1, len(order) // 2))
    chosen = {"least likely": order[:count], "most likely": order.flip(0)[:count]}
    groups = {name: shown.scaling.stored_to_user(shown.test[k]).numpy() for name, k in chosen.items()}
    path = stem.with_name(stem.name + EXTREMES)
    plots.save_groups(path, groups, shown.scaling.limits)
    return [path]


def _quantity(trained: TrainedModel) -> str:
    """What is measured, and in which unit."""
    if trained.latent_space is not None:
        return "negative log-likelihood of latents, nats"
    return "bits/dim" if trained.data.levels else "negative log-likelihood, nats"


def _latent_rows(trained: TrainedModel) -> list[tuple[str, object]]:
    """What the figures of a model of latents are not."""
    if trained.latent_space is None:
        return []
    shape = " x ".join(map(str, trained.data.shape))
    return [("of", f"latents of {shape} numbers: a density, not comparable with bits/dim of pixels")]


def _score_rows(scored: Scored, quantity: str) -> list[tuple[str, object]]:
    """The figures, and what they consist of."""
    rows: list[tuple[str, object]] = []
    for name in ("ode", "reverse_sde", "bound"):
        if name not in scored.figures:
            continue
        scores = scored.figures[name]
        rows.append((f"{WORDS[name]}{quantity}", scores))
        if name == "ode":
            rows += _error_rows(scores)
            rows += [(f"  weighted, {K} draws", bound) for K, bound in scored.weighted.items()]
        elif "ode" in scored.figures:
            rows.append(("  above the ODE's", f"{scores.less(scored.figures['ode'])}, sample by sample"))
        rows += [(f"  {term_name}", term) for term_name, term in scores.terms.items()]
    return rows


def _other_rows(scored: Scored) -> list[tuple[str, object]]:
    other = scored.other
    if other is None:
        return []
    rows: list[tuple[str, object]] = [
        (f"other data, {_quantity(scored.trained)}", f"{other.other}, {len(other.other.values):,} samples"),
        ("  AUROC", f"{other.by_likelihood} by likelihood, {other.by_typicality} by typicality"),
    ]
    if other.is_more_likely:
        rows.append(
            (
                "  note",
                "more likely than the held-out data: a density favours simple data (Nalisnick et al., 2019), "
                "go by typicality",
            )
        )
    return rows


def _error_rows(scores: Scores) -> list[tuple[str, object]]:
    """Where the uncertainty of the figure of the ODE comes from."""
    rows: list[tuple[str, object]] = []
    if scores.interval is not None:
        rows.append(("  95 % interval", "{:.4f} to {:.4f}".format(*scores.interval)))
    if len(scores.error_parts) > 1:
        parts = ", ".join(f"{name} {error:.4f}" for name, error in scores.error_parts.items())
        rows.append(("  standard error of", parts))
    if scores.solver_error is not None:
        rows.append(("  solver's error", f"{scores.solver_error:.1e} in each sample, estimated"))
    return rows


def _solver_rows(section: ConfigDict) -> list[tuple[str, object]]:
    """The solver of the ODE and how accurate it was asked to be."""
    if "ode" not in FIGURES[section.method]:
        return []
    if section.solver == "exponential_adams":
        return [("solver", f"exponential_adams, {section.steps} steps")]
    return [("solver", f"{section.solver}, rtol={section.rtol:g} and atol={section.atol:g}")]


def _condition_rows(scored: Scored, config: ConfigDict) -> list[tuple[str, object]]:
    """What the figures are conditioned on, the unconditional ones, and those of each class."""
    conditions = scored.trained.conditions
    if not conditions.rows:
        return []
    rows: list[tuple[str, object]] = [("conditioned on", f"each sample's own {', '.join(conditions.rows)}")]
    for name, scores in scored.unconditional.items():
        of = WORDS[name]
        rows.append((f"  {of}unconditional", scores))
        rows.append((f"  {of}difference", f"{scored.figures[name].less(scores)}, sample by sample"))
    if not scored.unconditional:
        why = "condition_dropout=0" if config.training.conditional else "the model is another library's"
        rows.append(("  unconditional", f"not computed, it may not have been trained: {why}"))
    for name, of_class in _by_class(scored).items():
        first = next(iter(of_class.values()))
        rows.append((f"  class {shortened(name)}", f"{first}, {len(first.values):,} of the samples"))
    return rows if len(rows) <= MOST_CLASSES else [*rows[:MOST_CLASSES], ("  ...", "see the result")]


def _by_class(scored: Scored) -> dict[str, Figures]:
    """The figures of the samples of each class, by its name; empty without classes."""
    first = next(iter(scored.figures.values()))
    labels = scored.trained.conditions.labels(len(first.values))
    if labels is None:
        return {}
    classes = scored.trained.conditions.classes
    return {
        class_name(label, classes): {
            name: scores.of(labels.numpy() == label) for name, scores in scored.figures.items()
        }
        for label in labels.unique().tolist()
    }


def _classification_rows(scored: Scored) -> list[tuple[str, object]]:
    found = scored.classification
    if found is None:
        return []
    classes = found.log_probabilities.shape[1]
    return [
        ("accuracy", f"{100 * found.accuracy:.2f} % ± {100 * found.standard_error:.2f}, by Bayes' rule"),
        ("  log-loss", f"{found.log_loss:.4f} nats, {math.log(classes):.4f} for equally likely classes"),
        ("  cost", f"{found.evaluations:,} network evaluations per sample, for {classes} classes"),
    ]


def _record(scored: Scored, section: ConfigDict, num_images: int, seconds: float) -> dict[str, object]:
    """The result as it stands in the JSON file."""
    trained = scored.trained
    key = "bits_per_dim" if trained.data.levels else "negative_log_likelihood"
    key = key if trained.latent_space is None else "negative_log_likelihood_of_latents"
    record = _figures_record(scored.figures, key) | {
        "seconds": seconds,
        "num_images": num_images,
        "training_steps": trained.step,
        **trained.record(),
        "conditioned_on": [*trained.conditions.rows],
        "settings": section.to_dict(),
    }
    if scored.weighted:
        record["importance_weighted"] = {str(K): bound.record(key) for K, bound in scored.weighted.items()}
    if scored.other is not None:
        record["other"] = scored.other.record(key)
    if scored.unconditional:
        record["unconditional"] = _figures_record(scored.unconditional, key)
        record["difference"] = {
            name: scored.figures[name].less(scores).record(key)
            for name, scores in scored.unconditional.items()
        }
    by_class = _by_class(scored)
    if by_class:
        record["classes"] = {
            name: {"num_images": len(next(iter(figures.values())).values)} | _figures_record(figures, key)
            for name, figures in by_class.items()
        }
    if scored.classification is not None:
        found = scored.classification
        record["classification"] = {
            "accuracy": found.accuracy,
            "standard_error": found.standard_error,
            "log_loss": found.log_loss,
            "evaluations": found.evaluations,
            "classes": [
                class_name(k, trained.conditions.classes) for k in range(found.log_probabilities.shape[1])
            ],
            "labels": found.labels.tolist(),
            "log_probabilities": found.log_probabilities.clip(-1e6).round(4).tolist(),  # JSON has no -inf
        }
    return record


def _figures_record(scores: Figures, key: str) -> dict[str, object]:
    record: dict[str, object] = {}
    if "ode" in scores:
        ode = scores["ode"]
        errors = {"standard_error_parts": ode.error_parts, "solver_error": ode.solver_error}
        record |= ode.record(key) | {"nfe": ode.nfe} | errors
    if "reverse_sde" in scores:
        record["reverse_sde"] = scores["reverse_sde"].record(key) | {"nfe": scores["reverse_sde"].nfe}
    if "bound" in scores:
        bound = scores["bound"]
        record["bound"] = {
            **bound.record(key),
            "nfe": bound.nfe,
            "terms": {name: term.record(key) for name, term in bound.terms.items()},
            **({} if bound.steps is None else {"steps": bound.steps.tolist()}),
        }
    return record
