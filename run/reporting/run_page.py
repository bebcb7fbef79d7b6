"""The sections about one run, in the order of the page."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ml_collections import ConfigDict

from score_diffusion.run import web_page
from score_diffusion.run.config import changed_keys, flatten
from score_diffusion.run.reporting.files import as_text, pictures
from score_diffusion.run.reporting.results import distances, likelihoods
from score_diffusion.run.reporting.samples import interpolated, next_to_real, restored, sample_files
from score_diffusion.run.reporting.summary import summary
from score_diffusion.run.reporting.training import curves, noise_levels, previews
from score_diffusion.run.training.log import read_log
from score_diffusion.run.web_page import Section

REPORT_FILE = "report.html"


def run_sections(config: ConfigDict, workdir: Path) -> list[Section]:
    """Everything about a run; sections for which it has nothing are empty.

    Args:
        config: Its configuration.
        workdir: Its directory.
    """
    rows = read_log(workdir)
    return [
        summary(config, workdir, rows),
        next_to_real(workdir),
        previews(workdir),
        likelihoods(workdir),
        distances(workdir),
        restored(workdir),
        interpolated(workdir),
        sample_files(workdir),
        curves(rows),
        noise_levels(rows),
        settings(config),
        Section("Data", [pictures(sorted(workdir.glob("data*.png")), workdir)]),
        files(workdir),
    ]


def settings(config: ConfigDict) -> Section:
    """The keys that differ from their defaults, then the others in a fold."""
    flat, changed = flatten(config), changed_keys(config)
    rest = [key for key in flat if key not in changed]
    return Section(
        "Settings",
        [
            web_page.table(
                [(key, as_text(value), as_text(default)) for key, (value, default) in changed.items()],
                ("changed", "value", "default"),
            ),
            web_page.folded(
                f"{len(rest)} keys at their defaults",
                web_page.table([(key, as_text(flat[key])) for key in rest]),
            ),
        ],
    )


def files(workdir: Path) -> Section:
    """All files of a run, in a fold."""
    rows = []
    for path in sorted(workdir.rglob("*")):
        name = path.relative_to(workdir)
        if name.as_posix() != REPORT_FILE and not any(part.startswith(".") for part in name.parts):
            with contextlib.suppress(FileNotFoundError):  # training may be removing old checkpoints
                if path.is_file():
                    rows.append((name.as_posix(), f"{path.stat().st_size:,} bytes"))
    return Section("Files", [web_page.folded(f"{len(rows)} files", web_page.table(rows))])
