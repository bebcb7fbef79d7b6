"""What the keys of the section `training` choose, and what of it is part of a checkpoint."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import nn

from score_diffusion.models import UNet
from score_diffusion.run.build import build_sde
from score_diffusion.run.config import load_config
from score_diffusion.run.errors import UserError
from score_diffusion.run.training.objectives import build_objective, build_times
from score_diffusion.sde_lib import (
    DrawnTimes,
    EDMWeighting,
    MinSNRWeighting,
    ScoreModel,
    denoising_score_matching,
)


class Sine(nn.Module):
    def forward(self, x: torch.Tensor, noise: torch.Tensor, cond: object | None = None) -> torch.Tensor:
        return x.sin()


def section(**keys: object):
    config = load_config("vesde")
    config.training.update(keys)
    return config.training


@pytest.fixture(scope="module")
def sde():
    return build_sde(load_config("vesde").sde)


@pytest.fixture(scope="module")
def model(sde) -> ScoreModel:
    torch.manual_seed(0)
    return ScoreModel(UNet(1, 8, (1,), 1, ()), sde, "edm", sigma_data=0.3)


def test_lognormal_times_have_the_sections_numbers(sde):
    times = build_times(section(times="lognormal", p_mean=0.4, p_std=0.5), sde)
    drawn = times.draw(2000, torch.Generator().manual_seed(0))
    law = stats.norm(0.4, 0.5)
    assert stats.kstest(sde.noise_level(drawn.t.double()).numpy(), law.cdf).statistic < 1.01 / 2000
    assert torch.equal(drawn.weights, torch.ones(2000)) and not times.state_dict() and not times.in_chain


@pytest.mark.parametrize(
    ("keys", "weighting"),
    [
        ({"weighting": "min_snr", "min_snr_gamma": 0.3}, MinSNRWeighting(0.3)),
        ({"weighting": "edm"}, EDMWeighting(0.3)),
        ({"weighting": "likelihood"}, "likelihood"),
    ],
)
def test_dsm_has_the_sections_weighting(keys: dict, weighting, model):
    training = section(**keys)
    times = build_times(training, model.sde)
    drawn = times.draw(6, torch.Generator().manual_seed(0))
    x_0, noise = torch.randn(2, 6, 1, 8, 8)
    losses = build_objective(training, model, times, None)(model, x_0, drawn, noise)
    expected = denoising_score_matching(model.sde, model, x_0, drawn.t, noise, weighting)
    torch.testing.assert_close(losses, expected)
    plain = denoising_score_matching(model.sde, model, x_0, drawn.t, noise)
    assert (losses / plain - 1).abs().max() > 0.1


def test_an_objective_has_only_parameters_of_its_own(model):
    def state(**keys: object) -> dict[str, torch.Tensor]:
        training = section(**keys)
        return build_objective(training, model, build_times(training, model.sde), None).state_dict()

    assert state() == {} and not state(objective="dsm", weighting="edm")
    names = {"frequencies", "phases", "weight", "bias"}
    assert state(objective="uncertainty").keys() == {f"uncertainty.{name}" for name in names}


def test_uncertainty_divides_the_weighted_loss(model):
    training = section(objective="uncertainty", weighting="edm")
    objective = build_objective(training, model, build_times(training, model.sde), None)
    x_0, noise = torch.randn(2, 6, 1, 8, 8)
    drawn = DrawnTimes(torch.linspace(0.1, 1, 6), torch.ones(6))
    weighted = denoising_score_matching(model.sde, model, x_0, drawn.t, noise, EDMWeighting(0.3))
    torch.testing.assert_close(objective(model, x_0, drawn, noise), weighted)
    torch.nn.init.normal_(objective.uncertainty.weight)
    u = objective.uncertainty.log_mean(drawn.t)
    torch.testing.assert_close(objective(model, x_0, drawn, noise), weighted / u.exp() + u)
    objective(model, x_0, drawn, noise).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in objective.parameters())


def test_uncertainty_refuses_importance(model):
    training = section(objective="uncertainty", times="importance")
    with pytest.raises(UserError, match="does not go with training.times=importance: choose discrete"):
        build_objective(training, model, build_times(training, model.sde), None)


@pytest.mark.parametrize("prediction", ["edm", "v"])
def test_weighting_edm_is_the_plain_error_of_the_networks_output(prediction: str):
    """Karras et al. (2022), eq. 8: λ c_out² = 1. For v, whose σ_data is 1, too."""
    config = load_config("edm")
    sde = build_sde(config.sde)
    model = ScoreModel(Sine(), sde, prediction, sigma_data=0.75)
    training = config.training
    times = build_times(training, sde)
    drawn = times.draw(8, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    x_0, noise = torch.randn(2, 8, 1, 4, 4, generator=generator, dtype=torch.float64)
    sigma, s = sde.sigma(drawn.t).double()[:, None, None, None], model.sigma_data
    norm = (sigma**2 + s**2).sqrt()
    x = x_0 + sigma * noise
    c_skip, c_out = s**2 / norm**2, sigma * s / norm
    target = (x_0 - c_skip * x) / c_out * (1 if prediction == "edm" else -1)
    expected = ((x / norm).sin() - target).square().mean((1, 2, 3))
    losses = build_objective(training, model, times, None)(model, x_0, drawn, noise)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)
