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
    net.load_state_dict(guided_diffusion.read(net, tmp_path / "model.pt", case["legacy"]))
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
