"""unCLIP's prior: what attends to what, and what it learns against a closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from score_diffusion.models import Prior
from score_diffusion.models.conditions import drop_conditions
from score_diffusion.models.prior import attention_mask
from score_diffusion.sde_lib import VPSDE, Gaussian, ScoreModel, denoising_score_matching
from tests.problems import random_covariances


@pytest.fixture
def net(randomize) -> Prior:
    return randomize(Prior(4, width=16, depth=2, heads=2, encoder_words=7, vector_dim=3)).double()


def inputs() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    x, vector = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    text = torch.tensor([[3, 5, 0, 0], [2, 6, 1, 4], [5, 3, 0, 0]])
    return x, torch.linspace(-3, 3, 3, dtype=torch.float64), {"text": text, "vector": vector}


def test_a_position_attends_to_itself_and_to_valid_ones_before_it():
    mask = attention_mask(torch.tensor([[True, False, True], [False, False, True]]))
    assert mask[0, 0].tolist() == [[True, False, False], [True, True, False], [True, False, True]]
    assert mask[1, 0].tolist() == [[True, False, False], [False, True, False], [False, False, True]]


def test_padding_changes_nothing(net: Prior):
    x, noise, cond = inputs()
    out = net(x, noise, cond)
    longer = {**cond, "text": torch.cat([cond["text"], torch.zeros(3, 5, dtype=torch.int64)], 1)}
    torch.testing.assert_close(net(x, noise, longer), out)
    first = {"text": cond["text"][:1, :2], "vector": cond["vector"][:1]}
    torch.testing.assert_close(net(x[:1], noise[:1], first), out[:1])


@pytest.mark.parametrize("kind", ["text", "vector", "x", "noise"])
def test_everything_in_the_sequence_reaches_the_query(kind: str, net: Prior):
    x, noise, cond = inputs()
    changed = {"x": x, "noise": noise, **cond}
    changed[kind] = changed[kind].roll(1, 0)
    out = net(changed["x"], changed["noise"], {name: changed[name] for name in cond})
    assert ((out - net(x, noise, cond)).abs().amax(1) > 1e-4).all()


def test_the_order_of_words_matters(net: Prior):
    x, noise, cond = (value[:1] for value in (*inputs()[:2], inputs()[2]["text"]))
    turned = torch.tensor([[5, 3, 0, 0]])
    assert (net(x, noise, {"text": cond}) - net(x, noise, {"text": turned})).abs().max() > 1e-4


def test_a_dropped_text_is_the_null_condition(net: Prior):
    x, noise, cond = inputs()
    out = net(x, noise, drop_conditions(cond, torch.tensor([True, False, True])))
    torch.testing.assert_close(out[[0, 2]], net(x, noise)[[0, 2]])
    torch.testing.assert_close(out[1], net(x, noise, cond)[1])


def test_every_weight_has_a_gradient_without_a_condition(net: Prior):
    """DistributedDataParallel waits for all of them."""
    x, noise, _ = inputs()
    net(x, noise).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.slow
def test_it_learns_the_denoiser_of_gaussian_embeddings():
    """Embeddings of text k are N(μ_k, Σ): E[x_0 | x_t, k] is known, and far from that of another text."""
    sde, covariance = VPSDE(), random_covariances(1, 3, 0.5, seed=0)[0]
    means = torch.tensor([[1.0, 0.0, -1.0], [-1.0, 1.0, 0.0], [0.0, -1.0, 1.0]], dtype=torch.float64)
    laws = [Gaussian(mean, covariance) for mean in means]
    model = ScoreModel(Prior(3, width=32, depth=2, heads=2, encoder_words=4, vector_dim=3), sde, "x0")
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    steps, size = 300, 128
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    root = torch.linalg.cholesky(covariance)
    for _ in range(steps):
        k = torch.randint(0, 3, (size,))
        x_0 = (means[k] + torch.randn(size, 3, dtype=torch.float64) @ root.mT).float()
        cond = {"text": 1 + k[:, None], "vector": means[k].float()}
        cond = drop_conditions(cond, torch.rand(size) < 0.1)
        t = 1e-3 + (1 - 1e-3) * torch.rand(size)
        losses = denoising_score_matching(
            sde, lambda x, t, cond=cond: model(x, t, cond), x_0, t, torch.randn(size, 3), "x0"
        )
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        schedule.step()
    error = wrong = 0.0
    for t in (0.2, 0.5, 0.9):
        times = torch.full((500,), t)
        alpha, sigma = sde.alpha(times)[0], sde.sigma(times)[0]
        for k, law in enumerate(laws):
            x_t = (alpha * law.sample(500, seed=k) + sigma * torch.randn(500, 3)).float()
            cond = {"text": torch.full((500, 1), 1 + k), "vector": means[[k]].float().expand(500, 3)}
            exact = law.denoiser(sde)(x_t, times)
            with torch.no_grad():
                error += (model.denoise(x_t, times, cond) - exact).square().mean().item()
            wrong += (laws[k - 1].denoiser(sde)(x_t, times) - exact).square().mean().item()
    assert error < 0.02 * wrong, error / wrong


REFUSED = {
    "dim": (dict(dim=0), "dim and depth must be at least 1, got dim=0"),
    "heads": (dict(dim=2, width=10, heads=4), "width must be even and divisible by heads, got width=10"),
    "words": (dict(dim=2, encoder_words=-1), "encoder_words and vector_dim must not be negative, got -1"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_arguments_are_refused(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Prior(**arguments)
