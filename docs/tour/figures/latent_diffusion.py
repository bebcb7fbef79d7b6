"""Digits through a linear autoencoder, and drawn codes, decoded, for four sizes of the code."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from docs.tour.figures.drawing import names_of, new_figure, save, show_images
from score_diffusion.sde_lib import GaussianMixture

SIZES = (4, 8, 16, 32)


def draw(shown: int = 10) -> Figure:
    page = names_of("09_latent_diffusion")
    x, labels = page["x"], page["labels"]
    figure = new_figure(9.6, 3.4)
    left, right = figure.subfigures(1, 2, width_ratios=(1.06, 1))
    rows, drawn = left.subplots(5, 1), right.subplots(5, 1)
    show_images(rows[0], x[:shown].reshape(-1, 1, 8, 8), "digits")
    drawn[0].axis("off")
    drawn[0].set_title("drawn", y=0.3)
    for k, d in enumerate(SIZES, 1):
        auto = page["Autoencoder"](d)
        show_images(rows[k], auto.decode(auto.encode(x[:shown])).reshape(-1, 1, 8, 8), f"d = {d}")
        codes = [auto.encode(x[labels == c]) for c in range(10)]
        law = GaussianMixture(
            torch.stack([z.mean(0) for z in codes]), torch.stack([z.T.cov(correction=0) for z in codes])
        )
        z = page["sampler"](law.score(page["sde"]), (shown, d), seed=0, dtype=torch.float64).samples
        show_images(drawn[k], auto.decode(z).reshape(-1, 1, 8, 8))
    return figure


if __name__ == "__main__":
    save("latent_diffusion", draw())
