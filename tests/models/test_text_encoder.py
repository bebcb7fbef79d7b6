from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from score_diffusion.models import MLP, DiT, TextConditioned, TextEncoder, UNet
from score_diffusion.models.conditions import drop_conditions, null_condition
from score_diffusion.samplers.guidance import null_condition as null_of

IDS = torch.tensor([[3, 5, 2, 0, 0], [3, 5, 2, 4, 0], [0] * 5, [5, 3, 2, 0, 0]])


def encoder() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(6, width=16, depth=2, heads=2).double()


def test_padding_changes_nothing():
    """Tokens and vector of a text are the same with any padding, and in any batch."""
    net = encoder()
    tokens, valid, vector = net(IDS)
    for row, length in enumerate((3, 4, 0, 3)):
        assert valid[row].tolist() == [k < length for k in range(5)]
        alone = net(IDS[row : row + 1, : max(length, 1)])
        torch.testing.assert_close(alone[0][0, :length], tokens[row, :length])
        torch.testing.assert_close(alone[2][0], vector[row])


def test_words_their_order_and_their_context_matter():
    tokens, _, vector = encoder()(IDS)
    assert (vector[0] - vector[3]).abs().max() > 1e-3  # the same words in another order
    assert (tokens[0, :3] - tokens[1, :3]).abs().max() > 1e-3  # a further word behind them
    assert torch.equal(vector[2], torch.zeros(16, dtype=torch.float64))


CASES = {
    "unet": lambda: UNet(1, channels=8, multipliers=(1,), attention_levels=(0,), token_dim=16, vector_dim=16),
    "unet_tokens": lambda: UNet(1, channels=8, multipliers=(1,), attention_levels=(0,), token_dim=16),
    "unet_class": lambda: UNet(
        1, channels=8, multipliers=(1,), attention_levels=(), num_classes=3, vector_dim=16
    ),
    "dit": lambda: DiT(1, width=32, depth=2, heads=2, token_dim=16, vector_dim=16),
}


def network(name: str) -> tuple[TextConditioned, Tensor, Tensor]:
    torch.manual_seed(1)
    net = TextConditioned(CASES[name](), TextEncoder(6, width=16, depth=1, heads=2)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))  # U-Nets start at 0
    return net, torch.randn(4, 1, 8, 8, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)


@pytest.mark.parametrize("name", CASES)
def test_a_text_without_words_is_the_null_condition(name: str):
    net, x, noise = network(name)
    out = net(x, noise, {"text": IDS})
    assert (out[0] - out[3]).abs().max() > 1e-4
    null = net(x, noise)
    torch.testing.assert_close(out[2], null[2])
    torch.testing.assert_close(null, net.net(x, noise))
    dropped = drop_conditions({"text": IDS}, torch.tensor([True, False, False, True]))
    torch.testing.assert_close(
        net(x, noise, dropped), torch.where(dropped["text"].any(1)[:, None, None, None], out, null)
    )
    assert torch.equal(null_of({"text": IDS})["text"], torch.zeros_like(IDS))
    torch.testing.assert_close(net(x[:1], noise[:1], null_condition(net.condition_sizes)), null[:1])


@pytest.mark.parametrize(
    "cond", [None, {"text": IDS}, {"text": torch.zeros_like(IDS)}], ids=["none", "text", "null"]
)
def test_every_weight_has_a_gradient(cond: dict | None):
    """With a text, without words and without any condition: DDP waits for the gradient of each."""
    net, x, noise = network("unet")
    net(x, noise, cond).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
    if cond and cond["text"].any():
        assert all(p.grad.abs().max() > 0 for p in net.encoder.parameters())


def test_it_learns_which_text_is_which():
    """A point for each word: the mean squared error falls to nothing if the word is read."""
    torch.manual_seed(0)
    net = TextConditioned(MLP(2, width=32, depth=1, vector_dim=16), TextEncoder(6, 16, 1, 2))
    ids = torch.randint(1, 6, (64, 1), generator=torch.Generator().manual_seed(0))
    target = torch.stack([ids[:, 0].float().cos(), ids[:, 0].float().sin()], 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(100):
        loss = (net(torch.zeros(64, 2), torch.zeros(64), {"text": ids}) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.01


def test_attention_learns_which_word_is_meant():
    """A picture of two halves, each by a word of its own: a transformer must read both from the tokens."""
    torch.manual_seed(0)
    inner = DiT(1, width=32, depth=2, heads=2, token_dim=16)
    net = TextConditioned(inner, TextEncoder(6, 16, 1, 2))
    ids = torch.randint(1, 6, (32, 3), generator=torch.Generator().manual_seed(0))
    x, noise, target = torch.zeros(32, 1, 4, 4), torch.zeros(32), torch.zeros(32, 1, 4, 4)
    target[..., :2] = ids[:, 0].float().cos()[:, None, None, None]
    target[..., 2:] = ids[:, 2].float().sin()[:, None, None, None]
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(120):
        loss = (net(x, noise, {"text": ids}) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02 * target.var()


def test_what_is_refused():
    net, x, noise = network("unet_class")
    assert net.condition_sizes == {"label": 3, "text": 6}
    for cond, message in (
        ({"text": IDS.float()}, "text of cond must be int64"),
        ({"text": IDS[0]}, "text of cond must have shape (4, L)"),
        ({"text": IDS + 3}, "text of cond must be ids in 0..5, got up to 8"),
        ({"vector": x}, "keys from (label, text)"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            net(x, noise, cond)
    for inner in (DiT(1, width=32, depth=1, heads=2), UNet(1, vector_dim=8), nn.Linear(2, 2)):
        with pytest.raises(ValueError, match="must take tokens or a vector of the text encoder's width, 16"):
            TextConditioned(inner, TextEncoder(6, 16))
    for arguments in ((1,), (6, 15, 1, 1), (6, 16, 0), (6, 16, 1, 3)):
        with pytest.raises(ValueError, match="must be"):
            TextEncoder(*arguments)
