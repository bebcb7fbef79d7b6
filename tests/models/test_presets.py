"""Every preset at an eighth of its width: gradients, precisions, saving, compilation."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from score_diffusion.models import PRESETS, UNet
from score_diffusion.models.layers import ResidualBlock, Style


def small(name: str, **changes: object) -> UNet:
    """The preset with an eighth of its width, one block per level and no dropout."""
    options = dict(PRESETS[name])
    options["channels"] = max(16, options["channels"] // 8)
    options["blocks_per_level"] = 1
    options["dropout"] = 0.0
    if options.get("head_channels"):
        options["head_channels"] = 8
    if options.get("embedding_dim"):
        options["embedding_dim"] = 2 * options["channels"]
    if options.get("num_classes"):
        options["num_classes"] = 5
    return UNet(3, **{**options, **changes})


def inputs(net: UNet) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 32, 32, generator=generator)
    noise = torch.tensor([-2.0, 1.0])  # valid for all of them: steps or log σ
    return x, noise, torch.tensor([1, -1]) if net.condition_sizes else None


def without_zeros(net: UNet) -> UNet:
    """The network with Xavier weights in the layers that start at zero."""
    for module in net.modules():
        if getattr(module, "starts_at_zero", False):
            nn.init.xavier_uniform_(module.weight)
    return net


@pytest.fixture(params=PRESETS)
def net(request: pytest.FixtureRequest) -> UNet:
    return without_zeros(small(request.param))


@pytest.mark.slow
def test_gradients_are_finite_everywhere(net: UNet) -> None:
    x, noise, cond = inputs(net)
    net(x, noise, cond).square().mean().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 0, name


@pytest.mark.slow
def test_float32_bfloat16_and_a_saved_copy(net: UNet, tmp_path: Path) -> None:
    x, noise, cond = inputs(net)
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(x.double(), noise.double(), cond)
        single = net(x, noise, cond)
        with torch.autocast("cpu", torch.bfloat16):
            half = net(x, noise, cond)
    scale = exact.square().mean().sqrt()
    assert (single - exact).square().mean().sqrt() < 1e-5 * scale
    assert (half.double() - exact).square().mean().sqrt() < 2e-2 * scale
    safetensors.torch.save_file(net.state_dict(), tmp_path / "net.safetensors")
    other = copy.deepcopy(net)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "net.safetensors"), strict=True)
    with torch.no_grad():
        assert torch.equal(other(x, noise, cond), single)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "levels"), [("cifar10_ncsnpp_ve", 2), ("digits", 1)])
def test_compiled_graphs_equal_eager(name: str, levels: int) -> None:
    """A network of each kind compiles into one graph, with the same outputs and gradients."""
    net = without_zeros(small(name, multipliers=(1, 2)[:levels], attention_levels=(levels - 1,)))
    x, noise, cond = inputs(net)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, noise, cond), net(x, noise, cond), rtol=1e-5, atol=1e-5)
    gradients = []
    for run in (net, compiled):
        net.zero_grad()
        run(x, noise, cond).square().mean().backward()
        gradients.append([p.grad for p in net.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_code_equals_eager() -> None:
    """The default compiler's code for a residual block that resamples by the filter."""
    style = Style(modulation="shift", resampling="biggan", filter="fir", rescale=True)
    block = ResidualBlock(8, 16, 12, style, "down")
    nn.init.xavier_uniform_(block.conv2.weight)
    h, emb = torch.randn(2, 8, 8, 8), torch.randn(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(block)(h, emb), block(h, emb), rtol=1e-5, atol=1e-5)
