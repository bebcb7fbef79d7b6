"""Wrappers pass on all that a score can do, and write only what they change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from score_diffusion.samplers import DDIMSampler, FixedBatches, ODESampler, log_snr_grid, make_sampler
from score_diffusion.samplers.base import CountedScore
from score_diffusion.sde_lib import (
    VPSDE,
    ConditionalScore,
    Gaussian,
    InputError,
    ScoreModel,
    ScoreWrapper,
    evaluations,
    in_dtype,
    score_and_fraction,
    score_device,
)


class Net(nn.Module):
    """F = x label, F_v = F + 1; remembers the sizes of its batches."""

    def __init__(self, device="cpu"):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1, device=device))
        self.sizes = []

    def forward(self, x, noise, cond=None):
        self.sizes.append(len(x))
        label = 1 if cond is None else cond["label"] if isinstance(cond, dict) else cond
        F = x * torch.as_tensor(label).to(x).expand(len(x))[:, None]
        return torch.cat([F, F + 1], dim=1)


class ClassifierFree(ScoreWrapper):
    """What guidance asks of the base class: one call of the network for two conditions."""

    def __init__(self, score, label, scale):
        super().__init__(score)
        self.label, self.scale = label, scale

    def evaluations(self, t):
        return 2 * super().evaluations(t)

    def evaluate(self, inner, x, t, cond=None):
        both = torch.cat([torch.full((len(x),), self.label), torch.full((len(x),), 1)])
        score, *fraction = inner(x.repeat(2, 1), t.repeat(2), {"label": both})
        conditional, unconditional = score.chunk(2)
        guided = unconditional + self.scale * (conditional - unconditional)
        return (guided, *(f.chunk(2)[0] for f in fraction))


@pytest.fixture
def model():
    return ScoreModel(Net(), VPSDE(), learned_variance=True)


def points(n=6):
    return torch.randn(n, 2), torch.rand(n) + 0.01


def test_a_wrapper_that_changes_nothing_is_the_score(model):
    x, t = points()
    wrapped = ScoreWrapper(ScoreWrapper(model))
    assert torch.equal(wrapped(x, t), model(x, t)) and wrapped.device == model.device
    for ours, theirs in zip(wrapped.score_and_fraction(x, t), model.score_and_fraction(x, t), strict=True):
        assert torch.equal(ours, theirs)
    label = torch.arange(6)
    assert torch.equal(wrapped(x, t, {"label": label}), model(x, t, {"label": label}))


def test_the_device_is_the_scores():
    meta = ScoreModel(Net("meta"), VPSDE())
    assert ScoreWrapper(FixedBatches(meta, 3)).device == torch.device("meta") == score_device(meta)


def test_a_bare_function_can_be_wrapped():
    x, t = points()
    score = ScoreWrapper(lambda x, t: -x)
    assert torch.equal(score(x, t), -x) and score.device == torch.device("cpu")
    assert torch.equal(FixedBatches(score, 4)(x, t), -x)
    with pytest.raises(InputError, match="needs a score with the method score_and_fraction.* <lambda> lacks"):
        score.score_and_fraction(x, t)


def test_one_override_changes_the_score_with_and_without_a_fraction(model):
    x, t = points()
    guided = ClassifierFree(model, 3, 2.0)
    expected = 5 * model(x, t)  # 1 + 2 (3 - 1), of a score that is proportional to the label
    torch.testing.assert_close(guided(x, t), expected)
    score, fraction = score_and_fraction(guided, x, t)
    torch.testing.assert_close(score, expected)
    torch.testing.assert_close(fraction, (3 * x + 2) / 2)
    assert model.net.sizes == [6, 12, 12]


def test_a_condition_reaches_the_network_through_batches_of_one_size(model):
    x, t = points(7)
    guided = ClassifierFree(FixedBatches(model, 4), 3, 2.0)
    torch.testing.assert_close(guided(x, t), 5 * model(x, t))
    assert model.net.sizes == [4] * 4 + [7]
    torch.testing.assert_close(FixedBatches(ClassifierFree(model, 3, 2.0), 4)(x, t), 5 * model(x, t))


def test_the_samplers_meter_counts_what_a_wrapper_says(model):
    sde = VPSDE()
    sampler = DDIMSampler(sde, log_snr_grid(sde, 5), denoise=False)
    assert (
        sampler(ClassifierFree(FixedBatches(model, 4), 3, 1.0), (6, 2)).nfe == 2 * sampler(model, (6, 2)).nfe
    )

    class SomeTwice(ScoreWrapper):
        def evaluations(self, t):
            return 1 + (t > 0.5).long()

    counted = CountedScore(ScoreWrapper(SomeTwice(lambda x, t: x)), 3)
    counted(torch.zeros(3, 2), 0.7)
    counted(torch.zeros(2, 2), torch.tensor([0.6, 0.4]), among=torch.tensor([0, 2]))
    counted(torch.zeros(3, 2), 0.3)
    assert counted.evaluations_each().tolist() == [5, 3, 4] and counted.calls == 3
    assert evaluations(lambda x, t: x, torch.ones(3)) == 1


@pytest.mark.parametrize("as_dict", [False, True])
def test_a_condition_that_all_samples_share(as_dict, model):
    cond, (x, t) = torch.tensor([3]), points(4)
    score = ConditionalScore(model, {"label": cond} if as_dict else cond)
    every = cond.expand(4)
    torch.testing.assert_close(score(x, t), model(x, t, {"label": every} if as_dict else every))
    torch.testing.assert_close(score.score_and_fraction(x, t)[1], (3 * x + 2) / 2)
    with pytest.raises(InputError, match="has its condition already"):
        score(x, t, every)


@pytest.mark.parametrize("sampler", ["ode", "eabm", "pc", "adaptive_sde", "ddim"])
def test_a_bare_function_computes_in_the_dtype_of_the_samples(sampler):
    """A float32 network of x and t, a function without `device`, under samplers that compute in float64."""
    net = nn.Linear(3, 2)

    def score(x, t):
        return -x + 1e-3 * net(torch.cat([x, t[:, None]], 1))

    sde, nfe = VPSDE(), None if sampler in ("ode", "adaptive_sde") else 8
    samples = make_sampler(sampler, sde, nfe)(score, (3, 2)).samples
    assert samples.dtype == torch.float32 and samples.isfinite().all()
    if sampler == "ode":
        assert ODESampler(sde).encode(score, samples).dtype == torch.float32


def test_a_score_that_takes_any_dtype_is_left_alone(model):
    law = Gaussian(torch.zeros(2), torch.tensor(1.0))
    for score in (model, law.score(VPSDE()), FixedBatches(model, 2), ScoreWrapper(law.score(VPSDE()))):
        assert in_dtype(score, torch.float32) is score
    cast = in_dtype(lambda x, t: x * t[:, None], torch.float32)
    x, t = torch.randn(3, 2).double(), torch.rand(3)
    assert cast(x, t).dtype == torch.float64 and in_dtype(cast, torch.float16) is cast
