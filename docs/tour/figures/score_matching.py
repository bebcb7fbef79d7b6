"""Scores learned without noise, and where Langevin dynamics go: panels of benchmarks/low_density.py."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from benchmarks.low_density import (
    BOX,
    MEANS,
    POINTS,
    WEIGHTS,
    Field,
    draw_arrows,
    draw_error,
    draw_samples,
    langevin,
    plain_score,
)
from docs.tour.figures.drawing import new_figure, save
from score_diffusion.sde_lib import VESDE, GaussianMixture

SAMPLES, LANGEVIN_STEPS, STEP_SIZE = 1000, 1000, 0.2


def draw(steps: int = 1000) -> Figure:
    torch.manual_seed(0)
    law = GaussianMixture(MEANS, torch.ones(2), WEIGHTS)
    learned = plain_score(law.sample(POINTS).float(), steps)
    exact, field = law.score(VESDE(1e-6, 1.0)), Field(law, learned)
    start = (2 * torch.rand(SAMPLES, 2) - 1) * BOX
    walk = min(LANGEVIN_STEPS, steps)
    by_exact = langevin(lambda x: exact(x, x.new_zeros(len(x))), start, walk, STEP_SIZE)
    by_learned = langevin(learned, start, walk, STEP_SIZE)

    figure = new_figure(12.5, 3.3)
    arrows, error, left, right = figure.subplots(1, 4, width_ratios=(1, 1.2, 1, 1))
    draw_arrows(arrows, field, field.exact, "score")
    draw_error(error, field, "error, learned without noise")
    draw_samples(left, by_exact, "Langevin, exact score")
    draw_samples(right, by_learned, "Langevin, learned score")
    for axes in (arrows, error, left, right):
        axes.set(xlim=(-BOX, BOX), ylim=(-BOX, BOX), aspect="equal", xticks=[], yticks=[])
    return figure


if __name__ == "__main__":
    save("score_matching", draw())
