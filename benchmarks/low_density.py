"""Why noise is needed: where data are rare, plain score matching fails, and Langevin dynamics with it.

    python -m benchmarks.low_density      # prints two tables and draws docs/images/low_density.png
    python -m benchmarks.low_density --steps 20 --picture quick.png      # a quick look

The data are those of NCSN's Figures 2 and 3, p = 1/5 N((-5, -5), I) + 4/5 N((5, 5), I). Two networks of the
same size learn from the same points, for the same number of steps:

    plain         s(x) ≈ ∇log p(x), by sliced score matching with variance reduction, without noise
    multiscale    s(x, σ) ≈ ∇log p_σ(x), by denoising score matching over the noise levels of a VE SDE, whose
                  largest level is the largest distance between two points (NCSNv2, Technique 1)

The Fisher divergence weights an error by p(x), so the plain network learns nothing about the score between
the modes. Langevin dynamics miss the weights of the modes even with the exact score: each chain moves to the
nearer mode and stays there. Noise fills the gap: at large σ there is a single mode, which splits in the right
proportion as σ decreases, and annealed Langevin dynamics follow it.

Reference:
    Generative Modeling by Estimating Gradients of the Data Distribution (Song & Ermon, 2019),
        https://arxiv.org/abs/1907.05600: Sections 3.2 and 4.3.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from score_diffusion.models import MLP
from score_diffusion.samplers import AnnealedLangevinSampler, log_snr_grid
from score_diffusion.sde_lib import (
    VESDE,
    GaussianMixture,
    ScoreModel,
    denoising_score_matching,
    draw_probes,
    largest_distance,
    sample_times,
    sliced_score_matching,
)

MEANS = torch.tensor([[-5.0, -5.0], [5.0, 5.0]])
WEIGHTS = torch.tensor([0.2, 0.8])
BOX = 8.0  # half the side of the square that is drawn and in which the Langevin dynamics start
POINTS, BATCH = 10_000, 256
SAMPLES, LEVELS, STEPS_EACH, STEP_SIZE = 2000, 100, 10, 0.2
SIGMA_MIN = 0.01
SIGMA = 5.0  # the noise level at which the multiscale score is drawn, just before the modes split
PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "low_density.png"

Score = Callable[[Tensor], Tensor]


def train(parameters: list[Tensor], loss: Callable[[Tensor], Tensor], data: Tensor, steps: int) -> None:
    """Trains by Adam on random batches, with a learning rate that decays to zero."""
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        value = loss(data[torch.randint(len(data), (BATCH,))]).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()


def plain_score(data: Tensor, steps: int) -> Score:
    """A score learned from the data without noise."""
    net = MLP(2, width=64, depth=2)

    def score(x: Tensor) -> Tensor:
        return net(x / BOX, x.new_zeros(len(x)))

    train(list(net.parameters()), lambda x: sliced_score_matching(score, x, draw_probes(x)), data, steps)
    return score


def multiscale_score(data: Tensor, steps: int) -> ScoreModel:
    """A score learned at all noise levels."""
    sde = VESDE(SIGMA_MIN, largest_distance(data))
    model = ScoreModel(MLP(2, width=64, depth=2), sde)

    def loss(x: Tensor) -> Tensor:
        t = sample_times(sde, len(x))
        return denoising_score_matching(sde, model, x, t, torch.randn_like(x))

    train(list(model.parameters()), loss, data, steps)
    return model


@torch.no_grad()
def langevin(score: Score, x: Tensor, steps: int, step_size: float) -> Tensor:
    """Repeats x ← x + a/2 s(x) + √a z (Song & Ermon, 2019, eq. 4)."""
    for _ in range(steps):
        x = x + step_size / 2 * score(x) + math.sqrt(step_size) * torch.randn_like(x)
    return x


def summary(samples: Tensor) -> tuple[float, float, float]:
    """The weight of the small mode, its standard error, and the fraction of samples far from both modes."""
    distance = torch.cdist(samples.float(), MEANS)  # (n, 2)
    share = (distance.argmin(1) == 0).float().mean().item()
    far = (distance.amin(1) > 4).float().mean().item()  # under p itself 0.03 %
    return share, math.sqrt(share * (1 - share) / len(samples)), far


class Field:
    """A learned score and the exact one on the grid of the picture.

    Args:
        law: The law p.
        score: The learned score of p_σ.
        sigma: The noise level σ; 0 for p itself.
    """

    def __init__(self, law: GaussianMixture, score: Score, sigma: float = 0.0) -> None:
        line = torch.linspace(-BOX, BOX, 161)
        self.grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)  # (161, 161, 2)
        x = self.grid.reshape(-1, 2)
        noisy = GaussianMixture(MEANS, torch.full((2,), 1 + sigma**2), WEIGHTS)
        exact = noisy.score(VESDE(1e-6, 1.0))
        with torch.no_grad():
            self.learned = score(x).reshape(self.grid.shape)
            self.exact = exact(x, x.new_zeros(len(x))).reshape(self.grid.shape)
        self.density = law.log_prob(x).exp().reshape(self.grid.shape[:2])  # of p: where there are data
        # in units of the modes' standard deviation, because the scores of different σ differ in size
        self.error = (self.learned - self.exact).norm(dim=-1) * math.sqrt(1 + sigma**2)

    def rms_errors(self) -> list[float]:
        """The root-mean-square error where p is above 1e-4, and where it is below 1e-8."""
        regions = (self.density > 1e-4, self.density < 1e-8)
        return [self.error[region].square().mean().sqrt().item() for region in regions]


def draw_arrows(axes: Axes, field: Field, values: Tensor, title: str) -> None:
    """Arrows of a score, with compressed lengths, so that all directions are visible."""
    thin = (slice(5, None, 10), slice(5, None, 10))
    arrows = values[thin]
    norm = arrows.norm(dim=-1, keepdim=True)
    arrows = arrows / norm.clamp_min(1e-9) * norm.sqrt()
    style = dict(angles="xy", scale=45, width=0.004, color="#274060")
    axes.quiver(*field.grid[thin].unbind(-1), *arrows.unbind(-1), **style)
    _draw_density(axes, field)
    axes.set_title(title)


def draw_error(axes: Axes, field: Field, title: str) -> None:
    """The error of a score as a colour map."""
    style = dict(norm=LogNorm(0.03, 30), cmap="magma_r", shading="gouraud", rasterized=True)
    image = axes.pcolormesh(*field.grid.unbind(-1), field.error, **style)
    axes.figure.colorbar(image, ax=axes, shrink=0.9)
    _draw_density(axes, field)
    axes.set_title(title)


def _draw_density(axes: Axes, field: Field) -> None:
    style = dict(levels=[1e-8, 1e-4], colors="0.4", linewidths=0.8, linestyles=["dotted", "solid"])
    axes.contour(*field.grid.unbind(-1), field.density, **style)


def draw_samples(axes: Axes, samples: Tensor, title: str) -> None:
    """A scatter plot with the weight of the small mode."""
    share, error, far = summary(samples)
    axes.scatter(*samples.unbind(1), s=3, alpha=0.4, linewidths=0, color="#274060")
    axes.set_title(title)
    text = f"lower left: {100 * share:.0f} ± {100 * error:.0f} %\nfar from both: {100 * far:.1f} %"
    axes.text(-7.6, 7.6, text, va="top", bbox=dict(facecolor="white", edgecolor="0.7"))


def draw(path: Path, plain: Field, multiscale: Field, sets: dict[str, Tensor]) -> None:
    """Draws scores in the upper row, samples in the lower; contours at p = 1e-4 (solid), 1e-8 (dotted)."""
    figure = Figure(figsize=(16, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 4, sharex=True, sharey=True)
    draw_arrows(axes[0, 0], plain, plain.exact, "true score, ∇log p")
    draw_arrows(axes[0, 1], plain, plain.learned, "learned without noise")
    draw_error(axes[0, 2], plain, "error of the score learned without noise")
    draw_error(axes[0, 3], multiscale, f"error of the multiscale score, σ = {SIGMA:g}")
    for panel, (title, samples) in zip(axes[1], sets.items(), strict=True):
        draw_samples(panel, samples, title)
    for panel in axes.flat:
        panel.set(xlim=(-BOX, BOX), ylim=(-BOX, BOX), aspect="equal", xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains both networks, samples, draws and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--picture", type=Path, default=PICTURE, help="where to write the picture")
    parser.add_argument("--steps", type=int, default=1500, help="training steps of each network")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    law = GaussianMixture(MEANS, torch.ones(2), WEIGHTS)
    data = law.sample(POINTS, seed=0).float()

    plain, multiscale = plain_score(data, arguments.steps), multiscale_score(data, arguments.steps)
    sde = multiscale.sde
    t = sde.time_at_log_noise_level(torch.tensor(math.log(SIGMA))).float()
    fields = {
        "without noise": Field(law, plain),
        f"multiscale, σ = {SIGMA:g}": Field(law, lambda x: multiscale(x, t.expand(len(x))), SIGMA),
    }

    exact, steps = law.score(VESDE(1e-6, 1.0)), (LEVELS + 1) * STEPS_EACH
    start = (2 * torch.rand(SAMPLES, 2) - 1) * BOX
    annealed = AnnealedLangevinSampler(
        sde, log_snr_grid(sde, LEVELS), n_steps_each=STEPS_EACH, step_size=STEP_SIZE
    )
    sets = {
        "data": data[:SAMPLES],
        "Langevin, exact score": langevin(lambda x: exact(x, x.new_zeros(len(x))), start, steps, STEP_SIZE),
        "Langevin, score learned without noise": langevin(plain, start, steps, STEP_SIZE),
        "annealed Langevin, multiscale score": annealed(multiscale, (SAMPLES, 2)).samples,
    }
    draw(arguments.picture, *fields.values(), sets)

    print(f"{'RMS error of the score':<40}{'p > 1e-4':>12}{'p < 1e-8':>12}")
    for name, field in fields.items():
        dense, empty = field.rms_errors()
        print(f"{name:<40}{dense:>12.2f}{empty:>12.2f}")
    print(f"\n{'samples':<40}{'weight of the lower left mode (0.2)':>36}{'far from both':>16}")
    for name, samples in sets.items():
        share, error, far = summary(samples)
        print(f"{name:<40}{f'{share:.3f} ± {error:.3f}':>36}{far:>16.4f}")
    print(f"\n{arguments.picture}")


if __name__ == "__main__":
    main()
