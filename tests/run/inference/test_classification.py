"""A conditional model as a classifier, against exact posteriors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from score_diffusion.run.data.info import DataInfo
from score_diffusion.run.data.sample_conditions import SampleConditions
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.inference.classification import (
    ClassifiedData,
    by_bayes,
    denoising_log_likelihoods,
    of_each_class,
)
from score_diffusion.run.inference.scoring import UniformDequantization, score_held_out
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.sde_lib import SDE, VESDE, VPSDE, AdaptiveSolver, Gaussian, ScoreWrapper, SubVPSDE

LAWS = [
    Gaussian(torch.tensor([-1.0, 0.0]), torch.tensor([[0.5, 0.2], [0.2, 0.4]])),
    Gaussian(torch.tensor([0.8, 0.5]), torch.tensor([[0.3, -0.1], [-0.1, 0.6]])),
    Gaussian(torch.tensor([0.5, -1.0]), torch.tensor([[0.2, 0.0], [0.0, 0.9]])),
]
COUNTS = torch.tensor([10, 30, 60])
LABELS = torch.tensor([0, 1, 2, 2, 1, 0, 0, 2])
DATA = torch.stack([LAWS[label].sample(1, seed)[0] for seed, label in enumerate(LABELS)]).float()
EXACT = by_bayes(torch.stack([law.log_prob(DATA.double()) for law in LAWS], 1).numpy(), COUNTS)


class ClassScore(ScoreWrapper):
    """The exact score of each sample's class."""

    any_dtype = True

    def __init__(self, sde: SDE):
        self.scores = [law.score(sde) for law in LAWS]
        super().__init__(self.scores[0])

    def evaluate(self, inner, x, t, cond=None):
        each = torch.stack([score(x, t) for score in self.scores])
        return (each[cond["label"], torch.arange(len(x))],)


def model(sde: SDE) -> TrainedModel:
    info = DataInfo("points", (2,), Scaling(), 100, 8)
    return TrainedModel(ClassScore(sde), sde, info, 1, 1e-5, conditions=SampleConditions({"label": LABELS}))


def test_bayes_rule_counts_the_training_set():
    log_p = by_bayes(np.log([[0.2, 0.2], [0.8, 0.1]]) - 50, torch.tensor([1, 3]))
    np.testing.assert_allclose(np.exp(log_p), [[0.25, 0.75], [0.8 / 1.1, 0.3 / 1.1]])
    found = ClassifiedData(log_p, np.array([1, 1]), 20)
    assert found.accuracy == 0.5 and found.standard_error == pytest.approx(np.sqrt(1 / 8))
    assert found.log_loss == pytest.approx(-(np.log(0.75) + np.log(0.3 / 1.1)) / 2)


def test_likelihoods_of_each_class_give_the_exact_posterior():
    trained = model(VPSDE())
    options = dict(batch_size=8, seed=0, divergence="exact", solver=AdaptiveSolver(rtol=1e-7))
    scores = [
        score_held_out(each, DATA, UniformDequantization(each, 0), **options)
        for each in of_each_class(trained, 3)
    ]
    found = by_bayes(-np.stack([each.values for each in scores], 1), COUNTS)
    np.testing.assert_allclose(found, EXACT, atol=0.06)  # p_T is not quite the prior


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=["vp", "sub-vp", "ve"])
def test_denoising_losses_of_an_exact_score_give_the_exact_posterior(sde: SDE):
    """The bound is tight for exact scores, sample by sample. Copies of a sample differ in their noise."""
    copies = 4000
    for x in DATA[[0, 3]]:
        exact = torch.stack([law.log_prob(x[None].double()) for law in LAWS], 1)[0].numpy()
        losses = denoising_log_likelihoods(
            model(sde), x.expand(copies, -1), 3, draws=8, batch_size=copies, seed=1
        )
        differences = losses[:, 1:] - losses[:, :1]
        error = differences.std(0) / copies**0.5
        assert (error < 0.1).all()
        assert (np.abs(differences.mean(0) - (exact[1:] - exact[0])) < 4 * error + 0.01).all()


def test_noise_belongs_to_the_sample():
    trained = model(VPSDE())
    whole, parts = (
        denoising_log_likelihoods(trained, DATA, 3, draws=5, batch_size=size, seed=1) for size in (8, 3)
    )
    np.testing.assert_allclose(whole, parts, rtol=1e-6)
    other = denoising_log_likelihoods(trained, DATA, 3, draws=5, batch_size=8, seed=2)
    assert np.abs(whole - other).min() > 1e-3


def test_other_conditions_stay_as_they_are():
    trained = model(VPSDE())
    rows = {"label": LABELS, "vector": torch.arange(8.0)[:, None]}
    each = list(of_each_class(TrainedModel(*vars(trained).values()), 2))
    assert [m.conditions.labels(2).tolist() for m in each] == [[0, 0], [1, 1]]
    with_vector = TrainedModel(**vars(trained) | {"conditions": SampleConditions(rows)})
    (_, second) = of_each_class(with_vector, 2)
    cond = second.conditions.of(range(3, 5))
    assert cond["label"].tolist() == [1, 1] and cond["vector"].flatten().tolist() == [3, 4]
