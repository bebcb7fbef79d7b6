"""Damaged and hostile files of every reader: one sentence each, no other error, little memory.

Seeded; the environment variable FUZZ is the number of damages per file, 25 by default.
"""

from __future__ import annotations

import json
import os
import random
import resource
from pathlib import Path

import pytest
import torch

from score_diffusion.models import NCSNv2, UNet
from score_diffusion.run.checkpoints import checkpoint
from score_diffusion.run.checkpoints.checkpoint import Checkpoint
from score_diffusion.run.checkpoints.contents import check_optimizer
from score_diffusion.run.checkpoints.formats import (
    diffusers,
    diffusers_writer,
    edm,
    guided_diffusion,
    ncsnv2,
    score_sde_pytorch,
)
from score_diffusion.run.configs.base import unet_defaults
from score_diffusion.run.errors import UserError
from score_diffusion.sde_lib import DDPM, ScoreModel, linear_betas
from tests.run.checkpoints.formats import restated_edm, restated_ncsnv2
from tests.run.checkpoints.test_checkpoint import renew_digest

DAMAGES = int(os.environ.get("FUZZ", "25"))
MEMORY = 512 * 2**20  # bytes that a reader of these small files may come to take
NETWORK = dict(
    channels=8, multipliers=(1, 2), blocks_per_level=1, attention_levels=(1,), heads=1, norm_groups=4
)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A file with bits flipped, bytes overwritten, cut off, repeated or inserted."""
    data, place = bytearray(content), draw.randrange(len(content))
    kind = draw.choice(("flip", "flip", "overwrite", "cut", "repeat", "insert", "number"))
    if kind == "flip":
        for _ in range(draw.choice((1, 1, 8))):
            data[draw.randrange(min(len(data), draw.choice((100, 1000, len(data)))))] ^= 1 << draw.randrange(
                8
            )
    elif kind == "overwrite":
        data[place : place + 8] = draw.randbytes(8)
    elif kind == "cut":
        del data[place:]
    elif kind == "repeat":
        data[place:place] = data[: draw.randrange(200)]
    elif kind == "insert":
        data[place:place] = draw.randbytes(draw.randrange(1, 20))
    else:  # a size of eight bytes that is far too large
        data[place : place + 8] = draw.choice((2**31 - 1, 2**40, 2**62)).to_bytes(8, "little")
    return bytes(data)


def settings(value: object, draw: random.Random) -> object:
    """A JSON value of another type or size."""
    odd = (None, True, -1, 0, 10**7, 10**30, 1e400, 0.5, "x", "", [], [1] * 99, {}, {"a": [None]}, [[[]]])
    return draw.choice(odd)


def unet(**arguments: object) -> UNet:
    torch.manual_seed(0)
    return UNet(3, **NETWORK, **arguments)


def _score_sde(folder: Path):
    net = unet(modulation="shift", decoder_attention="level")
    state = score_sde_pytorch.rules(net).write(net.state_dict())
    torch.save({"model": state, "ema": {"shadow_params": list(state.values())}, "step": 5}, folder / "file")
    return [folder / "file"], lambda: score_sde_pytorch.read(net, folder / "file")


def _guided(folder: Path):
    net = unet(embedding="sinusoidal_adm")
    torch.save(guided_diffusion.rules(net, True).write(net.state_dict()), folder / "file")
    return [folder / "file"], lambda: guided_diffusion.read(net, folder / "file", True)


def _ncsnv2(folder: Path):
    net = restated_ncsnv2.Network(ngf=4)
    torch.save([net.state_dict(), {}, 1, 7, dict(net.named_parameters())], folder / "file")

    def read():
        description = ncsnv2.describe(folder / "file", (8, 8))
        return ncsnv2.read(NCSNv2(description.image_shape[0], **description.network), folder / "file")

    return [folder / "file"], read


def _edm(folder: Path):
    shape = dict(img_resolution=8, img_channels=3, model_channels=8, channel_mult=[1, 2])
    net = restated_edm.EDMPrecond(**shape, num_blocks=1, attn_resolutions=[4])
    restated_edm.save(net, folder / "file")

    def read():
        description = edm.describe(folder / "file")
        with torch.device("meta"):
            net = UNet(description.image_shape[0], **description.network)
        return edm.read(net, folder / "file")

    return [folder / "file"], read


def _diffusers(folder: Path):
    net, options = unet(embedding_scale=1.0), unet_defaults() | NETWORK | dict(embedding_scale=1.0)
    model = ScoreModel(net, DDPM(linear_betas(1000)), noise_input="position")
    diffusers_writer.write(model, options, dict(name="ddpm", betas="linear", N=1000), (3, 8, 8), folder)

    def read():
        description = diffusers.describe(folder)
        with torch.device("meta"):
            net = UNet(description.image_shape[0], **description.network)
        return diffusers.read(net, folder)

    files = ("unet/config.json", "scheduler/scheduler_config.json", f"unet/{diffusers.WEIGHTS}")
    return [folder / name for name in files], read


def _own(folder: Path):
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters(), fused=True)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = layer.state_dict()
    saved = checkpoint.save(folder, Checkpoint(4, state, state, optimizer.state_dict(), 1.0, 4), keep=1)

    def read():
        found = checkpoint.latest(folder)
        check_optimizer(found.optimizer, optimizer, folder)
        checkpoint.load_weights(layer, found.model, folder)

    names = ("training.pt", "model.safetensors", "summary.json", "sha256.json")
    return [saved / name for name in names], read


READERS = {
    "score_sde_pytorch": _score_sde, "guided_diffusion": _guided, "ncsnv2": _ncsnv2, "edm": _edm,
    "diffusers": _diffusers, "own": _own,
}  # fmt: skip


def memory() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_damaged_files_end_in_one_sentence(reader: str, tmp_path: Path):
    files, read = READERS[reader](tmp_path)
    draw, before = random.Random(reader), memory()
    for file in files:
        content = file.read_bytes()
        for _ in range(DAMAGES):
            file.write_bytes(damaged(content, draw))
            if reader == "own" and file.name != "sha256.json" and draw.random() < 0.8:
                renew_digest(file)  # as somebody does who made the file
            expect_a_sentence(read)
        file.write_bytes(content)
        if reader == "own" and file.name != "sha256.json":
            renew_digest(file)
    read()
    assert memory() - before < MEMORY


@pytest.mark.parametrize("name", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_odd_settings_end_in_one_sentence(name: str, tmp_path: Path):
    files, read = _diffusers(tmp_path)
    draw, before, file = random.Random(name), memory(), tmp_path / name
    original = json.loads(file.read_text())
    for _ in range(4 * DAMAGES):
        changed = dict(original)
        for key in draw.sample(sorted(original), draw.choice((1, 1, 2))):
            changed[key] = settings(original[key], draw)
        file.write_text(json.dumps(changed))
        expect_a_sentence(read)
    file.write_text(json.dumps(original))
    read()
    assert memory() - before < MEMORY


def expect_a_sentence(read) -> None:
    """Reads; a UserError of one sentence, or a network that refuses its arguments, is all that may come."""
    try:
        read()
    except UserError as error:
        assert str(error) and len(str(error)) < 2000
    except ValueError as error:  # of the network, which the command line turns into a sentence as well
        assert "got" in str(error) or "must" in str(error)
