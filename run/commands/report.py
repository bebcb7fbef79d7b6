"""`--mode report`: one page about a run, report.html in its directory, which needs no other file.

Pictures and curves are part of the page, and nothing is fetched. The page shows what there is: it is shorter
while training is in progress, or when no samples were drawn. A run may be somebody else's: only pictures and
results in its directory are shown, not what a link in it leads to.
"""

from __future__ import annotations

from pathlib import Path

import torch
from ml_collections import ConfigDict

from score_diffusion.run import web_page
from score_diffusion.run.console import print_result
from score_diffusion.run.distributed import processes
from score_diffusion.run.files import write_atomic
from score_diffusion.run.reporting.run_page import REPORT_FILE, run_sections
from score_diffusion.run.reporting.summary import written_now


def report(config: ConfigDict, workdir: Path, device: torch.device) -> int:
    """Writes the page of a run directory, replacing an older one; returns the exit code."""
    if not processes.is_rank_0():
        return 0  # there is nothing to share
    path = workdir / REPORT_FILE
    page = web_page.page(workdir.resolve().name, written_now(), run_sections(config, workdir))
    write_atomic(path, page.encode(errors="replace"))  # names of files may be no text
    print_result("Report", [("page", path), ("size", f"{path.stat().st_size / 2**20:.1f} MiB")])
    return 0
