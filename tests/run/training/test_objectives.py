"""Objectives, called with a model and a batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from score_diffusion.models import Classifier, Clip, UNet, caption_bytes
from score_diffusion.run.training.batches import Batch
from score_diffusion.run.training.objectives import (
    CaptionContrastive,
    ClassContrastive,
    Classification,
    DenoisingScoreMatching,
    Hybrid,
    UncertaintyWeighted,
    clean_data,
)
from score_diffusion.sde_lib import (
    DDPM,
    EDMSDE,
    VESDE,
    ChainTimes,
    DrawnTimes,
    EDMWeighting,
    LogNormalTimes,
    NoisyDataModel,
    ScoreModel,
    chain_times,
    denoising_score_matching,
    hybrid_loss,
    linear_betas,
)
from score_diffusion.sde_lib.losses import plain_weighting


class Sine(nn.Module):
    def forward(self, x: torch.Tensor, noise: torch.Tensor, cond: object | None = None) -> torch.Tensor:
        return x.sin()


@pytest.fixture(scope="module")
def model() -> ScoreModel:
    torch.manual_seed(0)
    return ScoreModel(UNet(1, 8, (1,), 1, ()), VESDE(), "edm", sigma_data=0.3)


def random_batch(times: DrawnTimes, conditions: dict[str, torch.Tensor] | None = None) -> Batch:
    generator = torch.Generator().manual_seed(1)
    x_0, noise = torch.randn(2, len(times.t), 1, 8, 8, generator=generator)
    return Batch(x_0, conditions or {}, times, noise)


def linear_times() -> DrawnTimes:
    return DrawnTimes(torch.linspace(0.1, 1, 6), torch.ones(6))


def test_an_objective_has_only_its_own_parameters(model: ScoreModel):
    assert DenoisingScoreMatching(EDMWeighting(0.3)).state_dict() == {}
    names = {"frequencies", "phases", "weight", "bias"}
    state = UncertaintyWeighted(model.sde, plain_weighting).state_dict()
    assert state.keys() == {f"uncertainty.{name}" for name in names}


def test_uncertainty_divides_the_weighted_loss(model: ScoreModel):
    objective, batch = UncertaintyWeighted(model.sde, EDMWeighting(0.3)), random_batch(linear_times())
    t = batch.times.t
    weighted = denoising_score_matching(model.sde, model, batch.x_0, t, batch.noise, EDMWeighting(0.3))
    torch.testing.assert_close(objective(model, batch), weighted)
    torch.nn.init.normal_(objective.uncertainty.weight)
    u = objective.uncertainty.log_mean(t)
    torch.testing.assert_close(objective(model, batch), weighted / u.exp() + u)
    objective(model, batch).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in objective.parameters())


@pytest.mark.parametrize("prediction", ["edm", "v"])
def test_weighting_edm_is_the_plain_error_of_the_networks_output(prediction: str):
    """Karras et al. (2022), eq. 8: λ c_out² = 1. For v, whose σ_data is 1, too."""
    sde = EDMSDE()
    model = ScoreModel(Sine(), sde, prediction, sigma_data=0.75)
    drawn = LogNormalTimes(sde).draw(8, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    x_0, noise = torch.randn(2, 8, 1, 4, 4, generator=generator, dtype=torch.float64)
    sigma, s = sde.sigma(drawn.t).double()[:, None, None, None], model.sigma_data
    norm = (sigma**2 + s**2).sqrt()
    x = x_0 + sigma * noise
    c_skip, c_out = s**2 / norm**2, sigma * s / norm
    target = (x_0 - c_skip * x) / c_out * (1 if prediction == "edm" else -1)
    expected = ((x / norm).sin() - target).square().mean((1, 2, 3))
    losses = DenoisingScoreMatching(EDMWeighting(s))(model, Batch(x_0, {}, drawn, noise))
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)


class Shifted(nn.Module):
    """Returns its input, plus a tenth of the label."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: torch.Tensor, noise: torch.Tensor, cond: object | None = None) -> torch.Tensor:
        label = torch.zeros(len(x)) if cond is None else cond["label"]
        return (x + label[:, None, None, None] / 10).repeat(1, self.channels, 1, 1)


class OneLabel(nn.Module):
    """A network with one label."""

    def __init__(self, net: nn.Module, label: torch.Tensor) -> None:
        super().__init__()
        self.net, self.label = net, label

    def forward(self, x: torch.Tensor, noise: torch.Tensor, cond: object | None = None) -> torch.Tensor:
        return self.net(x, noise, {"label": self.label.expand(len(x))})


