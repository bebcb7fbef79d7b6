"""The rules between tensors: identities that hold for any weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from score_diffusion.run.checkpoints.formats.weight_maps import ROW_ORDERS, Rules
from score_diffusion.run.errors import UserError


def read(rules: Rules, state: dict) -> dict:
    return rules.read(state, "the file")


@pytest.mark.parametrize("order", ROW_ORDERS)
def test_rows_of_attention_are_brought_into_order(order: str):
    """Row (j, h, i) of ours is q, k or v number j of head h, channel i."""
    heads, d = 2, 3
    net = nn.ModuleDict({"qkv": nn.Linear(6, 18)})
    rules = Rules(net)
    rules.stacked_qkv("qkv", "theirs", heads, order)
    j, h, i = torch.meshgrid(torch.arange(3), torch.arange(heads), torch.arange(d), indexing="ij")
    numbers = (100 * j + 10 * h + i).float()
    axes = {"qkv": 0, "head": 1, "d": 2}
    theirs = numbers.permute(*(axes[name] for name in order.split())).flatten()
    found = read(rules, {"theirs.weight": theirs[:, None, None].expand(18, 6, 1), "theirs.bias": theirs})
    assert torch.equal(found["qkv.bias"], numbers.flatten())
    assert torch.equal(found["qkv.weight"], numbers.flatten()[:, None].expand(18, 6))


def test_a_modulated_norm_is_folded_into_the_noise():
    """(γ n + β)(1 + s) + b = (1 + s') n + b' for any n, s and b."""
    net = nn.ModuleDict({"linear": nn.Linear(4, 6)})
    rules = Rules(net)
    rules.modulated_norm("linear", "norm", "emb")
    gamma, beta, weight, bias = torch.randn(3), torch.randn(3), torch.randn(6, 4), torch.randn(6)
    state = {"norm.weight": gamma, "norm.bias": beta, "emb.weight": weight, "emb.bias": bias}
    found, emb, n = read(rules, state), torch.randn(5, 4), torch.randn(5, 3)
    s, b = F.linear(emb, weight, bias).chunk(2, 1)
    s_, b_ = F.linear(emb, found["linear.weight"], found["linear.bias"]).chunk(2, 1)
    torch.testing.assert_close((1 + s_) * n + b_, (gamma * n + beta) * (1 + s) + b)


def test_sines_and_cosines_change_places():
    net = nn.ModuleDict({"linear": nn.Linear(4, 2)})
    rules = Rules(net)
    rules.sine_cosine("linear", "theirs")
    weight, sines, cosines = torch.randn(2, 4), torch.randn(5, 2), torch.randn(5, 2)
    found = read(rules, {"theirs.weight": weight, "theirs.bias": torch.zeros(2)})["linear.weight"]
    torch.testing.assert_close(
        torch.cat([sines, cosines], 1) @ found.T, torch.cat([cosines, sines], 1) @ weight.T
    )


def test_misfits_are_named():
    net = nn.ModuleDict({"a": nn.Linear(2, 3)})
    rules = Rules(net)
    rules.layer("a", "b")
    weight, bias = torch.zeros(3, 2), torch.zeros(3)
    for state, match in (
        ({"b.weight": weight}, "1 tensors are missing, such as b.bias"),
        ({"b.weight": weight, "b.bias": bias, "c": bias}, "1 are not the network's, such as c"),
        (
            {"b.weight": weight.T, "b.bias": bias},
            r"b.weight makes a tensor of shape \(2, 3\), a.weight has \(3, 2\)",
        ),
        ({"b.weight": weight.int(), "b.bias": bias}, "b.weight has dtype torch.int32"),
        ({"b.weight": weight + torch.inf, "b.bias": bias}, "the file holds NaN or infinity in b.weight"),
    ):
        with pytest.raises(UserError, match=match):
            read(rules, state)
    half = read(rules, {"b.weight": weight.half(), "b.bias": bias.double()})
    assert {tensor.dtype for tensor in half.values()} == {torch.float32}
