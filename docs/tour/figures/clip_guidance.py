"""What the encoders of the page have learned, next to the exact posterior, and samples that they guide."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from docs.tour.figures.drawing import BLUE, ORANGE, names_of, new_figure, save, show_points


def draw(samples: int = 800) -> Figure:
    page = names_of("07_clip_guidance")
    figure = new_figure(9.6, 6)
    top, bottom = figure.subplots(2, 3)
    line = torch.linspace(-2.5, 2.5, 80)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)
    for axes, t in zip(top, (0.01, 0.2, 0.5), strict=True):
        times = torch.full((len(grid),), t)
        with torch.no_grad():
            logits = page["image_encoder"](grid, times) @ page["text_encoder"](page["captions"]).T
        exact = page["exact_posterior"](grid, times)[:, 2].reshape(80, 80)
        learned = logits.softmax(1)[:, 2].reshape(80, 80)
        axes.contourf(line, line, exact, levels=10, cmap="Blues", vmin=0, vmax=1)
        levels = [0.1, 0.3, 0.5, 0.7, 0.9]
        axes.contour(line, line, learned, levels=levels, colors=ORANGE, linestyles="dashed", linewidths=1)
        axes.set(title=f'p("bottom left" | $x_t$), t = {t:g}', aspect="equal", xticks=[], yticks=[])
    places, score = page["places"], page["law"].score(page["sde"])
    guided = {
        f"scale {w:g}": page["EmbeddingGuidance"](score, page["image_encoder"], page["text"], scale=w)
        for w in (1.0, 3.0)
    }
    guided["normalized, scale 1"] = page["ClassifierGuidance"](score, page["log_posterior"])
    for axes, (title, guided_score) in zip(bottom, guided.items(), strict=True):
        show_points(axes, page["sampler"](guided_score, (samples, 2), seed=0).samples, title, 3.5, BLUE)
        axes.plot(*places.T, "+", color=ORANGE, markersize=10)
    return figure


if __name__ == "__main__":
    save("clip_guidance", draw())
