"""Which weights and which class a trained model has."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from score_diffusion.models import UNet
from score_diffusion.run.build_inference import load_score_model, load_trained
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.config import apply_overrides, read_config
from score_diffusion.run.errors import UserError
from score_diffusion.run.inference.trained_model import (
    TrackedAverages,
    WeightsChoice,
    load_chosen_weights,
    score_of_class,
)
from score_diffusion.sde_lib import VPSDE, ScoreModel

CPU = torch.device("cpu")
CLASSES = 3


@pytest.fixture
def with_classes() -> ScoreModel:
    net = UNet(1, 8, (1,), 1, (), 1, num_classes=CLASSES)
    return ScoreModel(net, VPSDE()).eval()


def test_the_score_of_a_class_is_the_network_conditioned_on_it(with_classes: ScoreModel):
    torch.manual_seed(0)
    for weights in with_classes.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.8])
    score = score_of_class(with_classes, 2, labels_trained=True)
    expected = with_classes(x, t, {"label": torch.tensor([2, 2])})
    torch.testing.assert_close(score(x, t), expected, rtol=0, atol=0)
    assert not torch.allclose(expected, with_classes(x, t))


@pytest.mark.parametrize(
    ("label", "trained", "message"),
    [
        (CLASSES, True, "one of the network's 3 classes, 0 to 2, got 3"),
        (-2, True, "one of the network's 3 classes, 0 to 2, got -2"),
        (1, False, "was trained without: set sampling.label=-1"),
    ],
)
def test_a_class_that_was_not_trained_is_refused(
    label: int, trained: bool, message: str, with_classes: ScoreModel
):
    with pytest.raises(UserError, match=message):
        score_of_class(with_classes, label, labels_trained=trained)


def test_a_network_without_classes_is_refused():
    model = ScoreModel(UNet(1, 8, (1,), 1, (), 1), VPSDE())
    with pytest.raises(UserError, match="needs a network with classes, and this one has none"):
        score_of_class(model, 0, labels_trained=True)


def test_a_class_of_an_unconditional_training_is_refused(cli: Callable, refused: Callable, tmp_path: Path):
    """The network has classes, but was never shown a label."""
    assert cli("train", tmp_path, "--config.model.num_classes=10", "--config.training.steps=1") == 0
    assert "was trained without" in refused(cli("sample", tmp_path, "--config.sampling.label=3"))
    assert cli("sample", tmp_path) == 0


def test_a_class_of_a_conditional_training_is_drawn(cli: Callable, tmp_path: Path):
    keys = ("model.num_classes=10", "training.conditional=true", "training.steps=2")
    assert cli("train", tmp_path, *(f"--config.{key}" for key in keys)) == 0
    for label in (3, -1):
        assert cli("sample", tmp_path, f"--config.sampling.label={label}") == 0
    config = apply_overrides(read_config(tmp_path), [("sampling.label", "3")], "sample")
    assert load_trained(tmp_path, config, CPU).record()["label"] == 3


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
    assert record == {"weights": "averaged weights", "checkpoint": "latest", "label": None}


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
