"""`--mode report` of a system: one page about all of its stages, report.html in its directory.

What it draws stands first, sample by sample through the stages; then each stage with its figures. The page
of a stage alone, `--mode report --workdir SYSTEM/STAGE`, has everything about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import torch
from ml_collections import ConfigDict

from score_diffusion.run import web_page
from score_diffusion.run.builders.training import total_training_steps
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.console import print_result
from score_diffusion.run.data.info import DATA_FILE, read_data_info
from score_diffusion.run.distributed import processes
from score_diffusion.run.files import write_atomic
from score_diffusion.run.inference.sample_files import SAMPLES
from score_diffusion.run.reporting.files import by_number, pictures
from score_diffusion.run.reporting.results import distances
from score_diffusion.run.reporting.run_page import REPORT_FILE
from score_diffusion.run.reporting.samples import next_to_real
from score_diffusion.run.reporting.summary import summary, written_now
from score_diffusion.run.reporting.training import curves
from score_diffusion.run.systems.system import System
from score_diffusion.run.training.log import read_log
from score_diffusion.run.web_page import Section


def report(system: System, configs: Mapping[str, ConfigDict], device: torch.device) -> int:
    """Writes the page of a system, replacing an older one; returns the exit code."""
    if not processes.is_rank_0():
        return 0  # there is nothing to share
    path = system.path / REPORT_FILE
    page = web_page.page(system.path.resolve().name, written_now(), sections(system, configs))
    write_atomic(path, page.encode(errors="replace"))  # names of files may be no text
    print_result("Report", [("page", path), ("size", f"{path.stat().st_size / 2**20:.1f} MiB")])
    return 0


def sections(system: System, configs: Mapping[str, ConfigDict]) -> list[Section]:
    """Everything on the page; sections for which the system has nothing are empty."""
    stages = [_stage(name, config, system.stage(name)) for name, config in configs.items()]
    return [_summary(system, configs), _samples(system), distances(system.path), *stages]


def _summary(system: System, configs: Mapping[str, ConfigDict]) -> Section:
    words = f"This is a {system.kind} of {len(configs)} runs, which draw one after the other."
    rows = []
    for name, config in configs.items():
        workdir = system.stage(name)
        steps, total = checkpoint.steps(workdir) or [0], total_training_steps(config.training)
        shape = read_data_info(workdir).shape if (workdir / DATA_FILE).exists() else "not known yet"
        rows.append((name, shape, f"{steps[-1]:,} of {total:,}", workdir.name))
    table = web_page.table(rows, ("stage", "samples", "training steps", "folder"))
    return Section("Summary", [web_page.paragraph(words), table])


def _samples(system: System) -> Section:
    """The newest samples through the stages, then those after each stage."""
    files = by_number((system.path / SAMPLES).glob("*.npz"))
    if not files:
        return Section("Samples", [])
    stem = files[-1].with_suffix("")
    after = [stem.with_name(f"{stem.name}-{name}.png") for name in system.stages]
    return Section(
        "Samples",
        [pictures([stem.with_suffix(".png")], system.path, wide=True), pictures(after, system.path)],
    )


def _stage(name: str, config: ConfigDict, workdir: Path) -> Section:
    """The summary of a stage, its samples next to real data, and its course."""
    rows = read_log(workdir)
    parts = [summary(config, workdir, rows), next_to_real(workdir), curves(rows)]
    return Section(f"Stage {name}", list(chain.from_iterable(part.parts for part in parts)))
