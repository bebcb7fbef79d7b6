"""Killed ten times at random moments, training ends where it would have ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from score_diffusion.run import plots
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.main import main

pytestmark = pytest.mark.slow

ARGUMENTS = [
    *(
        "--config",
        "toy2d",
        "--config.data.num_points=500",
        "--config.model.width=16",
        "--config.training.steps=600",
    ),
    *(
        "--config.training.batch_size=16",
        "--config.training.checkpoint_every=5",
        "--config.training.log_every=7",
    ),
    *("--config.training.times=importance", "--config.training.held_out=32", "--config.sde.N=20"),
    *("--config.training.ema_sigma_rels=0.1", "--config.training.snapshot_every=100"),
]
ROOT = Path(checkpoint.__file__).parents[2]


def test_a_run_killed_six_times_ends_as_one_that_was_not(
    tmp_path: Path, same: Callable, log_of: Callable, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setattr(plots, "save_loss_curve", lambda *arguments: None)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert main(["--mode", "train", "--workdir", str(straight), *ARGUMENTS]) == 0
    command = [
        sys.executable,
        str(Path(__file__).with_name("kill_and_resume.py")),
        str(killed),
        "6",
        "0",
        *ARGUMENTS,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["killed"] == 6 and result["during_a_write"] >= 1 and result["last_status"] == 0, result
    a, b = checkpoint.latest(straight), checkpoint.latest(killed)
    assert a.step == b.step == 600
    for part in ("model", "ema", "averages", "optimizer", "ema_updates", "times", "running", "held_out_loss"):
        assert same(getattr(a, part), getattr(b, part)), part
    assert log_of(straight) == log_of(killed)
    for path in (straight / "snapshots").rglob("*.safetensors"):
        assert path.read_bytes() == (killed / path.relative_to(straight)).read_bytes()
    assert checkpoint.best(straight).step == checkpoint.best(killed).step
