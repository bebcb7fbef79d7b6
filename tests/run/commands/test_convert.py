"""--mode convert: run directories that sample, score and train on, and the way back."""

from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from score_diffusion.models import UNet
from score_diffusion.run.builders.inference import load_trained
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.checkpoints.formats import guided_diffusion, score_sde_pytorch
from score_diffusion.run.config import read_config
from score_diffusion.run.data.info import read_data_info
from score_diffusion.run.main import main
from score_diffusion.sde_lib import DDPM, linear_betas
from tests.run.checkpoints.formats import restated_edm, restated_ncsnv2

pytest.importorskip("diffusers")
from diffusers import DDPMScheduler, UNet2DModel  # noqa: E402


@pytest.fixture
def folder(tmp_path):
    """A diffusers network of DDPM's form for grey images of 8x8."""
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(16, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8, freq_shift=1, flip_sin_to_cos=False, attention_head_dim=None,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def convert(*arguments):
    return main(["--mode", "convert", *map(str, arguments)])


def test_a_converted_network_has_the_score_of_its_own(folder, tmp_path):
    assert convert("--from", "diffusers", folder, "--workdir", tmp_path / "run") == 0
    trained = load_trained(tmp_path / "run", read_config(tmp_path / "run"), torch.device("cpu"))
    model, sde, k = UNet2DModel.from_pretrained(folder).eval(), DDPM(linear_betas(1000)), 300
    x, t = torch.randn(2, 1, 8, 8), torch.full((2,), (k + 1) / 1000)
    with torch.no_grad():
        theirs = -model(x, k).sample / sde.sqrt_1m_alphas_cumprod[k]
        torch.testing.assert_close(trained.score(x, t), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_it_samples_scores_and_goes_back(folder, tmp_path):
    run = tmp_path / "run"
    assert convert("--from", "diffusers", folder, "--workdir", run) == 0
    small = ["--workdir", str(run), "--config.sampling.num_samples=2", "--nfe", "4"]
    assert main(["--mode", "sample", "--sampler", "ddim", *small]) == 0
    scored = ["--config.likelihood.num_images=2", "--config.likelihood.rtol=1e-2", _pixels(tmp_path)]
    scored += ["--config.likelihood.method=both", "--config.likelihood.bound_terms=2"]
    assert main(["--mode", "likelihood", "--workdir", str(run), *scored]) == 0
    assert main(["--mode", "report", "--workdir", str(run)]) == 0
    back = tmp_path / "back"
    assert convert("--to", "diffusers", back, "--workdir", run) == 0
    assert json.loads((back / "model_index.json").read_text())["_class_name"] == "DDPMPipeline"
    x, before = torch.randn(2, 1, 8, 8), UNet2DModel.from_pretrained(folder)
    after = UNet2DModel.from_pretrained(back / "unet")
    with torch.no_grad():
        torch.testing.assert_close(after.eval()(x, 7).sample, before.eval()(x, 7).sample)


def test_what_is_not_read_back_is_said_where_it_is_written(tmp_path, refused, capsys):
    """An embedding that becomes a table."""
    run, theirs = tmp_path / "run", tmp_path / "theirs"
    few = "--config.model.norm_groups=4", "--config.training.steps=1", "--config.training.preview_samples=0"
    tiny = str(Path(__file__).parents[1] / "tiny.py")
    assert main(["--mode", "train", "--config", tiny, "--workdir", str(run), *few]) == 0
    assert convert("--to", "diffusers", theirs, "--workdir", run) == 0
    printed = capsys.readouterr().out
    assert "table of all steps (time_embedding_type = 'learned'), which --from diffusers does not" in printed
    back = convert("--from", "diffusers", theirs, "--workdir", tmp_path / "back")
    assert "time_embedding_type must be 'positional', it is 'learned'" in refused(back)


def test_a_network_without_score_is_refused_by_its_name(tmp_path, refused):
    run, few = tmp_path / "run", ("--config.training.steps=1", "--config.model.channels=8")
    assert main(["--mode", "train", "--config", "classifier", "--workdir", str(run), *few]) == 0
    message = refused(convert("--to", "diffusers", tmp_path / "new", "--workdir", run))
    assert "only U-Nets and autoencoders can be written for diffusers, not model 'classifier'" in message


@pytest.mark.slow
def test_it_trains_on_with_any_data_and_settings(folder, tmp_path, refused, capsys):
    """From then on it is a run like any other."""
    run = tmp_path / "run"
    assert convert("--from", "diffusers", folder, "--workdir", run) == 0
    train = ["--mode", "train", "--workdir", str(run)]
    assert "the network is for samples of shape (1, 8, 8), 256 grey levels" in refused(main(train))
    assert "model.dropout is 0.0 there and 0.1 here" in refused(main([*train, "--config.model.dropout=0.1"]))
    settings = ("learning_rate=1e-6", "warmup_steps=0", "batch_size=4", "held_out=4", "ema_decay=0.5")
    train += [_pixels(tmp_path), *(f"--config.training.{setting}" for setting in settings)]
    before = checkpoint.latest(run).model
    assert main([*train, "--config.training.steps=2"]) == 0
    assert "resuming" in capsys.readouterr().out
    trained = checkpoint.latest(run)
    assert trained.step == 2
    for name, weights in trained.model.items():  # Adam's steps are as long as the learning rate
        torch.testing.assert_close(weights, before[name], rtol=0, atol=3e-6)
    assert any(not torch.equal(trained.model[name], before[name]) for name in before)
    assert main(["--mode", "train", "--workdir", str(run), "--config.training.steps=3"]) == 0
    assert checkpoint.latest(run).step == 3
    changed = main([*train, "--config.training.batch_size=2"])
    assert "training.batch_size is 4 there and 2 here" in refused(changed)
    scored = ["--mode", "likelihood", "--workdir", str(run)]
    assert "--config.data.flip cannot change after training" in refused(
        main([*scored, "--config.data.flip=true"])
    )
    assert "cannot change" not in refused(main([*scored, "--config.data.path=none.npy"]))
    not_tracked = refused(main([*scored, "--config.sampling.ema=0.999"]))
    assert "sampling.ema must be an average that was tracked in training, 0.5" in not_tracked


def _pixels(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    return f"--config.data.path={tmp_path / 'images.npy'}"


def test_bad_input(folder, tmp_path, refused):
    run = tmp_path / "run"
    assert "one of --from=score_sde_pytorch|" in refused(convert(folder, "--workdir", run))
    unknown = convert("--from", "jax", folder, "--workdir", run)
    assert "unknown format 'jax': choose one of" in refused(unknown)
    assert "needs the path" in refused(convert("--from", "diffusers", "--workdir", run))
    assert "does not exist" in refused(convert("--from", "diffusers", tmp_path / "no", "--workdir", run))
    wrong = convert("--from", "guided_diffusion", folder / "config.json", "--workdir", run)
    assert "it holds more than tensors and numbers, or is damaged" in refused(wrong)
    assert not run.exists()
    assert convert("--from", "diffusers", folder, "--workdir", run) == 0
    assert checkpoint.exists(run)
    assert "is not empty" in refused(convert("--from", "diffusers", folder, "--workdir", run))
    assert "is there already" in refused(convert("--to", "diffusers", folder, "--workdir", run))
    dry = convert("--from", "diffusers", folder, "--workdir", tmp_path / "other", "--dry_run")
    assert "--dry_run has no meaning" in refused(dry)


def test_classes(tmp_path, refused):
    """A network with classes draws the class that is asked for, each from the same noise."""
    model = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(16, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=8, num_class_embeds=3,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "theirs")
    run = str(tmp_path / "run")
    assert convert("--from", "diffusers", tmp_path / "theirs", "--workdir", run) == 0
    draw = ["--mode", "sample", "--workdir", run, "--sampler", "ddim", "--nfe", "3"]
    for label in ("0", "2", "2"):
        draw_one = ["--config.sampling.num_samples=2", f"--config.sampling.label={label}"]
        assert main([*draw, *draw_one]) == 0
    first, second, again = (
        np.load(tmp_path / "run" / "samples" / f"ddim{suffix}.npz")["samples"] for suffix in ("", "-2", "-3")
    )
    assert np.array_equal(second, again) and not np.array_equal(first, second)
    wrong = main([*draw, "--config.sampling.label=3"])
    assert "classes that the model knows, 0 to 2; got '3'" in refused(wrong)


def test_a_run_that_draws_a_class_is_written(tmp_path):
    """sampling.label is for sampling: the network that is written has all classes."""
    model = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(16,), layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=8,
        num_class_embeds=3,
    )  # fmt: skip
    theirs, run, back = (tmp_path / name for name in ("theirs", "run", "back"))
    model.save_pretrained(theirs)
    assert convert("--from", "diffusers", theirs, "--workdir", run, "--config.sampling.label=2") == 0
    assert read_config(run).sampling.label == "2"
    assert convert("--to", "diffusers", back, "--workdir", run) == 0
    after = UNet2DModel.from_pretrained(back / "unet").eval()
    x, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    with torch.no_grad():
        expected = model.eval()(x, 7, class_labels=labels).sample
        torch.testing.assert_close(after(x, 7, class_labels=labels).sample, expected)


def test_what_a_scheduler_says_of_sampling_is_kept(folder, tmp_path, capsys):
    DDPMScheduler(variance_type="fixed_large", clip_sample_range=0.5, thresholding=True).save_pretrained(
        folder
    )
    run = tmp_path / "run"
    assert convert("--from", "diffusers", folder, "--workdir", run) == 0
    config = read_config(run)
    assert (config.sampling.ddpm.variance, config.sampling.ddpm.clip) == ("large", 0.5)
    assert config.sampling.ddim.clip == 0.5
    assert (config.likelihood.variance, config.likelihood.clip) == ("large", 0.5)
    assert "assumed     left out: dynamic thresholding" in capsys.readouterr().out


def test_given_keys_take_precedence_over_what_a_folder_says(folder, tmp_path, refused, capsys):
    run = tmp_path / "run"
    given = ["--config.sde.betas=cosine", "--config.sde.N=500"]
    given += ["--config.sampling.sampler=ddpm", "--config.sampling.ddpm.clip=0"]
    assert convert("--from", "diffusers", folder, "--workdir", run, *given) == 0
    config = read_config(run)
    assert (config.sde.betas, config.sde.N, config.sampling.ddpm.clip) == ("cosine", 500, 0.0)
    assert "no scheduler_config.json in the folder" in capsys.readouterr().out
    other = convert("--from", "diffusers", folder, "--workdir", tmp_path / "b", "--config.model.channels=24")
    assert "does not fit the configured network" in refused(other)
    assert not (tmp_path / "b").exists()


SMALL_ADM = dict(
    channels=32, multipliers=(1, 2), blocks_per_level=1, attention_levels=(1,), head_channels=16, dropout=0.0,
    num_classes=0,
)  # fmt: skip


def adm(folder):
    """A file of improved-diffusion, and the flags for its network."""
    arguments = dict(embedding="sinusoidal_adm", embedding_scale=1.0, resampling="residual", out_channels=6)
    net = UNet(3, **SMALL_ADM, **arguments, norm_groups=32)
    torch.save(guided_diffusion.rules(net, legacy=True).write(net.state_dict()), folder / "model.pt")
    texts = {key: ",".join(map(str, v)) + "," if isinstance(v, tuple) else v for key, v in SMALL_ADM.items()}
    flags = [f"--config.model.{key}={value}" for key, value in texts.items()]
    return [folder / "model.pt", "--config", "adm64", "--config.data.image_size=8", *flags]


@pytest.mark.parametrize(
    ("source", "given", "scale"),
    [
        ("improved_diffusion", (), 0.25),
        ("improved_diffusion", ("--config.model.embedding_scale=1",), 1.0),
        ("guided_diffusion_legacy", (), 1.0),
        ("guided_diffusion_legacy", ("--config.model.embedding_scale=0.25",), 0.25),
    ],
)
def test_rescaled_timesteps(source, given, scale, tmp_path, capsys):
    """improved-diffusion gives its networks k · 1000/N; which it is, is said."""
    arguments = [*adm(tmp_path), "--config.sde.N=4000", "--workdir", tmp_path / "run", *given]
    assert convert("--from", source, *arguments) == 0
    assert read_config(tmp_path / "run").model.embedding_scale == scale
    assert f"noise input: step k times {scale:g} (model.embedding_scale)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "variance"), [((), "large"), (("--config.sampling.ddpm.variance=small",), "small")]
)
def test_variances_that_are_not_learned_are_large(given, variance, tmp_path, capsys):
    """guided-diffusion's default (sigma_small=False); config adm64 samples with a learned one."""
    path, *rest = adm(tmp_path)
    state = torch.load(path)
    torch.save(state | {f"out.2.{part}": state[f"out.2.{part}"][:3] for part in ("weight", "bias")}, path)
    fixed = ("--config.model.learned_variance=false", "--config.model.out_channels=3")
    plain = ("--config.training.objective=dsm",)
    arguments = [path, *rest, *fixed, *plain, *given, "--workdir", tmp_path / "run"]
    assert convert("--from", "guided_diffusion", *arguments) == 0
    assert read_config(tmp_path / "run").sampling.ddpm.variance == variance
    assert f"variance of the reverse steps: {variance} (learn_sigma, sigma_small)" in capsys.readouterr().out


def test_a_number_of_heads_instead_of_their_size(tmp_path, capsys):
    heads = ("--config.model.head_channels=None", "--config.model.heads=2")
    arguments = [*adm(tmp_path), *heads, "--workdir", tmp_path / "run"]
    assert convert("--from", "guided_diffusion", *arguments) == 0
    assert "attention: 2 heads (num_heads, num_head_channels), new order" in capsys.readouterr().out
    assert read_config(tmp_path / "run").model.head_channels is None


def test_narrow_ddpms_need_to_be_named(tmp_path, refused):
    arguments = dict(SMALL_ADM, head_channels=None, heads=1, modulation="shift", decoder_attention="level")
    fixed = dict(embedding="sinusoidal", embedding_scale=1.0, resampling="conv_asymmetric", norm_eps=1e-6)
    net = UNet(3, **arguments, **fixed)
    state = score_sde_pytorch.rules(net).write(net.state_dict())
    content = {"model": state, "ema": {"shadow_params": list(state.values())}, "step": 5}
    torch.save(content, tmp_path / "checkpoint.pth")
    flags = ["--config", "score_sde:vp_ddpm", "--config.data.image_size=8", "--config.model.channels=32"]
    flags += [
        "--config.model.multipliers=1,2",
        "--config.model.blocks_per_level=1",
        tmp_path / "checkpoint.pth",
    ]
    run = tmp_path / "run"
    sentence = refused(convert("--from", "score_sde_pytorch", *flags, "--workdir", run))
    assert "--from score_sde_pytorch:ddpm or --from score_sde_pytorch:ncsnpp" in sentence and not run.exists()
    for model, groups in (("ddpm", 32), ("ncsnpp", None)):
        assert convert("--from", f"score_sde_pytorch:{model}", *flags, "--workdir", run / model) == 0
        assert read_config(run / model).model.norm_groups == groups
        assert checkpoint.latest(run / model).step == 5


def test_pickles_of_edm_and_files_of_ncsnv2_describe_themselves(tmp_path, capsys):
    shape = dict(img_resolution=8, img_channels=1, label_dim=3)
    network = dict(model_channels=8, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4])
    restated_edm.save(restated_edm.EDMPrecond(**shape, **network), tmp_path / "snapshot.pkl")
    run = tmp_path / "edm"
    assert convert("--from", "edm", tmp_path / "snapshot.pkl", "--workdir", run) == 0
    assert "noise levels: those that EDM samples by default" in capsys.readouterr().out
    assert read_config(run).sampling.sampler == "edm"
    draw = ["--mode", "sample", "--workdir", str(run), "--config.sampling.num_samples=2", "--nfe", "4"]
    assert main([*draw, "--config.sampling.label=2"]) == 0
    net = restated_ncsnv2.Network(channels=1)
    torch.save([net.state_dict(), {}, 1, 7], tmp_path / "checkpoint.pth")
    run, size = tmp_path / "ncsnv2", "--config.data.image_size=16"
    assert convert("--from", "ncsnv2", tmp_path / "checkpoint.pth", "--workdir", run, size) == 0
    assert "every σ is twice its own" in capsys.readouterr().out
    draw = ["--mode", "sample", "--workdir", str(run), "--config.sampling.num_samples=2", "--nfe", "11"]
    assert main(draw) == 0


