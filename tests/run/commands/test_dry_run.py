"""--dry_run: what a command would work with, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from score_diffusion.run.keys import MODES


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in ("convert", "compare", "demo")])
def test_a_dry_run_writes_nothing(
    snapshot: Callable, mode: str, cli: Callable, trained: Path, tmp_path: Path, capsys
):
    workdir = tmp_path / "new" if mode == "train" else trained
    before = snapshot(tmp_path)
    assert cli(mode, workdir, "--dry_run") == 0
    assert snapshot(tmp_path) == before and not (tmp_path / "new").exists()
    output = capsys.readouterr().out
    assert "training.steps = 8" in output and "parameters" in output and "memory" in output
