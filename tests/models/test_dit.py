"""DiT against diffusers and the counts of the paper, and what is specific to it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from score_diffusion.models import DiT
from score_diffusion.models.dit import DIT_B, DIT_L, DIT_S, DIT_XL, sincos_positions
from score_diffusion.models.layers import zero_init

Randomize = Callable[[nn.Module], nn.Module]

SMALL = dict(patch=2, width=48, depth=2, heads=3)


def count(width: int, depth: int, patch: int, channels: int, out_channels: int, classes: int) -> int:
    """The number of weights, layer by layer."""
    W = width
    attention = (3 * W * W + 3 * W) + (W * W + W)
    mlp = (4 * W * W + 4 * W) + (4 * W * W + W)
    block = attention + mlp + (6 * W * W + 6 * W)
    embeddings = (256 * W + W) + (W * W + W) + (classes + 1) * W
    patches = channels * patch**2 * W + W
    out = (2 * W * W + 2 * W) + (W + 1) * patch**2 * out_channels
    return depth * block + embeddings + patches + out


@pytest.mark.parametrize(
    ("preset", "millions"), [(DIT_S, 33), (DIT_B, 130), (DIT_L, 458), (DIT_XL, 675)], ids="S B L XL".split()
)
def test_the_papers_networks_have_the_papers_size(preset: dict, millions: int) -> None:
    """Peebles & Xie (2023), Table 1: on latents of 4 channels, 1000 classes and a learned variance."""
    with torch.device("meta"):
        net = DiT(4, **preset, num_classes=1000, out_channels=8)
    total = sum(p.numel() for p in net.parameters())
    assert total == count(preset["width"], preset["depth"], preset["patch"], 4, 8, 1000)
    assert round(total / 1e6) == millions
    if millions == 675:  # the authors' code prints this; it counts the positions with the weights
        assert total + 256 * 1152 == 675_129_632


def diffusers_twin(net: DiT, size: int) -> nn.Module:
    """diffusers' DiT with the weights of one of ours."""
    diffusers = pytest.importorskip("diffusers")
    other = diffusers.DiTTransformer2DModel(
        num_attention_heads=net.blocks[0].heads,
        attention_head_dim=net.width // net.blocks[0].heads,
        in_channels=net.in_channels,
        out_channels=net.out_channels,
        num_layers=len(net.blocks),
        sample_size=size,
        patch_size=net.patch,
        num_embeds_ada_norm=net.num_classes,
        norm_eps=1e-6,
    ).eval()

    def copy(theirs: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
        theirs.weight.data.copy_(weight)
        if bias is not None:
            theirs.bias.data.copy_(bias)

    first, second = net.embedding.layers[0], net.embedding.layers[2]
    swapped = torch.cat([first.weight[:, 128:], first.weight[:, :128]], dim=1)  # their cosines come first
    copy(other.pos_embed.proj, net.patches.weight, net.patches.bias)
    for theirs, ours in zip(other.transformer_blocks, net.blocks, strict=True):
        copy(theirs.norm1.emb.timestep_embedder.linear_1, swapped, first.bias)
        copy(theirs.norm1.emb.timestep_embedder.linear_2, second.weight, second.bias)
        copy(theirs.norm1.emb.class_embedder.embedding_table, net.label.weight, None)
        copy(theirs.norm1.linear, ours.modulation.weight, ours.modulation.bias)
        parts = zip(ours.qkv.weight.chunk(3), ours.qkv.bias.chunk(3), strict=True)
        for name, (weight, bias) in zip(("to_q", "to_k", "to_v"), parts, strict=True):
            copy(getattr(theirs.attn1, name), weight, bias)
        copy(theirs.attn1.to_out[0], ours.project.weight, ours.project.bias)
        copy(theirs.ff.net[0].proj, ours.mlp[0].weight, ours.mlp[0].bias)
        copy(theirs.ff.net[2], ours.mlp[2].weight, ours.mlp[2].bias)
    copy(other.proj_out_1, net.modulation_out.weight, net.modulation_out.bias)
    copy(other.proj_out_2, net.linear_out.weight, net.linear_out.bias)
    return other


def test_it_equals_diffusers(randomize: Randomize) -> None:
    """With a learned variance, conditioned on steps, on classes and on no class."""
    arguments = dict(num_classes=10, out_channels=6, embedding="sinusoidal", embedding_scale=1.0)
    net = randomize(DiT(3, **SMALL, **arguments)).eval()
    other = diffusers_twin(net, size=8)
    x, steps, label = torch.randn(4, 3, 8, 8), torch.tensor([0, 3, 500, 999]), torch.tensor([0, 9, -1, 4])
    with torch.no_grad():
        ours = net(x, steps.float(), label)
        theirs = other(x, steps, torch.where(label < 0, 10, label)).sample
    assert ours.shape == theirs.shape == (4, 6, 8, 8)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_positions_by_hand() -> None:
    """Columns in the first half of the features, rows in the second, as in the authors' code."""
    positions = sincos_positions((3, 5), 16, torch.zeros(1, dtype=torch.float64)).reshape(3, 5, 16)
    omega = 10000.0 ** -(np.arange(4) / 4)
    for row in range(3):
        for column in range(5):
            halves = [f(n * omega) for n in (column, row) for f in (np.sin, np.cos)]
            np.testing.assert_allclose(positions[row, column].numpy(), np.concatenate(halves), atol=1e-12)


def test_positions_matter_and_patches_do_not_overlap(randomize: Randomize) -> None:
    """Without attention and positions, the output of a token depends only on its own patch."""
    net = randomize(DiT(2, **SMALL)).eval()
    x, noise = torch.randn(1, 2, 2, 2).repeat(1, 1, 3, 4), torch.zeros(1)
    assert (net(x, noise)[:, :, :2, :2] - net(x, noise)[:, :, 2:4, 4:6]).abs().max() > 1e-3
    for block in net.blocks:
        nn.init.zeros_(block.project.weight)
    net.patches.weight.data.mul_(1e6)  # after the norm the positions are negligible
    out = net(x, noise)
    torch.testing.assert_close(out, out[:, :, :2, :2].repeat(1, 1, 3, 4), rtol=1e-3, atol=1e-4)
    changed = x.clone()
    changed[:, :, 2:4, 4:6] += 1
    moved = (net(changed, noise) - out).abs().amax((0, 1)) > 1e-3
    expected = torch.zeros(6, 8, dtype=torch.bool)
    expected[2:4, 4:6] = True
    assert torch.equal(moved, expected)


@pytest.mark.parametrize("shape", [(2, 10), (2, 4, 6, 8), (2, 12, 4)], ids=["1d", "3d", "2d"])
def test_images_of_any_dimension_and_aspect_ratio(shape: tuple[int, ...], randomize: Randomize) -> None:
    """The patches are put back in their places: without blocks, the last pixel depends only on its patch."""
    net = randomize(DiT(2, **SMALL, dims=len(shape) - 1)).double().eval()
    x = torch.randn(2, *shape, dtype=torch.float64)
    out = net(x, torch.zeros(2, dtype=torch.float64))
    assert out.shape == x.shape and out.isfinite().all()
    for block in net.blocks:
        zero_init(block.modulation)
    pixel = (0, 1, *(n - 1 for n in shape[1:]))
    x.requires_grad_()
    net(x, torch.zeros(2, dtype=torch.float64))[pixel].backward()
    touched = x.grad.abs() > 0
    patch = (slice(0, 1), slice(None), *(slice(n - 2, n) for n in shape[1:]))
    assert touched[patch].all() and touched.sum() == touched[patch].sum()


def test_no_class_is_a_class_of_its_own(randomize: Randomize) -> None:
    net = randomize(DiT(1, **SMALL, num_classes=5)).eval()
    x, noise = torch.randn(1, 1, 8, 8).expand(6, 1, 8, 8), torch.zeros(6)
    label = torch.tensor([0, 1, 2, 3, 4, -1])
    out = net(x, noise, label)
    assert len(out.flatten(1).unique(dim=0)) == 6
    torch.testing.assert_close(net(x, noise, {"label": label}), out)
    torch.testing.assert_close(net(x, noise)[0], out[5])
    torch.testing.assert_close(net(x, noise, {})[0], out[5])


def test_tokens_are_read_as_torchs_attention_reads_them(randomize: Randomize) -> None:
    """The cross-attention of a block against torch's, whose option for the extra token is `add_zero_attn`."""
    cross = randomize(DiT(1, **SMALL, token_dim=10)).double().blocks[0].cross
    other = nn.MultiheadAttention(
        48, 3, add_zero_attn=True, kdim=10, vdim=10, batch_first=True, dtype=torch.float64
    )
    key, value = cross.kv.weight.chunk(2)
    for theirs, ours in (
        (other.q_proj_weight, cross.q.weight),
        (other.k_proj_weight, key),
        (other.v_proj_weight, value),
        (other.in_proj_bias, torch.cat([cross.q.bias, cross.kv.bias])),
        (other.out_proj.weight, cross.project.weight),
        (other.out_proj.bias, cross.project.bias),
    ):
        theirs.data.copy_(ours)
    h, tokens = torch.randn(2, 5, 48).double(), torch.randn(2, 4, 10).double()
    mask = torch.tensor([[True, True, False, True], [False] * 4])
    normed = cross.norm_tokens(tokens)
    expected, _ = other(h, normed, normed, key_padding_mask=~mask)
    torch.testing.assert_close(cross(h.transpose(1, 2), tokens, mask).transpose(1, 2), expected)


def test_tokens_change_nothing_at_first_and_dropped_ones_never() -> None:
    """The cross-attention of every block starts at 0; without tokens it reads the extra one only."""
    net = DiT(1, **SMALL, vector_dim=6, token_dim=10).eval()
    h, tokens, mask = torch.randn(2, 4, 48), torch.randn(2, 3, 10), torch.ones(2, 3, dtype=torch.bool)
    assert all((block.cross(h.mT, tokens, mask) == 0).all() for block in net.blocks)
    torch.manual_seed(0)
    for p in net.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    x, noise, vector = torch.randn(2, 1, 4, 4), torch.zeros(2), torch.randn(2, 6)
    null, out = net(x, noise), net(x, noise, {"tokens": tokens, "vector": vector})
    for cond in ({"tokens": tokens}, {"vector": vector}):
        assert (net(x, noise, cond) - null).abs().amax((1, 2, 3)).min() > 1e-3
        assert (net(x, noise, cond) - out).abs().amax((1, 2, 3)).min() > 1e-3
    dropped = {"tokens": tokens, "mask": torch.tensor([[True, False, True], [False] * 3]), "vector": vector}
    dropped["vector"] = vector * torch.tensor([[1.0], [0.0]])
    torch.testing.assert_close(net(x, noise, dropped)[1], null[1])
    shorter = {"tokens": tokens[:1, [0, 2]], "vector": vector[:1]}
    torch.testing.assert_close(net(x, noise, dropped)[:1], net(x[:1], noise[:1], shorter))


def test_dropout_only_in_training(randomize: Randomize) -> None:
    net = randomize(DiT(1, **SMALL, dropout=0.5))
    x, noise = torch.randn(2, 1, 4, 4), torch.zeros(2)
    assert not torch.equal(net(x, noise), net(x, noise))
    net.eval()
    assert torch.equal(net(x, noise), net(x, noise))


@pytest.mark.slow
def test_autocast_and_one_graph(randomize: Randomize) -> None:
    """bfloat16 autocast is within 2e-2; compiled into one graph, outputs and gradients are the same."""
    net = randomize(DiT(3, **SMALL | {"depth": 1}, num_classes=5, token_dim=10))
    cond = {"label": torch.tensor([0, 1, -1, 4]), "tokens": torch.randn(4, 3, 10)}
    inputs = torch.randn(4, 3, 12, 8), torch.linspace(-6, 4, 4), cond
    exact = net(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(*inputs)
    assert (rounded - exact).norm() < 2e-2 * exact.norm()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)(*inputs)
    torch.testing.assert_close(compiled, exact, rtol=1e-5, atol=1e-5)
    gradients = [
        torch.autograd.grad(out.square().mean(), list(net.parameters())) for out in (compiled, exact)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_initialization_is_the_authors() -> None:
    net = DiT(4, **DIT_S, num_classes=1000)
    W = 384
    limits = {net.blocks[3].qkv: math.sqrt(6 / (4 * W)), net.patches: math.sqrt(6 / (16 + W))}
    for layer, limit in limits.items():
        assert 0.99 * limit < layer.weight.abs().max() <= limit
    for layer in (net.label, net.embedding.layers[0], net.embedding.layers[2]):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_errors() -> None:
    net, x, noise = DiT(1, **SMALL, num_classes=3), torch.zeros(2, 1, 4, 4), torch.zeros(2)
    for call, message in (
        (
            lambda: net(torch.zeros(2, 1, 5, 4), noise),
            "each side of x must be divisible by the patch, 2, got 5 x 4",
        ),
        (lambda: net(x, noise, torch.zeros(3).long()), r"label of cond must have shape \(2,\), got \(3,\)"),
        (lambda: net(x, noise, torch.zeros(2)), "label of cond must be int64, got torch.float32"),
        (lambda: net(x, noise, torch.tensor([0, 3])), "label of cond must lie in 0..2, or be -1"),
        (
            lambda: net(x, noise, {"tokens": x}),
            r"cond must be None or a dict with keys from \(label\), got \(tokens\)",
        ),
        (lambda: DiT(1, **SMALL, token_dim=-1), "token_dim must not be negative, got 0, 0, -1"),
        (lambda: DiT(1, **SMALL, dims=4), "dims must be one of 1, 2, 3, got 4"),
        (lambda: DiT(1, depth=0), "depth must be at least 1, .* depth=0"),
        (lambda: DiT(1, width=50, heads=5), "divisible by heads and by 4, got width=50 and heads=5"),
        (lambda: DiT(1, mlp_ratio=0), "mlp_ratio must be positive, got mlp_ratio=0"),
        (lambda: DiT(1, num_classes=-1), "num_classes, .* must not be negative, got -1, 0, 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match=re.escape("x must have shape (B, C=1, L), got (2, 1, 4, 4)")):
        DiT(1, **SMALL, dims=1)(x, noise)
