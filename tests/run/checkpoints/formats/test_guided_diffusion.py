"""guided-diffusion's and improved-diffusion's .pt files give their networks' own outputs."""

from __future__ import annotations

import pytest
import torch

from score_diffusion.models import PRESETS, UNet
from score_diffusion.run.checkpoints.formats import guided_diffusion
from score_diffusion.run.errors import UserError
from tests.run.checkpoints.formats.golden import at_the_pixel, cases, images, weights

CASES = cases("guided_diffusion")


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_its_own_code(name, tmp_path):
    case = CASES[name]
    torch.save(weights(case["tensors"]), tmp_path / "model.pt")
    net = UNet(3, **case["network"]).double().eval()
    net.load_state_dict(guided_diffusion.read(net, tmp_path / "model.pt", case["legacy"]).model)
    labels = None if case["labels"] is None else torch.tensor(case["labels"])
    out = at_the_pixel(net(images(), torch.tensor(case["noise"], dtype=torch.float64), labels))
    # Folding a norm's weights into the noise's rounds them once more to float32.
    torch.testing.assert_close(out, torch.tensor(case["output"], dtype=torch.float64), rtol=2e-5, atol=2e-5)
    if case["labels"] is not None:
        other = at_the_pixel(net(images(), torch.tensor(case["noise"]).double(), labels.flip(0)))
        assert (other - out).abs().max() > 1e-2


@pytest.mark.parametrize("name", CASES)
def test_rules_read_back_what_they_write(name):
    case = CASES[name]
    net = UNet(3, **case["network"])
    rules = guided_diffusion.rules(net, case["legacy"])
    written = rules.write(net.state_dict())
    sizes = {key: torch.Size(shape).numel() for key, shape in case["tensors"].items()}
    assert {key: tensor.numel() for key, tensor in written.items()} == sizes
    for key, tensor in rules.read(written, "there").items():
        torch.testing.assert_close(tensor, net.state_dict()[key])


def test_adm64_has_the_published_size():
    """295.9 million (EDM, Table 7). Of these, two in each channel of the norms that the noise scales and
    shifts fold into the noise's.
    """
    with torch.device("meta"):
        net = UNet(3, **PRESETS["adm64"])
    folded = sum(m.num_channels for m in net.modules() if isinstance(m, torch.nn.GroupNorm) and not m.affine)
    assert folded == 17_856
    assert round((sum(p.numel() for p in net.parameters()) + 2 * folded) / 1e6, 1) == 295.9


def test_refusals(tmp_path):
    case = CASES["iddpm"]
    net = UNet(3, **case["network"])
    torch.save({"state_dict": weights(case["tensors"])}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="expected a dictionary of tensors"):
        guided_diffusion.read(net, tmp_path / "model.pt", legacy=True)
    torch.save(weights(CASES["ddpm"]["tensors"]), tmp_path / "model.pt")
    with pytest.raises(UserError, match="have 32 groups: set model.norm_groups=32"):
        own_groups = UNet(3, **case["network"] | dict(norm_groups=None))
        guided_diffusion.read(own_groups, tmp_path / "model.pt", legacy=True)
    with pytest.raises(UserError, match="does not fit the configured network"):
        guided_diffusion.read(net, tmp_path / "model.pt", legacy=True)


def test_512x512_adm_has_the_published_shapes():
    """Half the width at the finest level, with the embedding of the full width (channel_mult 0.5, 1, ..)."""
    with torch.device("meta"):
        net = UNet(3, **ADM512)
        shapes = {
            name: tuple(x.shape)
            for name, x in guided_diffusion.rules(net, True).write(net.state_dict()).items()
        }
    assert shapes["time_embed.0.weight"] == (1024, 256) and shapes["time_embed.2.weight"] == (1024, 1024)
    assert shapes["label_emb.weight"] == (1000, 1024)
    assert shapes["input_blocks.0.0.weight"] == (128, 3, 3, 3)
    assert shapes["input_blocks.1.0.emb_layers.1.weight"] == (256, 1024)
    assert shapes["middle_block.1.qkv.weight"] == (3072, 1024, 1)
    assert shapes["output_blocks.20.0.out_layers.3.weight"] == (128, 128, 3, 3)
    assert shapes["out.2.weight"] == (6, 128, 3, 3)


ADM512 = PRESETS["adm64"] | dict(
    channels=128, multipliers=(1, 2, 2, 4, 4, 8, 8), blocks_per_level=2, attention_levels=(4, 5, 6),
    embedding_dim=256, embedding_width=1024, dropout=0.0,
)  # fmt: skip


def test_networks_without_a_counterpart_are_named(tmp_path):
    case, path = CASES["adm"], tmp_path / "model.pt"
    net, state = UNet(3, **case["network"]), weights(case["tensors"])
    classifier = {name: x for name, x in state.items() if not name.startswith(("output_blocks", "out."))}
    torch.save(classifier | {"out.2.positional_embedding": torch.zeros(16, 17)}, path)
    with pytest.raises(UserError, match="is a classifier of guided-diffusion"):
        guided_diffusion.read(net, path, legacy=False)
    state["input_blocks.0.0.weight"] = torch.cat(2 * [state["input_blocks.0.0.weight"]], 1)
    torch.save(state, path)
    with pytest.raises(UserError, match="is a super-resolution model .* image_channels=3"):
        guided_diffusion.read(net, path, legacy=False)


def test_super_resolution_is_read_into_a_network_with_an_image_as_its_condition(tmp_path):
    """SuperResModel concatenates the upsampled low-resolution image behind x."""
    case, path = CASES["iddpm"], tmp_path / "model.pt"
    state = weights(case["tensors"])
    plain = UNet(3, **case["network"])
    torch.save(state, path)
    plain.load_state_dict(guided_diffusion.read(plain, path, legacy=True).model)
    first = state["input_blocks.0.0.weight"]
    state["input_blocks.0.0.weight"] = torch.cat([first, torch.zeros_like(first)], 1)
    state["input_blocks.0.0.weight"][:, 3:6] = 0.5 * first
    torch.save({f"module.{name}": x for name, x in state.items()}, path)
    net = UNet(3, **case["network"], image_channels=3)
    net.load_state_dict(guided_diffusion.read(net, path, legacy=True).model)
    x, low, noise = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16), torch.tensor([3.0, 700.0])
    torch.testing.assert_close(net(x, noise, low), plain(x + 0.5 * low, noise), rtol=1e-4, atol=1e-4)


def test_heads_are_named_and_changed(tmp_path):
    """The file says nothing of heads: 2 of 16 channels and 4 of 8 have the same tensors."""
    case, path = CASES["iddpm"], tmp_path / "model.pt"
    torch.save(weights(case["tensors"]), path)
    outputs = []
    for heads in (dict(head_channels=8), dict(head_channels=None, heads=2)):
        net = UNet(3, **case["network"] | heads)
        read = guided_diffusion.read(net, path, legacy=True)
        number = 4 if heads.get("head_channels") else 2
        assert read.notes == (f"attention: {number} heads (num_heads, num_head_channels), legacy order",)
        net.load_state_dict(read.model)
        outputs.append(net(images().float(), torch.tensor([3.0, 700.0])))
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3
