"""Forward and reverse paths of the three SDEs over the exact densities of a mixture on the line."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from docs.tour.figures.drawing import ORANGE, new_figure, save
from score_diffusion.sde_lib import SDE, VESDE, VPSDE, GaussianMixture, SubVPSDE

LAW = GaussianMixture(torch.tensor([[-1.0], [1.0]]), torch.tensor([0.02, 0.02]), torch.tensor([0.3, 0.7]))
SDES = {"VE": VESDE(0.01, 3.0), "VP": VPSDE(), "sub-VP": SubVPSDE()}
PATHS = 8


def draw_densities(axes: Axes, sde: SDE, limit: float) -> None:
    """Shades of p_t(x), each column relative to its maximum."""
    times, x = torch.linspace(1e-3, 1, 200).double(), torch.linspace(-limit, limit, 201).double()
    p = torch.stack([LAW.log_prob_t(sde)(x[:, None], t) for t in times], 1).exp()
    axes.contourf(times, x, p / p.amax(0), levels=8, cmap="Blues")
    axes.set(ylim=(-limit, limit), xlim=(0, 1))


def forward_paths(sde: SDE, steps: int) -> tuple[Tensor, Tensor]:
    """Times (steps + 1,) and states (steps + 1, PATHS) of the forward SDE, by its exact transitions."""
    times = torch.linspace(0, 1, steps + 1).double()
    x = [LAW.sample(PATHS, seed=3)[:, 0]]
    for s, t in zip(times[:-1], times[1:], strict=True):
        alpha_ts, var_ts = sde.transition(s, t)
        x.append(alpha_ts * x[-1] + var_ts.sqrt() * torch.randn(PATHS).double())
    return times, torch.stack(x)


def reverse_paths(sde: SDE, steps: int, stochasticity: float = 1.0) -> tuple[Tensor, Tensor]:
    """Times and states of the reverse SDE, by Euler-Maruyama; of the probability flow for stochasticity 0."""
    reverse = sde.reverse(LAW.score(sde), stochasticity=stochasticity)
    times = torch.linspace(1, 1e-3, steps + 1).double()
    x = [sde.prior_std * torch.special.ndtri((torch.arange(PATHS).double() + 0.5) / PATHS)]
    for t, s in zip(times[:-1], times[1:], strict=True):
        drift, diffusion = reverse.sde(x[-1][:, None], t)
        noise = diffusion * (t - s).sqrt() * torch.randn(PATHS).double()
        x.append(x[-1] + drift[:, 0] * (s - t) + noise)
    return times, torch.stack(x)


def draw(steps: int = 300) -> Figure:
    torch.manual_seed(0)
    figure = new_figure(9.6, 4.6)
    panels = figure.subplots(2, len(SDES), sharex=True)
    for (top, bottom), (name, sde) in zip(panels.T, SDES.items(), strict=True):
        for axes, (times, x), color in (
            (top, forward_paths(sde, steps), ORANGE),
            (bottom, reverse_paths(sde, steps), ORANGE),
        ):
            draw_densities(axes, sde, 2.6 * max(1.0, sde.prior_std))
            axes.plot(times, x, color=color, linewidth=0.6)
        top.set_title(name)
        bottom.set_xlabel("t")
    panels[0, 0].set_ylabel("forward")
    panels[1, 0].set_ylabel("reverse SDE")
    return figure


if __name__ == "__main__":
    save("sdes", draw())
