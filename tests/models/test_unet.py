"""What is specific to the U-Net: sizes, skip connections, parameter count, argument errors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from score_diffusion.models import PRESETS, UNet

Randomize = Callable[[nn.Module], nn.Module]


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ((1, 8, 8), {}),
        ((1, 16, 12), {}),
        ((1, 28, 28), {"multipliers": (1, 2, 2), "attention_levels": (1, 2)}),
        ((3, 32, 32), {"multipliers": [2, 1, 3], "attention_levels": [2], "blocks_per_level": 1}),
        ((2, 9, 11), {"multipliers": (1,), "attention_levels": ()}),
        ((1, 8, 16), {"multipliers": (1, 1, 1, 1), "attention_levels": ()}),
    ],
)
def test_sizes(shape: tuple[int, ...], arguments: dict[str, Any], randomize: Randomize) -> None:
    net = randomize(UNet(shape[0], channels=8, **arguments))
    x = torch.randn(2, *shape)
    out = net(x, torch.zeros(2))
    assert out.shape == x.shape
    assert out.isfinite().all()
    assert out.abs().max() > 0


def test_parameter_count_closed_form() -> None:
    c, images = 8, 3
    e = 4 * c

    def conv(i: int, o: int, k: int) -> int:
        return i * o * k * k + o

    def linear(i: int, o: int) -> int:
        return i * o + o

    def residual(i: int, o: int) -> int:
        return 2 * i + conv(i, o, 3) + linear(e, 2 * o) + conv(o, o, 3) + (0 if i == o else conv(i, o, 1))

    def attention(w: int) -> int:
        return 2 * w + linear(w, 3 * w) + linear(w, w)

    expected = linear(c, e) + linear(e, e) + conv(images, c, 3)
    expected += residual(c, c) + conv(c, c, 3) + residual(c, 2 * c) + attention(2 * c)  # encoder
    expected += 2 * residual(2 * c, 2 * c) + attention(2 * c)  # middle
    expected += residual(2 * c + 2 * c, 2 * c) + residual(2 * c + c, 2 * c) + 2 * attention(2 * c)  # decoder
    expected += conv(2 * c, 2 * c, 3) + residual(2 * c + c, c) + residual(c + c, c)
    expected += 2 * c + conv(c, images, 3)
    net = UNet(images, channels=c, multipliers=(1, 2), blocks_per_level=1, attention_levels=(1,))
    assert sum(p.numel() for p in net.parameters()) == expected


def test_a_condition_in_front_of_the_layers_shifts_their_input(randomize: Randomize) -> None:
    """It equals another bias of the first layer: W (e + c) + b = W e + (W c + b)."""
    shape = dict(channels=8, embedding_width=20, embedding_dim=12)
    net = randomize(UNet(1, **shape, num_classes=3, condition_first=True)).eval()
    plain = UNet(1, **shape).eval()
    state = net.state_dict()
    row = state.pop("condition.label.weight")[2]
    layer = net.embedding.layers[0]
    assert layer.weight.shape == (20, 12) and row.shape == (12,)
    state["embedding.layers.0.bias"] = layer.bias + layer.weight @ row
    plain.load_state_dict(state)
    x, noise = torch.randn(2, 1, 8, 8), torch.tensor([-1.0, 2.0])
    torch.testing.assert_close(net(x, noise, torch.tensor([2, 2])), plain(x, noise))


def test_presets_have_the_published_sizes() -> None:
    """score_sde_pytorch's own counts of DDPM and DDPM++, diffusers' of google/ddpm-cifar10-32."""
    published = {
        "cifar10_ddpm": 35_218_947,
        "cifar10_ddpm_ho": 35_746_307,
        "cifar10_ddpmpp": 61_804_419,
    }
    with torch.device("meta"):
        for name, count in published.items():
            assert sum(p.numel() for p in UNet(3, **PRESETS[name]).parameters()) == count


def test_ddpm_initialization() -> None:
    """Uniform with variance 1/(fan average), a tenth of it for projections; biases and last layers zero."""
    net = UNet(3, **{**PRESETS["cifar10_ddpm"], "channels": 32})
    block = net.encoder[1][0]
    for layer, variance in (
        (block.residual.conv1, 2 / (9 * (32 + 64))),
        (block.residual.scale_shift, 2 / (128 + 64)),
        (block.residual.shortcut, 0.1 * 2 / (32 + 64)),
    ):
        assert layer.weight.var().item() == pytest.approx(variance, rel=0.1)
        assert layer.weight.abs().max().item() == pytest.approx((3 * variance) ** 0.5, rel=0.01)  # uniform
        assert not layer.bias.any()
    assert not net.conv_out.weight.any() and not block.attention.project.weight.any()


@pytest.mark.slow
@pytest.mark.parametrize("pyramid", ["none", "skip", "residual"])
@pytest.mark.parametrize("combine", ["sum", "cat"])
@pytest.mark.parametrize("filter", ["box", "fir"])
@pytest.mark.parametrize("size", [(16, 24), (40,), (8, 8, 16)])
def test_pyramids_in_every_dimension(
    pyramid: str, combine: str, filter: str, size: tuple[int, ...], randomize: Randomize
) -> None:
    """Without the encoder's first convolution, the input reaches the output only through the pyramids."""
    options = dict(input_pyramid=pyramid, output_pyramid=pyramid, combine=combine, filter=filter)
    style = dict(modulation="shift", resampling="biggan", dims=len(size))
    net = randomize(UNet(2, 8, (1, 2, 2), 1, (2,), 2, **style, **options)).double()
    x, noise = torch.randn(2, 2, *size).double(), torch.zeros(2).double()
    out = net(x, noise)
    assert out.shape == x.shape
    torch.nn.init.zeros_(net.conv_in.weight)
    changed = (net(x, noise) - net(x + torch.randn_like(x), noise)).abs().max()
    assert (changed > 1e-4) if pyramid != "none" else (changed < 1e-12)


