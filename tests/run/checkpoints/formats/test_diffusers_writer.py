"""Networks written for diffusers: the pipeline there computes what the model does here."""

from __future__ import annotations

import pytest
import torch
from ml_collections import ConfigDict

from score_diffusion.models import UNet
from score_diffusion.run.build import build_model, build_sde
from score_diffusion.run.checkpoints.formats import diffusers, diffusers_writer
from score_diffusion.run.config import apply_overrides, load_config
from score_diffusion.run.configs.base import unet_defaults
from score_diffusion.run.errors import UserError
from score_diffusion.sde_lib import ScoreModel
from tests.run.checkpoints.formats.test_diffusers import CASES, outputs, peer

pytest.importorskip("diffusers")
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel  # noqa: E402


def model_of(config, shape=(1, 8, 8)):
    """The model of a configuration, with weights that are not at their beginning."""
    torch.manual_seed(0)
    model = build_model(config.model, build_sde(config.sde), shape).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


def write(model, config, folder, shape=(1, 8, 8)):
    options = {key: config.model[key] for key in unet_defaults()}
    diffusers_writer.write(model, options, config.sde.to_dict(), shape, folder)
    return UNet2DModel.from_pretrained(folder / "unet").eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_what_was_read_is_written_back(name, tmp_path):
    peer(name).save_pretrained(tmp_path / "theirs")
    description = diffusers.describe(tmp_path / "theirs")
    net = UNet(3, **description.network).eval()
    net.load_state_dict(diffusers.read(net, tmp_path / "theirs").model)
    model = ScoreModel(net, build_sde(ConfigDict(dict(description.sde))), **description.score)
    options = unet_defaults() | dict(description.network)
    diffusers_writer.write(model, options, description.sde, description.image_shape, tmp_path / "ours")
    theirs, out = outputs(name, UNet2DModel.from_pretrained(tmp_path / "ours" / "unet").eval(), net)
    torch.testing.assert_close(out, theirs, rtol=1e-5, atol=1e-5)
    again = diffusers.describe(tmp_path / "ours")
    assert (again.sde, again.score) == (description.sde, description.score)
    assert again.score["learned_variance"] == (name == "learned_variance")


SMALL = ("model.channels=16",)
NATIVE = {  # what a native configuration trains: its name and what is changed
    "ddpm": ("ddpm", SMALL),
    "improved_ddpm": ("improved_ddpm", SMALL),
    "vpsde": ("vpsde", (*SMALL, "model.norm_groups=8", "model.prediction=noise", "training.times=discrete")),
    "vpsde_position": (
        "vpsde",
        (*SMALL, "model.norm_groups=8", "model.prediction=noise", "model.noise_input=position"),
    ),
    "demo": ("vpsde", (*SMALL, "model.norm_groups=8")),
    "cosine": ("vpsde", (*SMALL, "model.norm_groups=8", "sde.name=cosine", "model.prediction=x0")),
    "ddpm_steps": (
        "ddpm",
        (*SMALL, "model.noise_input=step", "model.embedding=sinusoidal", "model.embedding_scale=1"),
    ),
    "narrow_embedding": ("ddpm", (*SMALL, "model.embedding_dim=8", "model.embedding_width=48")),
    "other_betas": ("ddpm", (*SMALL, "sde.N=100", "sde.first_beta=0.001", "sde.last_beta=0.05")),
    "classes": ("ddpm", (*SMALL, "model.num_classes=3")),
}


def native(name):
    stem, changes = NATIVE[name]
    config = load_config(stem)
    if name == "cosine":
        with config.unlocked():
            config.sde = ConfigDict(dict(name="cosine", N=1000))
        changes = [change for change in changes if not change.startswith("sde.")]
    return apply_overrides(config.lock(), [tuple(change.split("=")) for change in changes])


