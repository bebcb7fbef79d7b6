"""From the keys of a configuration to the objects of a training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ml_collections import ConfigDict
from scipy import stats

from score_diffusion.models import UNet
from score_diffusion.run.build import build_sde, data_options
from score_diffusion.run.builders.previews import build_preview
from score_diffusion.run.builders.training import (
    build_loop_settings,
    build_objective,
    build_times,
    build_trainer,
    initial_weights,
)
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.config import apply_overrides, load_config
from score_diffusion.run.data.load import load_dataset
from score_diffusion.run.data.toys import load_digits
from score_diffusion.run.errors import UserError
from score_diffusion.run.training.batches import Batch
from score_diffusion.run.training.trainer import Trainer
from score_diffusion.sde_lib import (
    SDE,
    VESDE,
    VPSDE,
    EDMWeighting,
    MinSNRWeighting,
    ScoreModel,
    denoising_score_matching,
)

CPU = torch.device("cpu")


@pytest.fixture
def config_of(tiny: str) -> Callable[..., ConfigDict]:
    """The tiny experiment with keys changed."""

    def build(**keys: object) -> ConfigDict:
        overrides = [(key.replace("__", "."), str(value)) for key, value in keys.items()]
        return apply_overrides(load_config(tiny), overrides)

    return build


@pytest.fixture
def make(config_of: Callable[..., ConfigDict]) -> Callable[..., Trainer]:
    def build(**keys: object) -> Trainer:
        config = config_of(**keys)
        return build_trainer(config, load_dataset(data_options(config.data)), CPU)

    return build


def section(**keys: object) -> ConfigDict:
    config = load_config("vesde")
    config.training.update(keys)
    return config.training


@pytest.fixture(scope="module")
def sde() -> SDE:
    return build_sde(load_config("vesde").sde)


@pytest.fixture(scope="module")
def model(sde: SDE) -> ScoreModel:
    torch.manual_seed(0)
    return ScoreModel(UNet(1, 8, (1,), 1, ()), sde, "edm", sigma_data=0.3)


def test_lognormal_times_have_the_sections_numbers(sde: SDE):
    times = build_times(section(times="lognormal", p_mean=0.4, p_std=0.5), sde)
    drawn = times.draw(2000, torch.Generator().manual_seed(0))
    law = stats.norm(0.4, 0.5)
    assert stats.kstest(sde.log_noise_level(drawn.t.double()).numpy(), law.cdf).statistic < 1.01 / 2000
    assert torch.equal(drawn.weights, torch.ones(2000)) and not times.state_dict() and not times.in_chain


@pytest.mark.parametrize(
    ("keys", "weighting"),
    [
        ({"weighting": "min_snr", "min_snr_gamma": 0.3}, MinSNRWeighting(0.3)),
        ({"weighting": "edm"}, EDMWeighting(0.3)),
        ({"weighting": "likelihood"}, "likelihood"),
    ],
)
def test_dsm_has_the_sections_weighting(keys: dict, weighting: object, model: ScoreModel):
    training = section(**keys)
    times = build_times(training, model.sde)
    drawn = times.draw(6, torch.Generator().manual_seed(0))
    x_0, noise = torch.randn(2, 6, 1, 8, 8)
    losses = build_objective(training, model, times, None)(model, Batch(x_0, {}, drawn, noise))
    expected = denoising_score_matching(model.sde, model, x_0, drawn.t, noise, weighting)
    torch.testing.assert_close(losses, expected)
    plain = denoising_score_matching(model.sde, model, x_0, drawn.t, noise)
    assert (losses / plain - 1).abs().max() > 0.1


@pytest.mark.parametrize(
    ("keys", "sde", "learned_variance", "message"),
    [
        (dict(objective="uncertainty", times="importance"), VESDE(), False, "times=importance: set"),
        (dict(objective="dsm"), VPSDE(), True, "objective=dsm does not train the variance"),
        (dict(objective="hybrid", times="discrete"), VPSDE(), False, "set model.learned_variance=True"),
        (dict(objective="hybrid", times="continuous"), VPSDE(), True, "needs training.times=discrete or"),
        (dict(objective="hybrid", times="discrete", weighting="edm"), VPSDE(), True, "weighting=plain, got"),
        (dict(objective="hybrid", times="discrete"), VESDE(), True, "without noise at t = 0, unlike VESDE"),
    ],
)
def test_objectives_that_do_not_fit_are_refused(keys: dict, sde: SDE, learned_variance: bool, message: str):
    net = UNet(1, 8, (1,), 1, (), out_channels=1 + learned_variance)
    model = ScoreModel(net, sde, learned_variance=learned_variance)
    with pytest.raises(UserError, match=message):
        build_objective(section(**keys), model, build_times(section(**keys), sde), None)


def test_batches_that_cannot_be_split_are_refused(make: Callable):
    with pytest.raises(UserError, match="training.accumulate=3 must divide training.batch_size=8"):
        make(training__accumulate=3)


def test_conditional_training_needs_classes(make: Callable):
    with pytest.raises(
        UserError, match="the data have 10 classes, and the network 5: set model.num_classes=10"
    ):
        make(training__conditional=True, model__num_classes=5)
    with pytest.raises(UserError, match="model.vector_dim=3, and the data 'digits' have no vector"):
        make(training__conditional=True, model__num_classes=10, model__vector_dim=3)
    for classes in (10, 12):
        assert make(training__conditional=True, model__num_classes=classes).objective.conditional


def test_conditional_training_needs_labels(config_of: Callable):
    config = config_of(training__conditional=True, model__num_classes=10)
    digits = load_digits()
    with pytest.raises(UserError, match="the data 'digits' have none of them"):
        build_trainer(config, replace(digits, conditions={}, test_conditions={}), CPU)
    with pytest.raises(UserError, match="held-out samples of the data 'digits' must have .*: add y_test"):
        build_trainer(config, replace(digits, test_conditions={}), CPU)


def test_previews_follow_the_batch(config_of: Callable):
    """No larger than a batch, and drawn in batches that fit the memory where those of training do."""
    digits, sde = load_digits(), VPSDE()
    preview = build_preview(config_of(), digits, sde)
    assert (preview.count, preview.batch_size) == (8, 8)
    preview = build_preview(config_of(training__batch_size=256, training__accumulate=8), digits, sde)
    assert (preview.count, preview.batch_size) == (64, 32)
    preview = build_preview(config_of(training__preview_samples=20), digits, sde)
    assert (preview.count, preview.batch_size) == (20, 8)
    assert build_preview(config_of(training__preview_samples=0), digits, sde).count == 0
    toy = load_config("toy2d")
    assert build_preview(toy, load_dataset(data_options(toy.data)), sde).count == 1000


def test_loop_settings_have_no_limit_where_it_is_zero(config_of: Callable):
    settings = build_loop_settings(config_of().training)
    assert settings.max_seconds == math.inf and settings.total_steps == 8
    settings = build_loop_settings(config_of(training__max_minutes=2, training__images=17).training)
    assert settings.max_seconds == 120 and settings.total_steps == 3


def test_fine_tuning_starts_from_the_averaged_weights(config_of: Callable, finished_run: Path):
    config = config_of(training__init_from=finished_run, model__dropout=0.3)
    initial = initial_weights(config, load_digits())
    trainer = build_trainer(config, load_digits(), CPU, initial)
    saved = checkpoint.latest(finished_run)
    assert trainer.step == 0 and trainer.averages.updates == 0
    for state in (trainer.model.state_dict(), trainer.average.state_dict()):
        assert all(torch.equal(state[key], saved.ema[key]) for key in saved.ema)
    assert initial_weights(config_of(), load_digits()) is None


def test_fine_tuning_refuses_another_network_sde_or_number_of_channels(
    config_of: Callable, finished_run: Path, tmp_path: Path
):
    config = config_of(training__init_from=finished_run, model__channels=16, sde__beta_max=10)
    with pytest.raises(
        UserError, match="other values of model.channels, sde.beta_max|sde.beta_max, model.ch"
    ):
        initial_weights(config, load_digits())
    digits = load_digits()
    colour = replace(digits, train=digits.train.repeat(1, 3, 1, 1))
    with pytest.raises(UserError, match="number of channels must be the same"):
        initial_weights(config_of(training__init_from=finished_run), colour)
    with pytest.raises(UserError, match="holds no run"):
        initial_weights(config_of(training__init_from=tmp_path), digits)


def test_recomputing_changes_no_step(make: Callable[..., Trainer], config_of: Callable[..., ConfigDict]):
    plain, recomputing = make(), make(training__recompute=True)
    for trainer in (plain, recomputing):
        trainer.advance()
        trainer.advance()
    for ours, again in zip(plain.model.parameters(), recomputing.model.parameters(), strict=True):
        assert torch.equal(ours, again)
    toy = apply_overrides(load_config("toy2d"), [("training.recompute", "True")])
    with pytest.raises(UserError, match="training.recompute is for U-Nets, and the model is 'mlp'"):
        build_trainer(toy, load_dataset(data_options(toy.data)), CPU)
