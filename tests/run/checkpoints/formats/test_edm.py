"""EDM's pickles: the same denoised images, read without executing anything of the file."""

from __future__ import annotations

import io
import os
import pickle
import subprocess

import pytest
import torch
from ml_collections import ConfigDict

from score_diffusion.models import UNet
from score_diffusion.run.build import build_sde
from score_diffusion.run.checkpoints.formats import edm
from score_diffusion.run.errors import UserError
from score_diffusion.sde_lib import ScoreModel
from tests.run.checkpoints.formats import restated_edm as theirs

SONG = dict(
    img_resolution=16,
    img_channels=3,
    model_channels=16,
    channel_mult=[2, 2],
    num_blocks=1,
    attn_resolutions=[8],
)
NCSNPP = dict(
    SONG,
    embedding_type="fourier",
    channel_mult_noise=2,
    encoder_type="residual",
    resample_filter=[1, 3, 3, 1],
)
ADM = dict(
    img_resolution=16, img_channels=3, model_type="DhariwalUNet", model_channels=64, channel_mult=[1, 2],
    num_blocks=1, attn_resolutions=[8],
)  # fmt: skip
CASES = {
    "ddpmpp_edm": (theirs.EDMPrecond, SONG),
    "ncsnpp_edm": (theirs.EDMPrecond, dict(NCSNPP, augment_dim=9, sigma_data=0.7)),
    "skips": (theirs.EDMPrecond, dict(NCSNPP, encoder_type="skip", decoder_type="skip")),
    "ddpmpp_vp_classes": (theirs.VPPrecond, dict(SONG, label_dim=5, augment_dim=9)),
    "ncsnpp_ve": (theirs.VEPrecond, NCSNPP),
    "adm_edm_classes": (theirs.EDMPrecond, dict(ADM, label_dim=5)),
    "adm_wider": (theirs.EDMPrecond, dict(ADM, channel_mult=[2, 2], channel_mult_emb=2)),
    "adm_iddpm": (theirs.iDDPMPrecond, dict(ADM, M=50)),
}


def peer(name):
    torch.manual_seed(0)
    cls, arguments = CASES[name]
    return cls(**arguments)


