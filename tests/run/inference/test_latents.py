"""Paths between samples against the flow of Gaussians in closed form."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from score_diffusion.run.data.info import DataInfo
from score_diffusion.run.data.sample_conditions import SampleConditions
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.inference.latents import paths_between
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.samplers import ODESampler
from score_diffusion.sde_lib import VPSDE, Gaussian

VARIANCES = (0.25, 4.0)  # of the two classes


class OfClasses:
    """The exact score of class k, N(0, VARIANCES[k])."""

    def __init__(self, sde: VPSDE) -> None:
        self.scores = [Gaussian(torch.zeros(2), torch.tensor(v)).score(sde) for v in VARIANCES]

    def __call__(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        both = torch.stack([score(x, t) for score in self.scores])
        return both[cond["label"], torch.arange(len(x))]


def test_every_path_is_the_flow_of_its_own_class():
    """The flow of N(0, v) scales by a ratio of deviations, so that paths of equal norm are arcs of a circle;
    codes tell the class."""
    sde = VPSDE()
    data = DataInfo("points", (2,), Scaling(None, (0.0, 0.0), (1.0, 1.0)), 10, 10)
    conditions = SampleConditions.of_classes([1, 0, 1])
    trained = TrainedModel(OfClasses(sde), sde, data, 1, 1e-5, conditions=conditions)
    ends = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.0], [0.0, -0.5]], [[0.0, 2.0], [2.0, 0.0]]])
    flow = ODESampler(sde)
    paths = paths_between(trained, flow, ends, 5, batch_size=2)
    times = torch.tensor([sde.sampling_eps, sde.T], dtype=torch.float64)
    alpha, sigma = sde.alpha(times), sde.sigma(times)
    for k, label in enumerate([1, 0, 1]):
        first, last = (VARIANCES[label] * alpha.square() + sigma.square()).sqrt().tolist()
        np.testing.assert_allclose(paths.codes[k], ends[k] * last / first, atol=1e-3)
        angle = np.linspace(0, np.pi / 2, 5)[:, None]
        expected = np.cos(angle) * ends[k, 0].numpy() + np.sin(angle) * ends[k, 1].numpy()
        np.testing.assert_allclose(paths.samples[k], expected, atol=1e-3)
    assert paths.nfe > 5
    rest = paths_between(trained, flow, ends[1:], 5, batch_size=9, first=1)  # as a second process draws them
    assert torch.equal(rest.samples, paths.samples[1:]) and torch.equal(rest.codes, paths.codes[1:])
