"""A model of captions guided by the embedding of its own prompt, as GLIDE is by CLIP."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from score_diffusion.run.main import main

pytestmark = pytest.mark.slow

SMALL = (
    *("--config.training.steps=1", "--config.training.batch_size=4", "--config.training.held_out=0"),
    "--config.training.preview_samples=0",
)


def test_one_prompt_conditions_and_guides(tmp_path: Path, capsys):
    text, clip = tmp_path / "text", tmp_path / "clip"
    shapes = (*SMALL, "--config.data.num_images=40", "--config.model.channels=4", "--config.model.heads=2")
    assert main(["--mode", "train", "--config", "text_shapes", "--workdir", str(text), *shapes]) == 0
    follow = (*SMALL, f"--config.training.run={text}")
    assert main(["--mode", "train", "--config", "clip_digits", "--workdir", str(clip), *follow]) == 0
    capsys.readouterr()
    guide = (*("--guidance", "clip"), f"--config.sampling.clip.run={clip}", "--nfe=2")
    prompt = ("--prompt", "a small red square", "--config.sampling.num_samples=2")
    assert main(["--mode", "sample", "--workdir", str(text), *guide, *prompt]) == 0
    out = capsys.readouterr().out
    assert re.search(r"text +a small red square", out) and "by 'a small red square' and" in out