def test_a_full_disk_leaves_nothing_that_refuses_the_same_command(folder, tmp_path, monkeypatch, refused):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run, back = tmp_path / "run", tmp_path / "back"
    command = ("--from", "diffusers", folder, "--workdir", run)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "No space left on device" in refused(convert(*command))
    assert not run.exists()
    run.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "No space left on device" in refused(convert(*command))
    assert list(run.iterdir()) == []
    assert convert(*command) == 0
    export = ("--to", "diffusers", back, "--workdir", run)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "No space left on device" in refused(convert(*export))
    assert not back.exists() and convert(*export) == 0


@pytest.mark.parametrize(
    ("size", "fits"), [([16384, 16384], True), ([16384, 200], True), ([16384, 16383], False)]
)
def test_a_network_is_not_tried_at_a_size_that_does_not_fit_into_memory(
    size, fits, folder, tmp_path, refused
):
    """Activations for these images would take 17 GB and more each."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | dict(sample_size=size)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code = convert("--from", "diffusers", folder, "--workdir", tmp_path / "run")
    if fits:
        assert code == 0 and read_data_info(tmp_path / "run").shape == (1, *size)
    else:
        assert "divisible by 2" in refused(code)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


def test_wrong_networks_are_refused(folder, tmp_path, refused):
    run = tmp_path / "run"
    (tmp_path / "model.pt").write_bytes(b"")
    wrong = convert("--from", "guided_diffusion", tmp_path / "model.pt", "--config", "dit", "--workdir", run)
    assert "this format has U-Nets: give the --config of one, not of a DiT" in refused(wrong)
    uneven = convert("--from", "diffusers", folder, "--workdir", run, "--config.model.multipliers=0,")
    assert "multipliers must be" in refused(uneven)
    (tmp_path / "a file").write_text("")
    occupied = convert("--from", "diffusers", folder, "--workdir", tmp_path / "a file")
    assert "is not empty" in refused(occupied)