def test_the_output_depends_on_the_whole_image_and_most_on_its_neighbourhood(randomize: Randomize) -> None:
    net = randomize(UNet(1, channels=16)).double()
    x = torch.randn(1, 1, 16, 16, dtype=torch.float64, requires_grad=True)
    net(x, torch.zeros(1, dtype=torch.float64))[0, 0, 0, 0].backward()
    influence = x.grad[0, 0].abs()
    assert (influence > 0).all()  # attention reaches the far corner
    assert influence[:3, :3].max() > 3 * influence[3:, 3:].max()  # skip connections favour neighbours


def test_skip_connections_carry_full_resolution(randomize: Randomize) -> None:
    """Without the coarser level, the output still depends on x through the stack."""
    net = randomize(UNet(1, channels=16, attention_levels=()))
    x, noise = torch.randn(2, 1, 8, 8), torch.zeros(2)
    for up in net.upsample:
        torch.nn.init.zeros_(up.conv.weight)
    out = net(x, noise)
    assert (out - net(x + 0.1 * torch.randn_like(x), noise)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 0}, "must be at least 1, got in_channels=0"),
        ({"channels": 0}, "must be at least 1, got in_channels=1, channels=0"),
        ({"blocks_per_level": 0}, "blocks_per_level=0"),
        ({"channels": 17}, "must be even and at least 4, got 17"),
        ({"multipliers": (), "attention_levels": ()}, r"multipliers must be one or more .* got \(\)"),
        ({"multipliers": (1, 0)}, r"multipliers must be one or more .* got \(1, 0\)"),
        ({"attention_levels": (2,)}, r"attention_levels must lie in 0\.\.1 for 2 multipliers, got \(2,\)"),
        ({"attention_levels": (-1,)}, r"attention_levels must lie in 0\.\.1 for 2 multipliers, got \(-1,\)"),
        ({"heads": 3}, "heads must divide the 32 channels"),
        ({"heads": 0}, "heads must divide the 32 channels"),
        ({"head_channels": 12}, "head_channels must divide the 32 channels of an attention block, got 12"),
        ({"head_channels": 0}, "head_channels must divide the 32 channels"),
        ({"num_classes": -1, "token_dim": -2}, "0 for none or positive, got num_classes=-1 and token_dim=-2"),
        ({"embedding": "none"}, "embedding must be one of sinusoidal, sinusoidal_adm, fourier, got 'none'"),
        ({"dropout": 1.5}, "dropout probability"),
        ({"modulation": "film"}, "modulation must be one of scale_shift, shift, got 'film'"),
        ({"filter": "sinc"}, "filter must be one of box, fir, got 'sinc'"),
        ({"resampling": "pool"}, "resampling must be one of conv, conv_asymmetric, residual, biggan, got"),
        ({"dims": 4}, "dims must be one of 1, 2, 3, got 4"),
        ({"norm_eps": 0.0}, "norm_eps must be positive, got 0.0"),
        ({"norm_groups": 5}, "norm_groups must divide the 16 channels of a norm, got 5"),
        ({"input_pyramid": "sum"}, "input_pyramid must be one of none, skip, residual, got 'sum'"),
        ({"output_pyramid": "sum"}, "output_pyramid must be one of none, skip, residual, got 'sum'"),
        ({"combine": "mean"}, "combine must be one of sum, cat, got 'mean'"),
        ({"decoder_attention": "all"}, "decoder_attention must be one of block, level, got 'all'"),
        ({"initialization": "xavier"}, "initialization must be one of torch, ddpm, got 'xavier'"),
        ({"embedding_scale": -1.0}, "the scale of a sinusoidal embedding must be positive, got -1.0"),
    ],
)
def test_argument_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(**{"in_channels": 1, "channels": 16} | arguments)


@pytest.mark.parametrize("size", [(2, 8), (8, 7), (8, 10), (30, 28)])
def test_resolution_errors(size: tuple[int, int]) -> None:
    net = UNet(1, channels=8, multipliers=(1, 1, 1), attention_levels=())
    with pytest.raises(ValueError, match=f"divisible by 4 for 3 levels, got {size[0]} x {size[1]}"):
        net(torch.randn(2, 1, *size), torch.zeros(2))


@pytest.mark.parametrize("options", [{}, {"dropout": 0.3}, {"token_dim": 6}])
def test_recomputed_blocks_have_the_same_gradients(options: dict, randomize: Callable):
    net = randomize(UNet(1, 16, heads=2, **options))
    other = copy.deepcopy(net)
    other.recompute_blocks()
    x, noise = torch.randn(2, 1, 8, 8), torch.tensor([-1.0, 1.0])
    cond = {"tokens": torch.randn(2, 3, 6)} if options.get("token_dim") else None
    kept: dict[UNet, int] = {net: 0, other: 0}
    for each in (net, other):

        def count(tensor: torch.Tensor, each: UNet = each) -> torch.Tensor:
            kept[each] += tensor.nbytes
            return tensor

        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            out = each(x, noise, cond)
        out.square().sum().backward()
    for ours, again in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours.grad, again.grad)
    assert kept[other] < 0.5 * kept[net]
