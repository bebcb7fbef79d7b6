"""Likelihoods and distances: what they are, what they mean, how sure they are."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from score_diffusion.run import plots, web_page
from score_diffusion.run.errors import UserError
from score_diffusion.run.evaluation.results import name_in_words, read_result
from score_diffusion.run.json_files import read_json
from score_diffusion.run.key_types import Values
from score_diffusion.run.reporting.files import (
    as_text,
    by_number,
    in_words,
    numbers,
    picture,
    refuse_link,
    unreadable,
)
from score_diffusion.run.web_page import Section

NUMBER = Values(kind=float)
LIKELIHOODS = {  # of `--mode likelihood` each figure with the ending of its histogram, and what it is
    "ode": ("", "probability flow"),
    "reverse_sde": ("-reverse-sde", "bound of the reverse SDE"),
    "bound": ("-bound", "variational bound"),
}
MEANINGS = {
    "frechet_distance": "distance of the Gaussians fitted to the features of both sets (as FID); 0 if alike",
    "kernel_distance": "squared mean discrepancy of the features (as KID), unbiased; 0 if alike",
    "precision": "share of samples that lie among the real data; 1 is best",
    "recall": "share of the real data that lie among the samples; 1 is best",
    "density": "how densely real data surround the samples; about 1 for real data",
    "coverage": "share of the real data with a sample nearby; 1 is best",
    "sliced_wasserstein": "how far the features have to move, on average over directions; 0 if alike",
    "exact_wasserstein": "how far each feature has to move to its partner; falls with the number of samples",
    "classifier_score": "how sure and how varied the classes of the samples are (as IS); higher is better",
    "accuracy_on_samples": "of a classifier trained on real data, on the samples; as on real data at best",
    "accuracy_from_samples": "of a classifier trained on samples, on real data; as from real data at best",
}
"""What the figures of `--mode evaluate` mean, in a few words."""


@dataclass(frozen=True)
class Figure:
    """A number with its standard error, None where it is not known."""

    value: float
    error: float | None = None

    def __str__(self) -> str:
        """With an error to its second digit."""
        if self.error is None or not 1e-6 < self.error < 1e6:
            return f"{self.value:.4g}" + ("" if self.error is None else f" ± {self.error:.2g}")
        digits = max(0, 1 - math.floor(math.log10(self.error)))
        return f"{self.value:.{digits}f} ± {self.error:.{digits}f}"


def figure_of(record: Mapping[str, Any], key: str, error: str = "standard_error") -> Figure | None:
    """A figure of a record and its error; None if it holds no such number."""
    if not NUMBER.take(record.get(key)):
        return None
    return Figure(record[key], record[error] if NUMBER.take(record.get(error)) else None)


def records(workdir: Path, stem: str) -> list[tuple[Path, dict[str, Any] | UserError]]:
    """The results of a mode, in the order in which they were written, or why they cannot be read."""
    found: list[tuple[Path, dict[str, Any] | UserError]] = []
    for path in by_number(workdir.glob(f"{stem}*.json")):
        try:
            refuse_link(path, workdir)
            found.append((path, read_json(path, {}, "it is not shown")))
        except UserError as error:
            found.append((path, error))
    return found


def likelihoods(workdir: Path) -> Section:
    """Each result of `--mode likelihood` with its histograms and the extreme images."""
    return Section(
        "Likelihood",
        _each(
            workdir,
            "likelihood",
            lambda path, record: likelihood_in_words(record),
            lambda path: _histograms(path, workdir),
        ),
    )


def _each(
    workdir: Path,
    stem: str,
    said: Callable[[Path, Mapping[str, Any]], str],
    shown: Callable[[Path], list[str]],
) -> list[str]:
    """The results of a mode: what they say, everything in a fold, and pictures, even without the rest."""
    parts = []
    for path, record in records(workdir, stem):
        parts.append(web_page.heading(path.name))
        if isinstance(record, UserError):
            parts.append(unreadable(record))
        else:
            parts += [said(path, record), generic_record(record)]
        parts.append(web_page.gallery(shown(path)))
    return parts


def _histograms(path: Path, workdir: Path) -> list[str]:
    """The figures of all samples of a result, in the colours of the page where they are known, and the
    extreme images.
    """
    shown = []
    each = path.with_suffix(".npz")
    for name, (ending, what) in LIKELIHOODS.items():
        values, drawn = numbers(each, workdir, name), f"{path.stem}{ending}.png"
        if values is not None:
            figure = plots.histogram(values, "of each held-out sample")
            shown.append(web_page.figure(figure, f"by the {what}, in the unit of the mean"))
        elif path.with_name(drawn).exists():
            shown.append(picture(path.with_name(drawn), workdir))
    other, held_out = (numbers(each, workdir, name) for name in ("other", "other_held_out"))
    if other is not None and held_out is not None:
        figure = plots.histogram({"held out": held_out, "other": other}, "of each sample")
        shown.append(web_page.figure(figure, "held-out data and other data"))
    for ending in ("extremes", "least-likely"):  # the latter in older runs
        extremes = path.with_name(f"{path.stem}-{ending}.png")
        if extremes.exists():
            shown.append(picture(extremes, workdir, f"{extremes.name}: held-out images"))
    return shown


def likelihood_in_words(record: Mapping[str, Any]) -> str:
    """What a result of `--mode likelihood` says and means."""
    parts = []
    for name, (_, what) in LIKELIHOODS.items():
        part = record if name == "ode" else record.get(name)
        part = part if isinstance(part, dict) else {}
        for key, unit in (("bits_per_dim", "bits/dim"), ("negative_log_likelihood", "nats")):
            figure = figure_of(part, key)
            if figure is not None:
                parts.append(f"{figure} {unit} by the {what}{_interval(part)}.")
    if not parts:
        return ""
    meaning = (
        "Bits per dimension are what the best code for this model takes for each pixel; a pixel of L equally "
        "likely grey levels takes log₂ L. Lower is better."
        if "bits/dim" in parts[0]
        else "The negative logarithm of the density, in the units of the data. Lower is better."
    )
    error = "± is the standard error of the mean over the samples."
    return web_page.paragraph(" ".join(parts)) + web_page.paragraph(f"{meaning} {error}", "quiet")


def _interval(record: Mapping[str, Any]) -> str:
    ends = record.get("interval")
    if not (isinstance(ends, list) and len(ends) == 2 and all(map(NUMBER.take, ends))):
        return ""
    return f", between {ends[0]:.4g} and {ends[1]:.4g} with 95 % confidence"


def distances(workdir: Path) -> Section:
    """Each result of `--mode evaluate` with the meaning of its figures and the samples most like data."""
    return Section(
        "Distances to held-out data",
        _each(workdir, "evaluation", _figures, lambda path: _copies(path, workdir)),
    )


def _copies(path: Path, workdir: Path) -> list[str]:
    copies = path.with_name(f"{path.stem}-copies.png")
    if not copies.exists():
        return []
    words = f"{copies.name}: the samples nearest to training data, each left of its neighbour"
    return [picture(copies, workdir, words)]


def _figures(path: Path, record: Mapping[str, Any]) -> str:
    """The figures of a result of `--mode evaluate` as a table; nothing for a file that holds none."""
    try:
        read_result(path)
    except UserError:
        return ""
    rows = []
    for name in record["samples"]:
        columns = [_with_error(record, of, name) for of in ("samples", "real")]
        rows.append((name_in_words(name), MEANINGS.get(name, ""), [str(x or "") for x in columns]))
    real = record.get("num_real")
    sizes = f"{record['num_samples']:,} samples" + (f", {real:,} real ones" if isinstance(real, int) else "")
    note = (
        f"Measured on {record['measured_on']} against {record['num_reference']:,} samples of the reference: "
        f"{sizes}. “Real data” are training data in the place of the samples, what a perfect model would "
        "score. ± is the standard error."
    )
    return web_page.explained(rows, ("", "samples", "real data")) + web_page.paragraph(note, "quiet")


def _with_error(record: Mapping[str, Any], of: str, name: str) -> Figure | None:
    values, errors = record.get(of), record.get(f"{of}_standard_error")
    if not isinstance(values, dict) or not isinstance(errors, dict):
        return None
    return figure_of({"value": values.get(name), "standard_error": errors.get(name)}, "value")


def generic_record(record: Mapping[str, Any]) -> str:
    """Everything in a result, in a fold: numbers and texts, parts with the same entries as columns of one
    table, and the file itself.
    """
    shown = {key: value for key, value in record.items() if key != "settings"}
    flat = {key: part for key, part in shown.items() if isinstance(part, dict) and _is_flat(part)}
    columns = flat if len(flat) > 1 else {}
    parts = [web_page.table(_leaves({key: value for key, value in shown.items() if key not in columns}))]
    if columns:
        names = list(dict.fromkeys(name for column in columns.values() for name in column))
        rows = [
            (in_words(name), *(as_text(column.get(name, "")) for column in columns.values()))
            for name in names
        ]
        parts.append(web_page.table(rows, ("", *map(in_words, columns))))
    text = json.dumps(record, indent=1)
    parts.append(web_page.folded("the whole file", f"<pre class='scroll'>{escape(text)}</pre>"))
    return web_page.folded("all figures and settings", "\n".join(parts))


def _is_flat(part: dict) -> bool:
    return not any(isinstance(value, dict | list) for value in part.values())


def _leaves(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """The numbers and texts of a record and of the records in it, named by their paths."""
    rows = []
    for key, value in record.items():
        name = f"{prefix}{in_words(key)}"
        if isinstance(value, dict):
            rows += _leaves(value, f"{name}: ")
        elif not isinstance(value, list):
            rows.append((name, as_text(value)))
    return rows


def uniform_bits(levels: int | None) -> str:
    """What a code that knows nothing takes for a pixel, in words; nothing for numbers."""
    return f"{math.log2(levels):.2f} knowing nothing" if levels else ""
