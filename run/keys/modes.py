"""The modes of the command line, and which of them take a key."""

from __future__ import annotations

from dataclasses import replace

from score_diffusion.run.key_types import Key

MODES = {
    "train": "trains, or resumes a training",
    "sample": "draws samples",
    "interpolate": "draws paths from one sample to another",
    "restore": "fills in, enlarges, sharpens, ... what was measured",
    "likelihood": "scores held-out data",
    "evaluate": "measures samples against held-out data",
    "compare": "compares runs, samplers and numbers of evaluations",
    "data": "describes a data set",
    "report": "makes a page of a run",
    "demo": "opens a page to draw, fill in and score",
    "convert": "reads and writes checkpoints of other libraries",
}
"""What each does, for `--help`."""
CONVERT_FROM, CONVERT_TO = "convert --from", "convert --to"  # two modes as far as keys are concerned
NEW_RUN = ("train", CONVERT_FROM)
"""The modes that make a run and write its configuration."""

WEIGHTS = (
    *(*NEW_RUN, "sample", "interpolate", "restore", "likelihood", "evaluate", "compare", "demo"),
    CONVERT_TO,
)
SAMPLES = (*NEW_RUN, "sample", "evaluate", "compare", "demo")
RESTORES = (*NEW_RUN, "restore", "demo")
DATA_ACCESS = (*NEW_RUN, "data", "interpolate", "restore", "likelihood", "evaluate", "compare", "demo")
ENCODED = (*(mode for mode in DATA_ACCESS if mode != "data"), "sample")
OF_DATA = (*DATA_ACCESS, "sample")
MEASURES = ("evaluate", "compare")


def section(name: str, modes: tuple[str, ...], may_change: bool, keys: dict[str, Key]) -> dict[str, Key]:
    """The keys of a section by their full names, with the section's modes where they name none."""
    return {
        f"{name}.{key}": replace(
            declared,
            modes=declared.modes or modes,
            may_change=may_change if declared.may_change is None else declared.may_change,
        )
        for key, declared in keys.items()
    }
