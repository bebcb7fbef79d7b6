"""`--mode demo`: it serves until it is interrupted, and says in a sentence why it cannot."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from score_diffusion.run.main import main

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_it_serves_until_ctrl_c(finished_run: Path):
    command = [sys.executable, "run/main.py", "--mode", "demo", "--workdir", str(finished_run)]
    process = subprocess.Popen(
        [*command, "--config.demo.port=0"],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs ignore it
    )
    try:
        lines = iter(process.stdout.readline, "")
        address = next(line.split()[1] for line in lines if line.strip().startswith("address"))
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address + "choices", timeout=30) as response:
            assert str(finished_run) in response.read().decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()


def test_a_port_in_use_is_named(trained: Path, refused: Callable):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code = main(["--mode", "demo", str(trained), f"--config.demo.port={port}"])
    sentence = refused(code)
    assert f"127.0.0.1:{port}" in sentence and "in use" in sentence and "--config.demo.port=" in sentence


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.demo.host=no.such.host.invalid"], "another --config.demo.host="),
        (["--config.demo.port=70000"], "below 65536"),
        (["--config.training.steps=9"], "is not used by --mode demo"),
        (["--dry_run"], "--dry_run has no meaning for --mode demo"),
        (["--workdir", "elsewhere"], "not both"),
    ],
)
def test_odd_flags_are_refused(arguments: list[str], message: str, trained: Path, refused: Callable):
    assert message in refused(main(["--mode", "demo", str(trained), *arguments]))


def test_what_is_no_trained_run_is_refused(tmp_path: Path, trained: Path, refused: Callable):
    assert "holds no run" in refused(main(["--mode", "demo", str(tmp_path)]))
    assert "holds no run" in refused(main(["--mode", "demo", str(trained), str(tmp_path / "other")]))
    for path in (trained / "checkpoints").iterdir():
        path.rename(tmp_path / path.name)
    assert "checkpoint" in refused(main(["--mode", "demo", "--workdir", str(trained)]))


@pytest.mark.slow
def test_a_classifier_draws_no_samples(tmp_path: Path, refused: Callable):
    workdir = str(tmp_path / "classifier")
    tiny = ("--config.training.steps=1", "--config.training.batch_size=4")
    assert main(["--mode", "train", "--config", "classifier", "--workdir", workdir, *tiny]) == 0
    sentence = refused(main(["--mode", "demo", workdir]))
    assert "draws no samples" in sentence and f"--config.sampling.classifier.run={workdir}" in sentence