def ours(path):
    """A score model of a file, in float64."""
    description = edm.describe(path)
    net = UNet(description.image_shape[0], **description.network)
    net.load_state_dict(edm.read(net, path).ema)
    sde = build_sde(ConfigDict(dict(description.sde)))
    return ScoreModel(net, sde, **description.score).double().eval(), description


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_denoised_images_are_equal(name, tmp_path):
    net = peer(name)
    theirs.save(net, tmp_path / "snapshot.pkl")
    model, description = ours(tmp_path / "snapshot.pkl")
    assert description.image_shape == (3, 16, 16)
    net, sde = net.double(), model.sde
    index = 30 if name == "adm_iddpm" else 700  # a step of the chain, whose index the network is given
    t = sde.discrete_times()[[index, index // 3]]
    alpha, sigma = sde.alpha(t), sde.sigma(t) / sde.alpha(t)  # EDM's x is x_t/α
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64) * sigma[:, None, None, None]
    classes = 5 if "classes" in name else 0
    labels = torch.tensor([1, 4]) if classes else None
    one_hot = torch.eye(5, dtype=torch.float64)[labels] if classes else None
    with torch.no_grad():
        expected = net(x, sigma, one_hot)
        found = model.denoise(x * alpha[:, None, None, None], t, labels)
    # weights in float32; folded layers round once more
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (expected - x).abs().max() > 0.1
    if classes:
        nothing = torch.zeros(2, 5, dtype=torch.float64)  # no class
        torch.testing.assert_close(
            model.denoise(x * alpha[:, None, None, None], t), net(x, sigma, nothing), rtol=1e-4, atol=1e-4
        )
        assert (model.denoise(x * alpha[:, None, None, None], t) - found).abs().max() > 1e-3


@pytest.mark.parametrize("protocol", [2, 3, 5])
def test_every_protocol_is_read(protocol, tmp_path):
    net = peer("adm_edm_classes")
    theirs.save(net, tmp_path / "snapshot.pkl", protocol)
    model, _ = ours(tmp_path / "snapshot.pkl")
    assert torch.equal(model.net.conv_in.weight.float(), net.model.enc["16x16_conv"].weight)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_rules_read_back_what_they_write(name, tmp_path):
    theirs.save(peer(name), tmp_path / "snapshot.pkl")
    description = edm.describe(tmp_path / "snapshot.pkl")
    net = UNet(3, **description.network)
    rules = edm.rules(net, 16)
    for key, tensor in rules.read(rules.write(net.state_dict()), "there").items():
        torch.testing.assert_close(tensor, net.state_dict()[key])


class Bomb:
    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return self.call


def test_nothing_in_a_pickle_is_executed(tmp_path):
    """Not what it calls, and not the source code that it brings along; the rest is read."""
    witness, path = tmp_path / "executed", tmp_path / "snapshot.pkl"
    bombs = [
        Bomb((os.mkdir, (str(witness),))),
        Bomb((eval, (f"__import__('os').mkdir({str(witness)!r})",))),
        Bomb((subprocess.run, (["mkdir", str(witness)],))),
    ]
    theirs.save(peer("ddpmpp_edm"), path, bombs=bombs)
    ours(path)
    assert not witness.exists()


def test_other_pickles_are_refused(tmp_path):
    path = tmp_path / "snapshot.pkl"

    def refused(match, content=None, **network):
        if content is None:
            theirs.save(theirs.EDMPrecond(**SONG | network), path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
        with pytest.raises(UserError, match=match):
            ours(path)

    with pytest.raises(UserError, match="does not exist"):
        edm.describe(tmp_path / "none.pkl")
    refused("is damaged or not a pickle", b"")
    refused("is damaged or not a pickle", b"\x80\x04.")  # an empty stack
    refused("is damaged or not a pickle", b"\x80\x04\x8e" + (2**62).to_bytes(8, "little"))
    refused("is damaged or not a pickle", b"r\xff\xff\xff\x7f.")  # a memo of 2³¹ places
    refused("expected a pickle of a dictionary with ema, found list", [1])
    refused("found G_ema", {"G_ema": 1})
    refused("holds a Linear, which has no counterpart", {"ema": torch.nn.Linear(1, 1)})
    refused(r"resample_filter must be \[1, 1\] or \[1, 3, 3, 1\]", resample_filter=[1, 2, 1])
    buffer = io.BytesIO()
    torch.save({"net": torch.zeros(3)}, buffer)
    refused("is damaged or not a pickle", buffer.getvalue())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (dict(model_channels=10**7), "model_channels must be an integer from 1"),
        (dict(model_channels="wide"), "model_channels must be an integer"),
        (dict(num_blocks=10**6), "num_blocks must be an integer from 1 to 64"),
        (dict(channel_mult=[1] * 99), "channel_mult must be a list of 1 to 12"),
        (dict(channel_mult=[]), "channel_mult must be a list"),
        (dict(channel_mult=None), "channel_mult must be a list"),
        (dict(label_dim=-1), "label_dim must be"),
        (dict(img_resolution=0), "img_resolution must be"),
        (dict(dropout=float("nan")), "dropout must be a number"),
        (dict(embedding_type="learned"), "embedding_type must be 'positional' or 'fourier'"),
        (dict(model_channels=32), "does not fit the configured network"),
    ],
)
def test_impossible_arguments_are_refused_before_memory_is_asked_for(arguments, match, tmp_path):
    net = peer("ddpmpp_edm")
    net.model._init_kwargs = net.model._init_kwargs | arguments
    theirs.save(net, tmp_path / "snapshot.pkl")
    with pytest.raises(UserError, match=match):
        ours(tmp_path / "snapshot.pkl")