def test_conditional_objectives_condition_each_sample_on_its_own_label():
    """Against one sample at a time, which is that of the same label."""
    sde = DDPM(linear_betas(25))
    times = ChainTimes(sde).draw(4, torch.Generator().manual_seed(0))
    labels = torch.tensor([3, 0, 1, 7])
    batch = random_batch(times, {"label": labels})
    plain = replace(batch, conditions={})
    chain = chain_times(sde)
    for conditional in (True, False):
        dsm = DenoisingScoreMatching(plain_weighting, conditional)
        hybrid = Hybrid(sde, None, 0.1, conditional)
        one, two = ScoreModel(Shifted(), sde), ScoreModel(Shifted(2), sde, learned_variance=True)
        losses, hybrid_losses = dsm(one, batch), hybrid(two, batch)
        for i, label in enumerate(labels * conditional):
            sample = batch[i : i + 1]
            x_0, t, k, noise = sample.x_0, sample.times.t, sample.times.k, sample.noise
            score = ScoreModel(OneLabel(Shifted(), label), sde)
            assert losses[i] == pytest.approx(
                denoising_score_matching(sde, score, x_0, t, noise).item(), rel=1e-5
            )
            score = ScoreModel(OneLabel(Shifted(2), label), sde, learned_variance=True)
            expected = hybrid_loss(sde, score, x_0, chain, k, noise, None, 0.1)
            assert hybrid_losses[i] == pytest.approx(expected.item(), rel=1e-5)
        assert torch.equal(dsm(one, plain), losses) != conditional


def noisy(batch: Batch, sde: VESDE) -> torch.Tensor:
    alpha, sigma = (c(batch.times.t).view(-1, 1, 1, 1) for c in (sde.alpha, sde.sigma))
    return alpha * batch.x_0 + sigma * batch.noise


def test_a_classifier_is_trained_by_cross_entropy_of_noisy_data():
    torch.manual_seed(0)
    sde = VESDE()
    model = NoisyDataModel(Classifier(1, 8, (1,), 1, (), 2, num_classes=3), sde)
    label = torch.tensor([0, 1, 2, 0, 1, 2])
    batch = random_batch(linear_times(), {"label": label})
    logits = model(noisy(batch, sde), batch.times.t)
    expected = -logits.log_softmax(1)[torch.arange(6), label]
    torch.testing.assert_close(Classification()(model, batch), expected)
    assert torch.equal(Classification().recognized(model, batch), logits.argmax(1) == label)


def test_a_contrastive_pair_is_trained_by_the_symmetric_cross_entropy():
    torch.manual_seed(0)
    sde, captions = VESDE(), [["one", "1"], ["two", "2"], ["three", "3"]]
    model = NoisyDataModel(Clip(1, 8, (1,), 1, (), 2, features=4, text_width=8, text_layers=1), sde).eval()
    label = torch.tensor([0, 1, 2, 0, 1, 2])
    batch = random_batch(linear_times(), {"label": label})
    objective = ClassContrastive(captions)
    images = model(noisy(batch, sde), batch.times.t)
    used = [captions[k][i % 2] for i, k in enumerate(label.tolist())]
    logits = images @ model.net.encode_text(caption_bytes(used)).T
    both = logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()
    torch.testing.assert_close(objective(model, batch), -both / 2)
    first = images @ model.net.encode_text(caption_bytes([phrasings[0] for phrasings in captions])).T
    assert torch.equal(objective.recognized(model, batch), first.argmax(1) == label)
    assert objective.state_dict() == {}


def test_a_contrastive_pair_learns_from_the_captions_of_the_data():
    """Without noise; an image has found its caption if at most four others of the batch are better."""
    torch.manual_seed(0)
    net = Clip(1, 8, (1,), 1, (), 2, features=4, text_width=8, text_layers=1, encoder_words=9)
    model = NoisyDataModel(net, VESDE()).eval()
    text = torch.randint(1, 9, (12, 3))
    text[7] = text[3]
    batch = Batch(torch.randn(12, 1, 8, 8), {"text": text}, None, None)
    objective = CaptionContrastive(clean=True)
    logits = model(*clean_data(model, batch.x_0)) @ net.encode_text(text).T  # (12, 12)
    both = logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()
    torch.testing.assert_close(objective(model, batch), -both / 2)
    others = [j for j in range(12) if j != 3]  # each caption once
    better = [sum(logits[i, j] > logits[i, i] + 1e-5 for j in others) for i in range(12)]
    assert objective.recognized(model, batch).tolist() == [count < 5 for count in better]
    assert 0 < sum(count < 5 for count in better) < 12
    assert not objective.uses_times and CaptionContrastive().uses_times
