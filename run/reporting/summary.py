"""What a run is and how far it came, in plain words and in a few figures."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from ml_collections import ConfigDict

from score_diffusion.run import web_page
from score_diffusion.run.builders.training import total_training_steps
from score_diffusion.run.console import format_duration
from score_diffusion.run.data.info import DATA_FILE, DataInfo, read_data_info
from score_diffusion.run.errors import UserError
from score_diffusion.run.reporting.files import unreadable
from score_diffusion.run.reporting.results import figure_of, records, uniform_bits
from score_diffusion.run.reporting.training import Rows
from score_diffusion.run.training.log import finite_values
from score_diffusion.run.web_page import Section

DENOISING = ("dsm", "uncertainty", "hybrid")  # objectives of networks that remove noise
PREDICTED = {
    "noise": "the noise",
    "x0": "the clean sample",
    "v": "v, a mixture of noise and sample",
    "score": "the score",
    **dict.fromkeys(("edm", "vp", "ve", "iddpm"), "the clean sample, by one of EDM's preconditionings"),
}


def summary(config: ConfigDict, workdir: Path, rows: Rows) -> Section:
    """The summary of a run.

    Args:
        config: Its configuration.
        workdir: Its directory.
        rows: Those of its log.
    """
    parts, data = [], None
    if (workdir / DATA_FILE).exists():
        try:
            data = read_data_info(workdir)
        except UserError as error:
            parts.append(unreadable(error))
    words = f"{_what(config, data)} {_progress(config, rows)}"
    parts = [web_page.paragraph(words), *parts, web_page.tiles(_tiles(config, workdir, rows, data))]
    missing = [
        f"{words} (--mode {mode})"
        for words, mode, pattern in (
            ("samples", "sample", "samples/*.npz"),
            ("likelihood", "likelihood", "likelihood*.json"),
            ("distances", "evaluate", "evaluation*.json"),
        )
        if config.training.objective in DENOISING and not any(workdir.glob(pattern))
    ]
    if missing:
        parts.append(web_page.paragraph(f"Not computed yet: {', '.join(missing)}.", "quiet"))
    return Section("Summary", parts)


def written_now() -> str:
    """When a page is written, for the line below its title."""
    return f"a run of score-diffusion, page written {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"


def _what(config: ConfigDict, data: DataInfo | None) -> str:
    """What is trained on what."""
    model, training = config.model, config.training
    counts = "" if data is None else f"{data.num_train:,} training and {data.num_test:,} held-out samples"
    on = "" if data is None else f" on {data.name} ({counts} of shape {data.shape}, {data.kind})"
    if training.objective not in DENOISING:
        return (
            f"This run trains a network of the kind {model.name}{on}; its objective is {training.objective}."
        )
    given = ", given what each sample comes with," if training.conditional else ""
    return (
        f"This run trains a network of the kind {model.name} to remove noise{given}{on}. The noise is that "
        f"of the SDE {config.sde.name}, and what the network predicts is {PREDICTED[model.prediction]}."
    )


def _progress(config: ConfigDict, rows: Rows) -> str:
    total = total_training_steps(config.training)
    if not rows:
        return f"No training is logged, of {config.training.steps:,} steps."
    step, held_out = rows[-1]["step"], finite_values(rows, "held_out_loss")
    done = (
        f"Training took all its {total:,} steps"
        if step >= total
        else f"Training is at step {step:,} of {total:,}"
    )
    time = f" in {format_duration(rows[-1]['seconds'])}" if "seconds" in rows[-1] else ""
    if len(held_out[1]) < 2:
        return f"{done}{time}."
    best = min(zip(held_out[1], held_out[0], strict=True))
    return (
        f"{done}{time}. The loss on held-out data went from {held_out[1][0]:.4g} to "
        f"{held_out[1][-1]:.4g}, with its lowest, {best[0]:.4g}, at step {best[1]:,}."
    )


def _tiles(
    config: ConfigDict, workdir: Path, rows: Rows, data: DataInfo | None
) -> list[tuple[str, str, str]]:
    tiles = []
    if rows:
        of = f"of {total_training_steps(config.training):,}"
        tiles.append(("steps", f"{rows[-1]['step']:,}", of))
    for key, name in (("loss", "loss, training"), ("held_out_loss", "loss, held out")):
        steps, values = finite_values(rows, key)
        if values:
            tiles.append((name, f"{values[-1]:.4g}", f"at step {steps[-1]:,}"))
    for _, record in records(workdir, "likelihood")[-1:]:
        for key, unit in (("bits_per_dim", "bits/dim"), ("negative_log_likelihood", "nats")):
            figure = None if isinstance(record, UserError) else figure_of(record, key)
            if figure is not None:
                tiles.append(
                    (unit, str(figure), uniform_bits(data.levels if data else None) or "held-out data")
                )
    for _, record in records(workdir, "evaluation")[-1:]:
        if not isinstance(record, UserError):
            tiles += _frechet(record)
    return tiles


def _frechet(record: dict) -> list[tuple[str, str, str]]:
    """The Fréchet distance, next to that of real data."""
    name, found = "frechet_distance", {}
    for part in ("samples", "real"):
        values, errors = record.get(part), record.get(f"{part}_standard_error")
        if isinstance(values, dict) and isinstance(errors, dict):
            found[part] = figure_of({"v": values.get(name), "standard_error": errors.get(name)}, "v")
    if found.get("samples") is None:
        return []
    real = f"real data {found['real']}" if found.get("real") else ""
    return [("Fréchet distance", str(found["samples"]), real)]
