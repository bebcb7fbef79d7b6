"""Classifier-free guidance with exact scores: points and digits of one class at four scales."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor

from docs.tour.figures.drawing import (
    BLUE,
    GREY,
    digits,
    digits_law,
    new_figure,
    save,
    show_images,
    show_points,
)
from score_diffusion.samplers import make_sampler
from score_diffusion.samplers.guidance import ClassifierFreeGuidance
from score_diffusion.sde_lib import VPSDE, Gaussian, GaussianMixture

SDE = VPSDE()
SCALES = (0.0, 1.0, 2.0, 5.0)


class TwoScores:
    """score(x, t, cond) of a class, and of everything where the label is -1."""

    def __init__(self, everything: GaussianMixture, of_class: GaussianMixture) -> None:
        self.everything, self.of_class = everything.score(SDE), of_class.score(SDE)

    def __call__(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        chosen = (cond["label"] >= 0).reshape(-1, *(1,) * (x.ndim - 1))
        return torch.where(chosen, self.of_class(x, t), self.everything(x, t))


def draw(samples: int = 1000) -> Figure:
    centres = torch.tensor([[0.0, 1.2], [-1.0, -0.6], [1.0, -0.6]])
    points = GaussianMixture(centres, torch.full((3,), 0.5))
    threes = digits()[0][digits()[1] == 3].flatten(1)
    covariance = threes.T.cov() + 0.01 * torch.eye(64)
    of_points = TwoScores(points, Gaussian(centres[1], torch.tensor(0.5)))
    of_digits = TwoScores(digits_law(), Gaussian(threes.mean(0).reshape(1, 8, 8), covariance))
    sampler = make_sampler("eabm", SDE, nfe=25, denoise=True)
    label = {"label": torch.tensor([1])}

    figure = new_figure(9.6, 5)
    for (top, bottom), w in zip(figure.subplots(2, 4).T, SCALES, strict=True):
        show_points(top, points.sample(samples), color=GREY)
        guided = ClassifierFreeGuidance(of_points, SDE, scale=w)
        show_points(top, sampler(guided, (samples, 2), cond=label).samples, f"w = {w:g}", 3.5, BLUE)
        guided = ClassifierFreeGuidance(of_digits, SDE, scale=w)
        show_images(bottom, sampler(guided, (16, 1, 8, 8), cond=label).samples, columns=4)
    return figure


if __name__ == "__main__":
    save("guidance", draw())
