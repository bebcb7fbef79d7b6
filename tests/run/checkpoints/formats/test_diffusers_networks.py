"""diffusers' UNet2DModel: outputs equal in both directions, for its DDPM and its NCSN++ form."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from score_diffusion.models import UNet
from score_diffusion.run.checkpoints.formats import diffusers, diffusers_writer
from score_diffusion.run.configs.base import unet_defaults
from score_diffusion.run.errors import UserError

pytest.importorskip("diffusers")
from diffusers import DDPMScheduler, ScoreSdeVeScheduler, UNet2DModel  # noqa: E402

IMAGES = dict(sample_size=16, in_channels=3, out_channels=3)
BLOCKS = dict(
    down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D")
)
SKIP_BLOCKS = dict(
    down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    time_embedding_type="fourier",
    mid_block_scale_factor=2**0.5,
    norm_num_groups=None,
    norm_eps=1e-6,
    attention_head_dim=None,
)
CASES = {
    # DDPM's own form, that of google/ddpm-cifar10-32, small
    "ddpm": dict(
        **BLOCKS, block_out_channels=(32, 64), layers_per_block=2, downsample_padding=0, freq_shift=1,
        flip_sin_to_cos=False, attention_head_dim=None, norm_eps=1e-6,
    ),
    "defaults": dict(**BLOCKS, block_out_channels=(32, 64), layers_per_block=1),
    "classes": dict(
        **BLOCKS, block_out_channels=(32, 64), layers_per_block=1, num_class_embeds=5,
        resnet_time_scale_shift="scale_shift", norm_num_groups=16, attn_norm_num_groups=16,
    ),
    "learned_variance": dict(
        **BLOCKS, out_channels=6, block_out_channels=(32, 64), layers_per_block=1
    ),
    "score_sde_ve": dict(**SKIP_BLOCKS, block_out_channels=(128, 128), layers_per_block=1),
    "score_sde_ve_centred": dict(
        **SKIP_BLOCKS, block_out_channels=(128, 128), layers_per_block=1, center_input_sample=True
    ),
}  # fmt: skip


def peer(name):
    torch.manual_seed(0)
    model = UNet2DModel(**IMAGES | CASES[name]).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return model


def ours(folder):
    description = diffusers.describe(folder)
    net = UNet(description.image_shape[0], **description.network).eval()
    net.load_state_dict(diffusers.read(net, folder))
    return net, description


def outputs(name, model, net):
    """What the two return for the same images, in float64."""
    model, net, x = model.double(), net.double(), torch.rand(2, 3, 16, 16, dtype=torch.float64)
    labels = torch.tensor([1, 4]) if name == "classes" else None
    with torch.no_grad():
        if name.startswith("score_sde_ve"):
            sigma = torch.tensor([0.3, 20.0], dtype=torch.float64)
            raw = 2 * x - 1 if name.endswith("centred") else x
            return model(x, sigma).sample, net(raw, sigma.log()) / sigma[:, None, None, None]
        steps = torch.tensor([3, 700])
        return model(x, steps, class_labels=labels).sample, net(x, steps.double(), labels)


@pytest.mark.parametrize("name", CASES)
def test_read(name, tmp_path):
    model = peer(name)
    model.save_pretrained(tmp_path)
    theirs, out = outputs(name, model, ours(tmp_path)[0])
    assert theirs.abs().max() > 0.1
    torch.testing.assert_close(out, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_write(name, tmp_path):
    """What a folder that we wrote gives in diffusers is what the network gives."""
    peer(name).save_pretrained(tmp_path / "theirs")
    net, description = ours(tmp_path / "theirs")
    options = unet_defaults() | description.network
    shape = description.image_shape
    diffusers_writer.write(net, options, description.score, description.sde, shape, tmp_path / "ours")
    theirs, out = outputs(name, UNet2DModel.from_pretrained(tmp_path / "ours" / "unet").eval(), net)
    torch.testing.assert_close(out, theirs, rtol=1e-5, atol=1e-5)
    again = diffusers.describe(tmp_path / "ours")
    assert (again.sde, again.score) == (description.sde, description.score)
    assert again.score["learned_variance"] == (name == "learned_variance")


def test_schedulers(tmp_path):
    model = peer("ddpm")
    model.save_pretrained(tmp_path / "unet")
    betas = dict(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", num_train_timesteps=500)
    DDPMScheduler(**betas).save_pretrained(tmp_path / "scheduler")
    description = diffusers.describe(tmp_path)
    assert description.sde == dict(name="ddpm", betas="cosine", N=500)
    assert description.score["prediction"] == "v"
    shutil.move(tmp_path / "scheduler/scheduler_config.json", tmp_path)  # beside the network's, as some are
    shutil.move(tmp_path / "unet/config.json", tmp_path)
    shutil.rmtree(tmp_path / "unet")
    assert diffusers.describe(tmp_path) == description
    (tmp_path / "config.json").unlink()
    (tmp_path / "scheduler_config.json").unlink()
    peer("score_sde_ve_centred").save_pretrained(tmp_path / "unet")
    ScoreSdeVeScheduler(sigma_min=0.01, sigma_max=50.0, num_train_timesteps=1000).save_pretrained(
        tmp_path / "scheduler"
    )
    description = diffusers.describe(tmp_path)
    assert description.sde == dict(name="vesde", sigma_min=0.02, sigma_max=100.0, N=1000)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"down_block_types": ["DownBlock2D", "KDownBlock2D"]}, "KDownBlock2D.* cannot be converted"),
        ({"act_fn": "gelu"}, "act_fn = 'gelu' cannot be converted"),
        ({"time_embedding_type": "learned"}, "time_embedding_type = 'learned'"),
        ({"block_out_channels": [32, 48]}, r"block_out_channels = \[32, 48\]"),
        ({"block_out_channels": [64, 64]}, "does not fit the configured network"),
    ],
)
def test_refusals(changes, match, tmp_path):
    peer("ddpm").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=match):
        ours(tmp_path)


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("ddpm", dict(_class_name="EDMEulerScheduler"), "the scheduler 'EDMEulerScheduler' cannot"),
        ("ddpm", dict(_class_name="ScoreSdeVeScheduler"), "the scheduler 'ScoreSdeVeScheduler' cannot"),
        ("score_sde_ve", dict(_class_name="DDPMScheduler"), "the scheduler 'DDPMScheduler' cannot"),
        ("ddpm", dict(rescale_betas_zero_snr=True), "rescale_betas_zero_snr = True cannot"),
        ("ddpm", dict(trained_betas=[0.1, 0.2]), r"trained_betas = \[0.1, 0.2\] cannot"),
        ("ddpm", dict(beta_end=0.012), "beta_start and beta_end must be DDPM's"),
        ("ddpm", dict(variance_type="learned_range"), "out_channels = 3 cannot be converted with variance"),
        ("learned_variance", dict(variance_type="fixed_small"), "out_channels = 6 cannot be converted"),
    ],
)
def test_refused_schedulers(name, settings, match, tmp_path):
    peer(name).save_pretrained(tmp_path)
    scheduler = dict(_class_name="DDPMScheduler") | settings
    (tmp_path / "scheduler_config.json").write_text(json.dumps(scheduler))
    with pytest.raises(UserError, match=match):
        diffusers.describe(tmp_path)


def test_damaged_folders(tmp_path):
    with pytest.raises(UserError, match="expected config.json and"):
        diffusers.describe(tmp_path)
    peer("ddpm").save_pretrained(tmp_path)
    net = ours(tmp_path)[0]
    weights = tmp_path / diffusers.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged"):
        diffusers.read(net, tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match="is missing: only safetensors are read"):
        diffusers.read(net, tmp_path)


def test_what_diffusers_has_no_network_for():
    net = UNet(1, channels=16)
    options = unet_defaults() | dict(channels=16)
    score = dict(prediction="v", noise_input="position", learned_variance=False)
    sde = dict(name="ddpm", betas="linear", N=1000)
    for changes, match in (
        (dict(embedding="fourier"), "embedding='fourier'"),
        (dict(embedding_scale=1.0), "norms of one number of groups, this network has 4, 8"),
        (dict(embedding_scale=1.0, filter="fir"), "filter='fir'"),
    ):
        with pytest.raises(UserError, match=match):
            diffusers_writer.write(net, options | changes, score, sde, (1, 8, 8), None)
    with pytest.raises(UserError, match="to be told the step"):
        told = score | dict(noise_input="log_level")
        diffusers_writer.write(net, options, told, sde, (1, 8, 8), None)


def test_what_diffusers_has_no_ncsnpp_for():
    """Its blocks have other numbers of groups below 128 channels, and each is told log σ."""
    form = dict(
        rescale=True, filter="fir", resampling="biggan", decoder_attention="level", modulation="shift",
        input_pyramid="skip", output_pyramid="skip", embedding="fourier", multipliers=(1,),
        attention_levels=(),
    )  # fmt: skip
    score = dict(prediction="ve", noise_input="log_half_level", learned_variance=False)
    sde = dict(name="vesde", sigma_min=0.02, sigma_max=100.0, N=1000)
    for changes, told, match in (
        (dict(channels=64, embedding_dim=128), score, "128 channels and more, this network has one of 64"),
        (dict(channels=128, norm_groups=16), score, "model.norm_groups=16"),
        (dict(channels=128), score | dict(noise_input="reversed_step"), "to be told log σ"),
        (dict(channels=128), score | dict(learned_variance=True), "without a learned variance"),
    ):
        options = unet_defaults() | form | changes
        with pytest.raises(UserError, match=match):
            diffusers_writer.write(UNet(1, **options), options, told, sde, (1, 8, 8), None)
