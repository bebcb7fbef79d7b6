"""Commands whose outputs are closed, full, or read no longer still do their work."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.standard_streams import DroppingStream

SCRIPT = Path(__file__).parents[2] / "run/main.py"
FULL = Path("/dev/full")


def train(redirection: str, tiny: str, workdir: Path) -> subprocess.CompletedProcess[str]:
    """Trains two steps in a shell, with redirected streams."""
    command = f'"{sys.executable}" "{SCRIPT}" --mode train --config "{tiny}" --workdir "{workdir}" '
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} --config.training.steps=2 {redirection}"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["<&- >&- 2>&-", "2>&1 | head -c 1", ">/dev/full", "2>/dev/full"])
def test_training_does_not_need_an_output(redirection: str, tiny: str, tmp_path: Path):
    if "/dev/full" in redirection and not FULL.exists():
        pytest.skip("this system has no /dev/full")
    done = train(redirection, tiny, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert checkpoint.latest(tmp_path / "run").step == 2


def test_text_is_dropped_once_nobody_reads_it():
    reading, writing = os.pipe()
    stream = DroppingStream(open(writing, "w"))
    print("read", file=stream, flush=True)
    assert os.read(reading, 100) == b"read\n"
    os.close(reading)
    for _ in range(3):
        print("x" * 100_000, file=stream, flush=True)
    stream.close()


def test_other_attributes_are_the_streams():
    stream = DroppingStream(io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert stream.encoding == "ascii" and stream.isatty() is False
