"""NCSNv2's .pth files: the same scores, from both programs that write them."""

from __future__ import annotations

import math

import pytest
import torch
from ml_collections import ConfigDict

from score_diffusion.models import NCSNv2
from score_diffusion.run.build import build_sde
from score_diffusion.run.checkpoints.formats import ncsnv2
from score_diffusion.run.errors import UserError
from score_diffusion.sde_lib import ScoreModel
from tests.run.checkpoints.formats.restated_ncsnv2 import NAMES, Network


def peer(kind="NCSNv2", **arguments):
    torch.manual_seed(0)
    return Network(kind, **arguments)


def states(net, ema=True):
    """What ncsnv2 saves for a network wrapped in DataParallel."""
    model = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    average = {name: 0.5 * parameter.data for name, parameter in net.named_parameters()}
    return [model, {"state": {}, "param_groups": []}, 12, 3456, *([average] if ema else [])]


def ours(path, size=(16, 16)):
    """A score model of a file, in float64, and the contents of the file."""
    description = ncsnv2.describe(path, size)
    net = NCSNv2(description.image_shape[0], **description.network)
    weights = ncsnv2.read(net, path)
    net.load_state_dict(weights.model)
    sde = build_sde(ConfigDict(dict(description.sde)))
    return ScoreModel(net, sde, **description.score).double().eval(), description, weights


@pytest.mark.parametrize("kind", NAMES)
def test_scores_are_equal(kind, tmp_path):
    """∇ log p of data in [-1, 1] is half of that in [0, 1]."""
    net = peer(kind)
    torch.save(states(net), tmp_path / "checkpoint.pth")
    size = 64 if kind == "NCSNv2Deepest" else 32
    model, description, weights = ours(tmp_path / "checkpoint.pth", (size, size))
    assert description.sde == dict(name="vesde", sigma_min=0.1, sigma_max=100.0, N=4)
    assert weights.step == 3456
    t, x = model.sde.discrete_times().flip(0), torch.rand(4, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        expected = net.double()(x, torch.arange(4)) / 2
        found = model(2 * x - 1, t)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_averages_by_name_and_in_order(tmp_path):
    """ncsnv2 keeps its average by name, score_sde_pytorch as a list in the order of the weights."""
    net = peer()
    torch.save(states(net), tmp_path / "list.pth")
    model, *_, step, average = states(net)
    content = {
        "model": model,
        "ema": {"shadow_params": list(average.values())},
        "step": step,
        "optimizer": {},
    }
    torch.save(content, tmp_path / "dict.pth")
    torch.save(states(net, ema=False), tmp_path / "no_average.pth")
    (_, _, a), (_, _, b), (_, _, c) = (
        ours(tmp_path / f"{name}.pth") for name in ("list", "dict", "no_average")
    )
    for name in a.model:
        assert torch.equal(a.ema[name], b.ema[name]) and torch.equal(a.model[name], b.model[name])
        assert torch.equal(c.ema[name], c.model[name])
    assert torch.equal(a.ema["conv_in.weight"], 0.5 * a.model["conv_in.weight"])
    assert "no moving average" in c.notes[0] and not a.notes


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMES)
def test_rules_read_back_what_they_write(kind, tmp_path):
    torch.save(states(peer(kind)), tmp_path / "checkpoint.pth")
    description = ncsnv2.describe(tmp_path / "checkpoint.pth", (16, 16))
    net = NCSNv2(3, **description.network)
    rules = ncsnv2.rules(net)
    written = rules.write(net.state_dict())
    assert {name: x.shape for name, x in written.items()} == {
        name: x.shape for name, x in peer(kind).named_parameters()
    }
    for name, tensor in rules.read(written, "there").items():
        torch.testing.assert_close(tensor, net.state_dict()[name])


def test_refusals(tmp_path):
    path = tmp_path / "checkpoint.pth"

    def refused(content, match):
        torch.save(content, path)
        with pytest.raises(UserError, match=match):
            ours(path)

    model, optimizer, epoch, step, average = states(peer())
    refused([model, optimizer], "expected a list of state_dict, optimizer, epoch, step and average")
    refused({"model": model}, "expected a list of state_dict")
    refused(
        [[1], optimizer, epoch, step, average], "first part must be a dictionary of tensors, it is a list"
    )
    refused([model, optimizer, epoch, -5, average], "step must be a number of training steps of 0 or more")
    refused([model, optimizer, epoch, math.nan, average], "step must be a number")
    refused([model, optimizer, epoch, step, None], "its average must be a dictionary of tensors")
    refused([model, optimizer, epoch, step, {**average, "end_conv.bias": torch.full((3,), math.nan)}], "NaN")
    refused([{**model, "module.sigmas": torch.tensor([5.0, 4.0, 0.1])}, *states(peer())[1:]], "not geometric")
    refused(
        [{**model, "module.sigmas": torch.tensor([1.0, 2.0, 4.0])}, *states(peer())[1:]], "not descending"
    )
    refused([{**model, "module.sigmas": torch.zeros(3)}, *states(peer())[1:]], "table of positive numbers")
    for missing in ("module.end_conv.weight", "module.res2.1.conv2.weight"):
        refused([{k: v for k, v in model.items() if k != missing}, optimizer, epoch, step], "no convolution")
    refused(
        [{k: v for k, v in model.items() if ".res4" not in k}, optimizer, epoch, step], "expected tensors of"
    )
    conditional = {f"{name}.embed.weight": torch.zeros(1) for name in ("module.res1", "module.res9")}
    refused([conditional, optimizer, epoch, step], "is a network of NCSN")
