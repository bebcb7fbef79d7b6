"""diffusers' AutoencoderKL: the same latents and images, read and written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from score_diffusion.run.builders.autoencoders import load_autoencoder
from score_diffusion.run.main import main

pytest.importorskip("diffusers")
from diffusers import AutoencoderKL as Peer  # noqa: E402

DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
CASES = {
    "stable diffusion's form": dict(block_out_channels=(8, 16, 16), layers_per_block=2, norm_num_groups=4),
    "without quant layers": dict(
        block_out_channels=(8, 16), norm_num_groups=8, use_quant_conv=False, use_post_quant_conv=False
    ),
    "without attention, grey": dict(
        block_out_channels=(8,),
        norm_num_groups=2,
        mid_block_add_attention=False,
        in_channels=1,
        out_channels=1,
    ),
}


def peer(name: str, folder: Path) -> Peer:
    """An autoencoder of diffusers with random weights, saved to a folder."""
    torch.manual_seed(0)
    levels = len(CASES[name]["block_out_channels"])
    model = Peer(down_block_types=(DOWN,) * levels, up_block_types=(UP,) * levels, **CASES[name]).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.1 * torch.randn_like(weights))
    model.save_pretrained(folder)
    return model


def convert(folder: Path, run: Path) -> int:
    return main(["--mode", "convert", "--from", "diffusers", "--workdir", str(run), str(folder)])


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_read_and_written_again(name: str, tmp_path: Path, capsys):
    theirs = peer(name, tmp_path / "theirs")
    assert convert(tmp_path / "theirs", tmp_path / "run") == 0
    assert f"--config.data.autoencoder={tmp_path / 'run'}" in capsys.readouterr().out
    ours, _ = load_autoencoder(tmp_path / "run")
    x = torch.randn(2, ours.in_channels, 32, 32)
    posterior = theirs.encode(x).latent_dist
    mean, log_variance = ours.posterior(x)
    torch.testing.assert_close(mean, posterior.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_variance, posterior.logvar, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.decode(mean), theirs.decode(mean).sample, rtol=1e-5, atol=1e-5)

    command = ["--mode", "convert", "--to", "diffusers", "--workdir", str(tmp_path / "run")]
    assert main([*command, str(tmp_path / "again")]) == 0
    again = Peer.from_pretrained(tmp_path / "again").eval()
    torch.testing.assert_close(again.decode(mean).sample, theirs.decode(mean).sample, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again.encode(x).latent_dist.mean, mean, rtol=1e-5, atol=1e-5)


CHANGES = {
    "act_fn": "relu",
    "block_out_channels": [8, 12],
    "down_block_types": ["AttnDownEncoderBlock2D", DOWN],
    "latent_channels": -1,
    "out_channels": 4,
}


@pytest.mark.parametrize("key", CHANGES)
def test_what_cannot_be_read(key: str, tmp_path: Path, capsys):
    peer("without quant layers", tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: CHANGES[key]}))
    assert convert(tmp_path / "theirs", tmp_path / "run") == 2
    assert f"{key} must be" in capsys.readouterr().err and not (tmp_path / "run").exists()
