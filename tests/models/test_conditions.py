"""Conditions: each kind changes the output, a missing one is the null condition, errors are sentences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from score_diffusion.models import MLP, DiT, UNet
from score_diffusion.models.conditions import ConditionEmbedding, drop_conditions, null_condition

Randomize = Callable[[nn.Module], nn.Module]

CONDITIONS = {
    "num_classes": ("label", torch.tensor([0, 3])),
    "vector_dim": ("vector", torch.randn(2, 6)),
    "token_dim": ("tokens", torch.randn(2, 4, 5)),
    "image_channels": ("image", torch.randn(2, 2, 8, 8)),
}
SIZES = {"num_classes": 4, "vector_dim": 6, "token_dim": 5, "image_channels": 2}


@pytest.mark.parametrize("argument", CONDITIONS)
def test_each_kind_changes_the_output_and_may_be_missing(argument: str, randomize: Randomize) -> None:
    kind, value = CONDITIONS[argument]
    net = randomize(UNet(1, channels=16, **{argument: SIZES[argument]}))
    x, noise = torch.randn(2, 1, 8, 8), torch.zeros(2)
    out = net(x, noise, {kind: value})
    assert torch.equal(net(x, noise, value), out)  # the only kind: the tensor itself
    other = value.flip(0)
    assert (net(x, noise, other) - out).abs().max() > 1e-3
    if argument == "image_channels":
        with pytest.raises(ValueError, match="cond must have an image"):
            net(x, noise)
    else:
        nothing = {"num_classes": torch.tensor([-1, -1]), "vector_dim": torch.zeros(2, 6)}.get(argument)
        missing = net(x, noise)
        assert (missing - out).abs().max() > 1e-3
        if nothing is not None:
            assert torch.equal(net(x, noise, nothing), missing)


def test_a_dropped_condition_is_the_null_condition(randomize: Randomize) -> None:
    """Of all kinds together, in the rows that are dropped only."""
    net = randomize(UNet(1, channels=16, **SIZES))
    x, noise, cond = torch.randn(2, 1, 8, 8), torch.zeros(2), dict(CONDITIONS.values())
    full, null = net(x, noise, cond), net(x, noise, {"image": torch.zeros(2, 2, 8, 8)})
    out = net(x, noise, drop_conditions(cond, torch.tensor([False, True])))
    torch.testing.assert_close(out, torch.stack([full[0], null[1]]), rtol=0, atol=1e-6)
    assert (full - null).abs().amin(0).max() > 1e-3
    spelled = null_condition(net.condition_sizes, (1, 8, 8))
    assert set(spelled) == set(net.condition_sizes)
    repeated = {kind: value.expand(2, *value.shape[1:]) for kind, value in spelled.items()}
    torch.testing.assert_close(net(x, noise, repeated), null, rtol=0, atol=1e-6)


def test_masked_tokens_are_ignored(randomize: Randomize) -> None:
    net = randomize(UNet(1, channels=16, token_dim=5))
    x, noise, tokens = torch.randn(2, 1, 8, 8), torch.zeros(2), torch.randn(2, 4, 5)
    mask = torch.tensor([[True, True, False, False], [False] * 4])
    out = net(x, noise, {"tokens": tokens, "mask": mask})
    changed = tokens + torch.randn_like(tokens) * ~mask[..., None]
    assert torch.allclose(net(x, noise, {"tokens": changed, "mask": mask}), out, atol=1e-6)
    assert torch.allclose(out[1], net(x, noise)[1], atol=1e-6)  # all masked: none
    assert torch.allclose(out[:1], net(x[:1], noise[:1], {"tokens": tokens[:1, :2]}), atol=1e-5)


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        ({"label": torch.zeros(3).long()}, r"the label of cond must have shape \(2,\), got \(3,\)"),
        ({"label": torch.zeros(2)}, "the label of cond must be int64, got torch.float32"),
        ({"label": torch.tensor([0, 4])}, r"label of cond must lie in 0..3, or be -1 .*, got \[0, 4"),
        ({"vector": torch.zeros(2, 5)}, r"the vector of cond must have shape \(2, 6\), got \(2, 5\)"),
        ({"tokens": torch.zeros(2, 6)}, r"the tokens of cond must have shape \(2, L, 5\), got \(2, 6\)"),
        ({"mask": torch.zeros(2, 6, dtype=torch.bool)}, r"the mask of cond must have shape \(B, L\)"),
        (
            {"class": torch.zeros(2)},
            r"cond must be None or a dict with keys from \(label, vector, tokens\), got \(class\)",
        ),
        (torch.zeros(2), r"None or a dict with keys from \(label, vector, tokens\), got a Tensor"),
        (3, "cond must be None, a Tensor or a dict of Tensors, got int"),
    ],
)
def test_condition_errors(cond: object, message: str) -> None:
    net = UNet(1, channels=16, num_classes=4, vector_dim=6, token_dim=5)
    with pytest.raises(ValueError, match=message):
        net(torch.zeros(2, 1, 8, 8), torch.zeros(2), cond)


def test_the_condition_embedding_adds_a_row_and_a_projection() -> None:
    embed = ConditionEmbedding(num_classes=3, vector_dim=2, width=4)
    emb, label, vector = torch.randn(2, 4), torch.tensor([2, -1]), torch.randn(2, 2)
    expected = emb + vector @ embed.vector.weight.T + embed.vector.bias
    expected[0] += embed.label.weight[2]
    torch.testing.assert_close(embed(emb, {"label": label, "vector": vector}), expected)


def test_a_network_without_conditions_refuses_them() -> None:
    for cond, given in ((torch.zeros(2), "a Tensor"), ({"label": torch.zeros(2).long()}, r"\(label\)")):
        with pytest.raises(
            ValueError, match=f"cond must be None, because .* takes no condition, got {given}"
        ):
            MLP(2)(torch.zeros(2, 2), torch.zeros(2), cond)


@pytest.mark.parametrize(
    "make",
    [
        lambda: UNet(1, 16, num_classes=3, vector_dim=4, token_dim=5),
        lambda: DiT(1, patch=2, width=32, depth=1, heads=4, num_classes=3, vector_dim=4, token_dim=5),
    ],
)
def test_every_parameter_has_a_gradient_under_the_null_condition(make: Callable[[], nn.Module]) -> None:
    """DistributedDataParallel waits for the gradient of each."""
    net = make()
    net(torch.randn(4, 1, 8, 8), torch.linspace(-7, 6, 4)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