@pytest.mark.slow
@pytest.mark.parametrize("name", NATIVE)
def test_native_configurations_are_written_with_their_scheduler(name, tmp_path):
    """At step k the scheduler has the noise of t = (k + 1) T/N, and the network there what it has here."""
    config = native(name)
    model = model_of(config)
    theirs = write(model, config, tmp_path)
    scheduler = DDPMScheduler.from_pretrained(tmp_path / "scheduler")
    N, sde = model.sde.N, model.sde
    steps = torch.tensor([0, 7, N // 2, N - 1])
    t = sde.T * (steps + 1).double() / N
    torch.testing.assert_close(
        scheduler.alphas_cumprod[steps].double(), sde.alpha(t).square(), rtol=1e-4, atol=1e-6
    )
    x = torch.randn(4, 1, 8, 8)
    labels = torch.tensor([0, 2, 1, 1]) if name == "classes" else None
    with torch.no_grad():
        out = theirs(x, steps, class_labels=labels).sample
        alpha, sigma = (s.float()[:, None, None, None] for s in (sde.alpha(t), sde.sigma(t)))
        noise = -sigma * model(x, t, labels)
        kind = scheduler.config.prediction_type
        F = out[:, :1]
        found = {"epsilon": F, "v_prediction": alpha * F + sigma * x, "sample": (x - alpha * F) / sigma}[kind]
        torch.testing.assert_close(found, noise, rtol=1e-3, atol=1e-4)
        if name == "improved_ddpm":
            assert scheduler.config.variance_type == "learned_range"
            fraction = model.score_and_fraction(x, t)[1]
            torch.testing.assert_close((out[:, 1:] + 1) / 2, fraction, rtol=1e-4, atol=1e-5)
    assert theirs.config.time_embedding_type == ("positional" if name == "ddpm_steps" else "learned")


def test_the_pipeline_samples_as_ddim_does_here(tmp_path):
    """A whole deterministic trajectory of diffusers' own scheduler, from one noise."""
    config = native("ddpm")
    model = model_of(config)
    write(model, config, tmp_path)
    pipeline = DDPMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(num_inference_steps=2).images[0].size == (8, 8)
    scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True
    )
    scheduler.set_timesteps(10)
    x_T = torch.randn(1, 1, 8, 8)
    x, y, sde = x_T, x_T.double(), model.sde
    times = torch.arange(10, -1, -1, dtype=torch.float64) / 10
    with torch.no_grad():
        for k in scheduler.timesteps:
            x = scheduler.step(pipeline.unet(x, k).sample, k, x).prev_sample
        for t, s in zip(times[:-1, None], times[1:, None], strict=True):
            noise = -sde.sigma(t) * model(y, t)
            y = sde.alpha(s) * (y - sde.sigma(t) * noise) / sde.alpha(t) + sde.sigma(s) * noise
    assert scheduler.timesteps.tolist() == list(range(999, -1, -100))
    torch.testing.assert_close(x.double(), y, rtol=1e-3, atol=1e-3)


def refused(model, config, **options):
    """The sentence with which a model is refused."""
    all_options = {key: config.model.get(key) for key in unet_defaults()} | options
    with pytest.raises(UserError, match="no UNet2DModel and scheduler") as error:
        diffusers_writer.write(model, all_options, config.sde.to_dict(), (1, 8, 8), None)
    return str(error.value)


def test_all_reasons_are_given_at_once():
    config = apply_overrides(load_config("vpsde"), [("model.token_dim", "5")])
    model = model_of(config)
    sentence = refused(model, config, filter="fir", embedding_dim=128, condition_first=True, num_classes=3)
    for reason in (
        "(1) conditions tokens, where it has a class at most",
        "(2) model.filter='fir', where it has 'box'",
        "(3) model.embedding_dim=128, where it has at most model.channels = 32",
        "(4) model.condition_first=True",
        "(5) norms of 8 and 16 and 24 and 32 groups, where it has one number for all: train with "
        "model.norm_groups=8",
    ):
        assert reason in sentence
    for sde, reason in (
        (dict(name="subvpsde"), "sde.name=subvpsde, which does not preserve the variance"),
        (dict(name="vesde"), "sde.name=vesde, which does not preserve the variance"),
    ):
        other = load_config("subvpsde" if sde["name"] == "subvpsde" else "vesde")
        model = ScoreModel(model.net, build_sde(other.sde), prediction="edm", sigma_data=1.0)
        sentence = refused(model, other)
        assert reason in sentence and "model.prediction=edm, where it predicts noise" in sentence


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model.upscale": "2"}, "(1) conditions augmentation and low_resolution, where it has a class at"),
        (
            {"model.encoder_words": "9", "model.num_classes": "3"},
            "(1) conditions text, where it has a class at most",
        ),
        ({"model.vector_dim": "4"}, "(1) conditions vector, where it has a class at most"),
    ],
)
def test_networks_with_other_conditions_are_refused_for_these(changes: dict[str, str], reason: str):
    config = apply_overrides(load_config("vpsde"), list(changes.items()))
    assert reason in refused(model_of(config), config)


def test_another_network_is_named():
    config = load_config("dit")
    sentence = refused(model_of(config), config, **unet_defaults())
    assert sentence.endswith("(1) a network of the class DiT, where it has a U-Net")


def test_heads_of_several_sizes_are_named():
    config = apply_overrides(
        load_config("ddpm"), [("model.attention_levels", "0,1"), *(("model.channels", "16"),)]
    )
    assert "attention heads of 4 and 8 channels" in refused(model_of(config), config)


def test_what_diffusers_has_no_ncsnpp_for():
    """Its blocks have other numbers of groups below 128 channels, and each is given log σ."""
    form = dict(
        rescale=True, filter="fir", resampling="biggan", decoder_attention="level", modulation="shift",
        input_pyramid="skip", output_pyramid="skip", embedding="fourier", multipliers=(1,),
        attention_levels=(), blocks_per_level=1,
    )  # fmt: skip
    sde = dict(name="vesde", sigma_min=0.02, sigma_max=100.0, N=1000)
    net = UNet(1, **form, channels=64)
    model = ScoreModel(net, build_sde(ConfigDict(sde)), prediction="noise", noise_input="reversed_step")
    options = unet_defaults() | form | dict(channels=64, embedding_dim=128, norm_groups=16)
    with pytest.raises(UserError) as error:
        diffusers_writer.write(model, options, sde | dict(name="edm"), (1, 8, 8), None)
    for reason in (
        "model.norm_groups=16",
        "a level of 64 channels, where NCSN++'s form needs 128 or more",
        "sde.name=edm, where NCSN++'s form has vesde",
        "model.prediction=noise, where NCSN++'s form has ve",
        "model.noise_input=reversed_step, where NCSN++'s form has log_noise_level or log_half_noise_level",
    ):
        assert reason in str(error.value)
