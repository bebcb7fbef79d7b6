"""The course of training: curves, losses by noise level, samples at fixed steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from score_diffusion.run import plots, web_page
from score_diffusion.run.inference.sample_files import SAMPLES
from score_diffusion.run.reporting.files import picture
from score_diffusion.run.training.log import finite_values
from score_diffusion.run.web_page import Section

MOST_PICTURES = 12  # the most previews on the page, which stays small; evenly spaced
WINDOWS = 4  # parts of the training for which the losses by noise level are shown
LOGARITHMIC = ("loss", "norm of the gradient")  # curves whose axis is logarithmic
CURVES = {  # each by its title: the names of its lines, and their keys in the log
    "loss": {"training": "loss", "held out": "held_out_loss"},
    "accuracy": {"held out": "held_out_accuracy"},
    "norm of the gradient": {"norm": "grad_norm"},
    "learning rate": {"rate": "learning_rate"},
    "steps per second": {"steps": "steps_per_second"},
}
Rows = list[dict[str, Any]]
"""Those of the log."""


def curves(rows: Rows) -> Section:
    """Everything that the log has, over the steps."""
    images = []
    for title, keys in CURVES.items():
        lines = {name: finite_values(rows, key) for name, key in keys.items()}
        lines = {name: line for name, line in lines.items() if line[0]}
        if lines:
            positive = title in LOGARITHMIC and all(min(y) > 0 for _, y in lines.values())
            scale = "log" if positive else "linear"
            images.append(web_page.figure(plots.curves(lines, "step", title, yscale=scale), title))
    note = (
        ""
        if not images
        else web_page.paragraph(
            "The held-out loss is measured at each checkpoint, with the averaged weights and always the same "
            "noise. It rises where the network begins to learn its training data by heart.",
            "quiet",
        )
    )
    return Section("Training", [note, web_page.gallery(images)])


def noise_levels(rows: Rows) -> Section:
    """Mean losses by noise level in equal parts of the training, as far as the log has them."""
    levels = [len(row.get("level_losses", ())) for row in rows[-1:]]
    rows = [row for row in rows if _has_levels(row, *levels)]
    lines = {}
    for window in np.array_split(np.arange(len(rows)), min(WINDOWS, len(rows)) or 1):
        if len(window):
            chosen = [rows[k] for k in window]
            losses = np.array([row["level_losses"] for row in chosen], dtype=float)  # null becomes NaN
            known = np.isfinite(losses)
            counts = known.sum(0)
            means = np.where(known, losses, 0).sum(0)[counts > 0] / counts[counts > 0]
            centres = _centres(np.array(chosen[0]["level_edges"], dtype=float))[counts > 0]
            lines[f"to step {chosen[-1]['step']:,}"] = (centres, means)
    if not lines:
        return Section("Loss by noise level", [])
    scale = "log" if all((y > 0).all() for _, y in lines.values()) else "linear"
    figure = plots.curves(lines, "noise level log(σ/α)", "loss", yscale=scale)
    note = (
        "On the left there is little noise, and the network sees the data almost as they are; on the right "
        "there is almost nothing else. Where a line no longer falls, training has little left to teach."
    )
    caption = "loss by noise level, means over parts of the training"
    return Section(
        "Loss by noise level",
        [web_page.paragraph(note, "quiet"), web_page.gallery([web_page.figure(figure, caption)])],
    )


def _has_levels(row: dict, count: int) -> bool:
    """Whether a row has a loss of each of so many levels."""
    losses, edges = row.get("level_losses", ()), row.get("level_edges", ())
    return len(losses) == count == len(edges) + 1 and len(edges) > 1


def _centres(edges: np.ndarray) -> np.ndarray:
    """The centres of bins between equally spaced edges; the first and last bin, which are open, count as wide
    as the others.
    """
    width = edges[1] - edges[0]
    return np.append(edges[0] - width / 2, edges + width / 2)


def previews(workdir: Path) -> Section:
    """Samples at some of the steps, from the same noise, one behind the other."""
    found = previews_of(workdir)
    chosen = np.linspace(0, len(found) - 1, min(len(found), MOST_PICTURES)).round().astype(int)
    shown = [picture(found[k], workdir, f"step {_step(found[k])}") for k in chosen]
    left_out = len(found) - len(shown)
    if not shown:
        return Section("Samples while training", [])
    more = f" {left_out} more in {SAMPLES}/, see Files." if left_out else ""
    note = f"The same noise at each step: what changes is the network.{more}"
    return Section(
        "Samples while training", [web_page.paragraph(note, "quiet"), web_page.slides(shown, "training")]
    )


def previews_of(workdir: Path) -> list[Path]:
    """The pictures of samples that training drew, the first step first."""
    return sorted((workdir / SAMPLES).glob("step_*.png"))


def _step(path: Path) -> str:
    number = path.stem.removeprefix("step_")
    return f"{int(number):,}" if number.isdecimal() else number
