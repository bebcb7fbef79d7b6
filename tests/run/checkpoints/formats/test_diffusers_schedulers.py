"""diffusers' schedulers: the same tables of noise as diffusers computes, and what they say of sampling."""

from __future__ import annotations

import json

import pytest
import torch
from ml_collections import ConfigDict

from score_diffusion.run.build import build_sde
from score_diffusion.run.checkpoints.formats.diffusers_schedulers import describe_scheduler
from score_diffusion.run.errors import UserError

diffusers = pytest.importorskip("diffusers")


def describe(folder, in_channels=3, out_channels=3, skip=False, centred=False):
    return describe_scheduler(folder, in_channels, out_channels, skip, centred)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
@pytest.mark.parametrize(
    "arguments", [{}, dict(num_train_timesteps=250), dict(beta_start=8.5e-4, beta_end=0.012)]
)
def test_tables_are_those_of_diffusers(schedule, arguments, tmp_path):
    """Its default betas do not depend on the number of steps, as those of Improved DDPM do."""
    theirs = diffusers.DDPMScheduler(beta_schedule=schedule, **arguments)
    theirs.save_pretrained(tmp_path)
    found = describe(tmp_path)
    sde = build_sde(ConfigDict(dict(found.sde)))
    alpha_bar = sde.alpha(sde.discrete_times()).square()
    torch.testing.assert_close(alpha_bar, theirs.alphas_cumprod.double(), rtol=1e-4, atol=1e-7)
    assert ("first_beta" in found.sde) == bool(arguments and schedule != "squaredcos_cap_v2")


@pytest.mark.parametrize(
    ("scheduler", "arguments", "variance", "clip"),
    [
        ("DDPMScheduler", {}, "small", 1.0),
        ("DDPMScheduler", dict(variance_type="fixed_large", clip_sample=False), "large", 0.0),
        ("DDPMScheduler", dict(variance_type="fixed_large_log", clip_sample_range=2.0), "large", 2.0),
        ("DDIMScheduler", dict(clip_sample=True), "small", 1.0),
        ("PNDMScheduler", {}, "small", 0.0),
        ("DPMSolverMultistepScheduler", {}, "small", 0.0),
    ],
)
def test_variance_and_bound_are_kept(scheduler, arguments, variance, clip, tmp_path):
    getattr(diffusers, scheduler)(**arguments).save_pretrained(tmp_path)
    found = describe(tmp_path)
    assert (found.variance, found.clip, found.notes) == (variance, clip, ())


def test_what_is_left_out_or_assumed_is_named(tmp_path):
    assert "no scheduler_config.json in the folder" in describe(tmp_path).notes[0]
    diffusers.DDPMScheduler(thresholding=True).save_pretrained(tmp_path)
    assert "thresholding" in describe(tmp_path).notes[0]


def test_learned_variances_follow_from_the_output(tmp_path):
    assert describe(tmp_path, out_channels=6).variance == "learned"
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler/scheduler_config.json").write_text('{"_class_name": "DDPMScheduler"}')
    assert describe(tmp_path, out_channels=6).score["learned_variance"]
    assert describe(tmp_path).variance == "small" and describe(tmp_path).clip == 1.0


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (dict(_class_name="EDMEulerScheduler"), "_class_name must be"),
        (dict(_class_name="ScoreSdeVeScheduler"), "_class_name must be"),
        (dict(_class_name=["DDPMScheduler"]), "_class_name must be"),
        (dict(rescale_betas_zero_snr=True), "rescale_betas_zero_snr must be False, it is True"),
        (dict(trained_betas=[0.1, 0.2]), "trained_betas must be None"),
        (dict(beta_schedule="laplace"), "beta_schedule must be 'linear'"),
        (dict(prediction_type="flow"), "prediction_type must be 'epsilon'"),
        (dict(beta_end=0), "beta_end must be a number between 0 and 1"),
        (dict(beta_start=0.5), "beta_start must be at most beta_end"),
        (dict(beta_start=None), "beta_start must be a number"),
        (dict(num_train_timesteps=0), "num_train_timesteps must be an integer from 1"),
        (dict(num_train_timesteps=10**9), "num_train_timesteps must be an integer from 1"),
        (dict(num_train_timesteps="many"), "num_train_timesteps must be an integer"),
        (dict(variance_type="learned"), "variance_type must be"),
        (dict(variance_type="learned_range"), "out_channels = 3 cannot be converted with variance_type"),
        (dict(clip_sample="no"), "clip_sample must be true or false"),
    ],
)
def test_what_stands_for_no_sde_is_refused(settings, match, tmp_path):
    scheduler = dict(_class_name="DDPMScheduler") | settings
    (tmp_path / "scheduler_config.json").write_text(json.dumps(scheduler))
    with pytest.raises(UserError, match=match):
        describe(tmp_path)


def test_variance_exploding(tmp_path):
    diffusers.ScoreSdeVeScheduler(sigma_max=50.0, num_train_timesteps=1000).save_pretrained(tmp_path)
    assert describe(tmp_path, skip=True).sde == dict(name="vesde", sigma_min=0.01, sigma_max=50.0, N=1000)
    centred = describe(tmp_path, skip=True, centred=True)  # data in [0, 1] there
    assert centred.sde == dict(name="vesde", sigma_min=0.02, sigma_max=100.0, N=1000)
    with pytest.raises(UserError, match="as many channels out as in"):
        describe(tmp_path, out_channels=6, skip=True)
    for settings in (
        dict(sigma_min=0),
        dict(sigma_max=0.001),
        dict(sigma_max="high"),
        dict(num_train_timesteps=1),
    ):
        scheduler = dict(_class_name="ScoreSdeVeScheduler") | settings
        (tmp_path / "scheduler_config.json").write_text(json.dumps(scheduler))
        with pytest.raises(UserError, match=f"{next(iter(settings))} must be"):
            describe(tmp_path, skip=True)
