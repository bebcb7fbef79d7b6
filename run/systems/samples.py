"""The files of what a system drew: an .npz with the samples after each stage, and pictures.

samples/NAME.npz            as those of one run (sample_files.py), and `after_STAGE` for each stage before
samples/NAME.png            one row for each sample, one column for each stage
samples/NAME-STAGE.png      a grid of the samples of each stage
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from score_diffusion.run import plots
from score_diffusion.run.distributed import processes
from score_diffusion.run.files import write_numbered
from score_diffusion.run.image_grids import shortened
from score_diffusion.run.inference.sample_files import PICTURED, SAMPLES, matching_file
from score_diffusion.run.systems.chain import Chain, StageSamples

ROWS = 16  # samples that are shown through the stages
MOST_DIMENSIONS = 8  # of points in a picture; embeddings have more


@dataclass(frozen=True)
class SystemFiles:
    """What `draw_and_save` wrote."""

    array: Path
    pictures: list[tuple[str, Path]]
    """With what they show."""
    nfe: dict[str, int]
    """Network evaluations per sample in each stage."""


def draw_all(chain: Chain) -> tuple[dict[str, StageSamples], float] | None:
    """All samples of a chain, and the seconds that drawing took. Each rank draws a share of them, through all
    stages; rank 0 has all, the others None.
    """
    start, share = time.perf_counter(), processes.own_share(chain.sampling.num_samples)
    parts = processes.gather([chain.draw(share, chain.sampling.seed)] if share else [])
    if parts is None:
        return None
    drawn = {
        name: StageSamples(
            np.concatenate([part[name].samples for part in parts]),
            max(part[name].nfe for part in parts),
            stage.limits,
        )
        for name, stage in parts[0].items()
    }
    return drawn, time.perf_counter() - start


def draw_and_save(chain: Chain, kind: str, folder: Path) -> SystemFiles | None:
    """Draws the samples of a chain of a kind and writes them to a folder, under names that are not yet taken;
    rank 0 has the files, the others None.
    """
    result = draw_all(chain)
    if result is None:
        return None
    drawn, seconds = result
    *before, last = drawn
    arrays: dict[str, Any] = {f"after_{name}": drawn[name].samples for name in before}
    count = chain.sampling.num_samples
    names, labels = chain.conditions.names(count), chain.conditions.labels(count)
    if names is not None:
        arrays["captions"] = np.array(names, str)
    if labels is not None:
        arrays["label"] = labels.numpy()
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        samples=drawn[last].samples,
        **arrays,
        seed=chain.sampling.seed,
        sampler=kind,
        nfe=sum(stage.nfe for stage in drawn.values()),
        seconds_per_sample=seconds / count,
        training_steps=chain.last.step,
        settings=chain.settings,
    )
    endings = [f"-{name}.png" for name in drawn]
    stem = write_numbered(folder / SAMPLES / kind, ".npz", buffer.getvalue(), ".png", *endings)
    return SystemFiles(
        stem.with_suffix(".npz"),
        _save_pictures(stem, drawn, names),
        {name: stage.nfe for name, stage in drawn.items()},
    )


def find_or_draw(chain: Chain, kind: str, folder: Path) -> Path | None:
    """The sample file of a chain, drawn now if it is not there; None on all ranks except the first."""
    path = processes.from_rank_0(lambda: matching_file(folder, kind, chain.settings, chain.last.step))
    if path is not None:
        return path if processes.is_rank_0() else None
    files = draw_and_save(chain, kind, folder)
    return None if files is None else files.array


def _save_pictures(
    stem: Path, drawn: dict[str, StageSamples], names: Sequence[str] | None
) -> list[tuple[str, Path]]:
    pictures = []
    limits = list(drawn.values())[-1].limits
    columns = {
        name: stage.samples[:ROWS]
        for name, stage in drawn.items()
        if stage.samples.ndim == 4 and stage.limits == limits
    }
    if len(columns) > 1:
        path, last = stem.with_suffix(".png"), list(columns)[-1]
        notes = {} if names is None else {last: [shortened(name) for name in names[:ROWS]]}
        plots.save_image_table(path, "", columns, notes, limits, heat=())
        pictures.append(("through the stages", path))
    for name, stage in drawn.items():
        if stage.samples.ndim == 2 and stage.samples.shape[1] > MOST_DIMENSIONS:
            continue
        path = stem.with_name(f"{stem.name}-{name}.png")
        shown = stage.samples if stage.samples.ndim == 2 else stage.samples[:PICTURED]
        plots.save_samples(path, shown, stage.limits, None if names is None else names[: len(shown)])
        pictures.append((f"after {name}", path))
    return pictures
