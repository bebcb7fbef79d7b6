"""Samples next to real data, and what else was drawn with the model."""

from __future__ import annotations

from pathlib import Path

from score_diffusion.run import web_page
from score_diffusion.run.inference.path_files import INTERPOLATED
from score_diffusion.run.inference.restored_files import RESTORED
from score_diffusion.run.inference.sample_files import SAMPLES, read_facts
from score_diffusion.run.json_files import parse_json
from score_diffusion.run.key_types import Values
from score_diffusion.run.reporting.files import (
    as_text,
    by_number,
    in_words,
    picture,
    pictures,
    png_width,
    refuse_link,
    unreadable,
)
from score_diffusion.run.reporting.training import previews_of
from score_diffusion.run.training.previews import REAL_PICTURE
from score_diffusion.run.web_page import Section

SETTINGS = {"num_samples": Values(kind=int, least=1)}  # of a sample file, what the page shows


def next_to_real(workdir: Path) -> Section:
    """Held-out data on the left, on the right samples: of the picture most like that in size, the newest."""
    real, previews = workdir / REAL_PICTURE, previews_of(workdir)
    images = [picture(real, workdir, "real: held-out data")] if real.exists() else []
    files = [path.with_suffix(".png") for path in (workdir / SAMPLES).glob("*.npz")]
    size = png_width(real, workdir)
    drawn = min(
        (path for path in files if path.is_file()),
        key=lambda path: (abs(png_width(path, workdir) - size), -path.stat().st_mtime),
        default=None,
    )
    if drawn is not None:
        images.append(picture(drawn, workdir, f"drawn: {SAMPLES}/{drawn.name}"))
    elif previews:
        images.append(picture(previews[-1], workdir, "drawn: the last preview of training"))
    return Section("Real and drawn", [web_page.gallery(images)])


def sample_files(workdir: Path) -> Section:
    """Each file of `--mode sample` with its settings and its picture."""
    parts = []
    for path in by_number((workdir / SAMPLES).glob("*.npz")):
        parts.append(web_page.heading(path.name))
        try:
            refuse_link(path, workdir)
            facts = read_facts(path)
            settings = parse_json(facts.pop("settings"), SETTINGS)
            rows = [
                ("samples", settings["num_samples"]),
                *((in_words(key), as_text(facts[key])) for key in facts),
            ]
            parts.append(web_page.table(rows))
        except ValueError as error:
            parts.append(unreadable(error))
        parts.append(pictures([path.with_suffix(".png")], workdir))
        parts.append(pictures([path.with_name(f"{path.stem}-path.png")], workdir, wide=True))
    return Section("Samples", parts)


def restored(workdir: Path) -> Section:
    """The pictures of `--mode restore`."""
    note = "From left to right: the truth if it is known, what was measured, mean, deviation and samples."
    return _pictures_of(workdir, "Restored", RESTORED, note)


def interpolated(workdir: Path) -> Section:
    """The pictures of `--mode interpolate`."""
    note = (
        "Each row leads from one sample to another, through the noise that the probability flow gives them."
    )
    return _pictures_of(workdir, "Interpolated", INTERPOLATED, note)


def _pictures_of(workdir: Path, title: str, folder: str, note: str) -> Section:
    shown = pictures(by_number((workdir / folder).glob("*.png")), workdir, wide=True)
    return Section(title, [web_page.paragraph(note, "quiet"), shown] if shown else [])
