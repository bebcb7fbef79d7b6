"""Which weights a trained model has."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from score_diffusion.run.builders.inference import load_score_model, load_trained
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.config import apply_overrides, read_config
from score_diffusion.run.errors import UserError
from score_diffusion.run.inference.trained_model import (
    TrackedAverages,
    WeightsChoice,
    load_chosen_weights,
)

CPU = torch.device("cpu")


def test_the_checkpoint_is_the_one_that_is_chosen(trained: Path):
    config = read_config(trained)
    for name, expected in (("latest", checkpoint.latest(trained)), ("best", checkpoint.best(trained))):
        chosen = apply_overrides(config, [("sampling.checkpoint", name)], "sample")
        model = load_trained(trained, chosen, CPU)
        assert model.step == expected.step and model.choice.checkpoint == name
        weights = model.score.state_dict()
        assert all(torch.equal(weights[key], value) for key, value in expected.ema.items())


def test_the_run_directory_is_enough_and_names_the_weights(trained: Path, tmp_path: Path):
    moved = Path(shutil.move(trained, tmp_path / "elsewhere"))
    model, step, words = load_score_model(moved, read_config(moved), CPU)
    assert (step, words) == (8, "averaged weights") and not model.training
    record = load_trained(moved, read_config(moved), CPU).record()
    assert record == {"weights": "averaged weights", "checkpoint": "latest"}


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (WeightsChoice(ema=0.5), "average that was tracked in training, 0.999, 0.9; got 0.5"),
        (WeightsChoice(ema=0.9), "the checkpoint of step 8 has no average of decay 0.9"),
        (WeightsChoice(ema=0.9, ema_sigma_rel=0.1), "set one of"),
    ],
)
def test_averages_that_a_run_has_not_are_refused(choice: WeightsChoice, message: str, trained: Path):
    model, _, _ = load_score_model(trained, read_config(trained), CPU)
    with pytest.raises(UserError, match=message):
        load_chosen_weights(model, trained, choice, TrackedAverages((0.999, 0.9)))
