"""diffusers' UNet2DModel: the same outputs, for its DDPM and its NCSN++ form, in every way of saving it."""

from __future__ import annotations

import inspect
import json
import shutil

import pytest
import torch

from score_diffusion.models import UNet
from score_diffusion.run.checkpoints.formats import diffusers
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
    "wide_embedding": dict(
        **BLOCKS, block_out_channels=(32, 64), layers_per_block=1, time_embedding_dim=96, norm_num_groups=8,
        attn_norm_num_groups=8,
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
    net.load_state_dict(diffusers.read(net, folder).model)
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


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_read(name, tmp_path):
    model = peer(name)
    model.save_pretrained(tmp_path)
    theirs, out = outputs(name, model, ours(tmp_path)[0])
    assert theirs.abs().max() > 0.1
    torch.testing.assert_close(out, theirs, rtol=1e-5, atol=1e-5)


def test_schedulers(tmp_path):
    model = peer("ddpm")
    model.save_pretrained(tmp_path / "unet")
    betas = dict(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", num_train_timesteps=500)
    DDPMScheduler(**betas).save_pretrained(tmp_path / "scheduler")
    description = diffusers.describe(tmp_path)
    assert description.sde == dict(name="ddpm", betas="cosine", N=500)
    assert description.score["prediction"] == "v" and not description.notes
    shutil.move(tmp_path / "scheduler/scheduler_config.json", tmp_path)  # next to the network's, as some are
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


def change(folder, **changes):
    """Changes keys of a folder's configuration; None takes one out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_missing_keys_have_diffusers_defaults(tmp_path):
    """Every key whose value is its default can be left out."""
    defaults = UNet2DModel.__init__.__wrapped__ if hasattr(UNet2DModel.__init__, "__wrapped__") else None
    signature = inspect.signature(defaults or UNet2DModel.__init__).parameters
    for key, value in diffusers.DEFAULTS.items():
        if not key.startswith("_"):
            theirs = signature[key].default
            assert value == (list(theirs) if isinstance(theirs, tuple) else theirs), key
    model = peer("defaults")
    model.save_pretrained(tmp_path)
    before = diffusers.describe(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change(tmp_path, **{key: None for key in config if config[key] == diffusers.DEFAULTS.get(key, 1)})
    assert diffusers.describe(tmp_path) == before
    (tmp_path / "config.json").write_text("{}")
    description = diffusers.describe(tmp_path)
    assert description.network["channels"] == 224 and description.network["multipliers"] == (1, 2, 3, 4)


@pytest.mark.parametrize(("size", "expected"), [(None, 32), ([8, 24], (8, 24)), ([16], 16), (64, 64)])
def test_sizes(size, expected, tmp_path):
    peer("ddpm").save_pretrained(tmp_path)
    change(tmp_path, sample_size=size)
    assert diffusers.describe(tmp_path).image_shape[1:] == (
        (expected,) * 2 if isinstance(expected, int) else expected
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"down_block_types": ["DownBlock2D", "KDownBlock2D"]}, "down_block_types must be a list of some of"),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "up_block_types must be the mirror image"),
        ({"act_fn": "gelu"}, "act_fn must be 'silu' or 'swish', it is 'gelu'"),
        ({"time_embedding_type": "learned"}, "time_embedding_type must be 'positional'"),
        ({"block_out_channels": [32, 48]}, "block_out_channels must be multiples of the first"),
        ({"block_out_channels": [32, 64, 64]}, "as many numbers as there are down_block_types"),
        ({"block_out_channels": [64, 64]}, "does not fit the configured network"),
        ({"block_out_channels": [0, 0]}, "block_out_channels must be a list of integers from 1"),
        ({"block_out_channels": [10**7, 10**7]}, "block_out_channels must be a list of integers from 1"),
        ({"block_out_channels": 32}, "block_out_channels must be a list"),
        ({"block_out_channels": [32.0, 64.0]}, "block_out_channels must be a list"),
        ({"layers_per_block": 10**6}, "layers_per_block must be an integer from 1 to 64"),
        ({"layers_per_block": "2"}, "layers_per_block must be an integer"),
        ({"layers_per_block": True}, "layers_per_block must be an integer"),
        ({"layers_per_block": [2, 2]}, "layers_per_block must be an integer"),
        ({"in_channels": 0}, "in_channels must be an integer from 1"),
        ({"in_channels": 3.5}, "in_channels must be an integer"),
        ({"sample_size": -1}, "sample_size must be an integer from 0"),
        ({"sample_size": [1, 2, 3]}, "sample_size must be a list of 1 to 2"),
        ({"norm_num_groups": 0}, "norm_num_groups must be an integer from 1"),
        ({"norm_num_groups": 7}, "norm_groups must divide"),
        ({"attn_norm_num_groups": 16}, "attn_norm_num_groups must be that of all norms, 32, it is 16"),
        ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups must be that of all norms"),
        ({"attention_head_dim": 5}, "head_channels must divide"),
        ({"dropout": "high"}, "dropout must be a number"),
        ({"norm_eps": 0}, "norm_eps must be a number"),
        ({"num_class_embeds": -3}, "num_class_embeds must be an integer from 0"),
        ({"down_block_types": []}, "down_block_types must be a list of 1 to 12"),
        ({"down_block_types": "DownBlock2D"}, "down_block_types must be a list of 1 to 12"),
        ({"_class_name": "UNet2DConditionModel"}, "_class_name must be 'UNet2DModel'"),
        ({"mid_block_scale_factor": 2}, "mid_block_scale_factor must be 1"),
        ({"add_attention": False}, "add_attention must be True"),
    ],
)
def test_refusals(changes, match, tmp_path):
    peer("ddpm").save_pretrained(tmp_path)
    change(tmp_path, **changes)
    with pytest.raises(ValueError, match=match):
        ours(tmp_path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("[]", "it holds a list, not an object"),
        ("null", "it holds null, not an object"),
        ("7", "it holds a number, not an object"),
        ("{", "is damaged"),
        ("[" * 10**5, "levels deep"),
        ('{"block_out_channels": 1' + "0" * 5000 + "}", "is damaged|block_out_channels must be a list"),
        (" " * (2**24 + 1), "bytes, and at most"),
    ],
    ids=["list", "null", "number", "torn", "deep", "huge number", "huge"],
)
def test_configurations_that_are_none_are_refused(content, match, tmp_path):
    peer("ddpm").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=match):
        diffusers.describe(tmp_path)


def test_networks_of_latents_are_refused(tmp_path):
    """Their betas and blocks would pass, and the samples would be no images."""
    peer("ddpm").save_pretrained(tmp_path / "unet")
    (tmp_path / "vqvae").mkdir()
    with pytest.raises(UserError, match="its unet works on the latents of its vqvae"):
        diffusers.describe(tmp_path)


def test_damaged_folders(tmp_path):
    with pytest.raises(UserError, match="expected config.json and"):
        diffusers.describe(tmp_path)
    peer("ddpm").save_pretrained(tmp_path)
    net = ours(tmp_path)[0]
    weights = tmp_path / diffusers.WEIGHTS
    whole = weights.read_bytes()
    for damaged in (whole[:-100], b"", b"\xff" * 100, (2**60).to_bytes(8, "little") + whole[8:]):
        weights.write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged"):
            diffusers.read(net, tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match="is missing, and so are sharded files, variants"):
        diffusers.read(net, tmp_path)
