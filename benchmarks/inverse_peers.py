"""azula's posterior samplers under an exact score of ours, for comparison.

Each runs with its own defaults on the SDE's α and σ, on times whose square roots are uniform (close to our
clock grid), with one evaluation a step. azula's DPS normalizes its steps by the norm of the whole batch of
residuals, which its paper does not: it gets one sample at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import azula.denoise
import azula.guidance
import azula.sample
import torch
from azula.linalg.covariance import IsotropicCovariance
from torch import Tensor

from score_diffusion.samplers.inverse import InverseProblem, Mask
from score_diffusion.sde_lib import SDE, ScoreFunction


class _Denoiser(azula.denoise.Denoiser):
    """A score as azula's denoiser over flattened samples; time u of its grid is our time u²."""

    def __init__(self, sde: SDE, score: ScoreFunction, shape: tuple[int, ...]) -> None:
        super().__init__()
        self._sde, self._score, self._shape = sde, score, shape

    def schedule(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self._sde.alpha(u.square()), self._sde.sigma(u.square())

    def forward(self, x_t: Tensor, t: Tensor, **kwargs: object) -> azula.denoise.DiracPosterior:
        alpha, sigma = self.schedule(t)
        score = self._score(x_t.reshape(-1, *self._shape), t.square().expand(len(x_t)))
        return azula.denoise.DiracPosterior(mean=(x_t + sigma**2 * score.reshape(x_t.shape)) / alpha)


class AzulaRestorer:
    """A posterior sampler of azula.

    Args:
        problem: The measurement.
        nfe: Evaluations.
        name: A name in `PEERS`.
    """

    def __init__(self, problem: InverseProblem, nfe: int, name: str) -> None:
        self.problem, self.nfe, self.name = problem, nfe, name
        matrix = problem.operator.matrix()
        self._A: Callable[[Tensor], Tensor] = lambda x: x @ matrix.T
        inverse = torch.linalg.pinv(matrix)
        self._inverse: Callable[[Tensor], Tensor] = lambda y: y @ inverse.T
        self._y = problem.y.double().flatten()

    def __call__(self, score: ScoreFunction, shape: tuple[int, ...], seed: int) -> Tensor:
        """Samples, float64."""
        sde = self.problem.sde
        generator = torch.random.fork_rng()
        with generator:
            torch.manual_seed(seed)
            x = sde.prior_std * torch.randn(shape, dtype=torch.float64).flatten(1)
            batches = x.split(1) if self.name == "dps" else [x]
            sampler = self._sampler(_Denoiser(sde, score, shape[1:]))
            return torch.cat([sampler(batch) for batch in batches]).reshape(shape)

    def _sampler(self, denoiser: _Denoiser) -> azula.sample.Sampler:
        p, guidance, noise = self.problem, azula.guidance, self.problem.sigma_y
        steps = self.nfe // 3 if self.name == "repaint" else self.nfe
        grid = {
            "start": p.sde.T**0.5,
            "stop": p.sde.sampling_eps**0.5,
            "steps": steps,
            "silent": True,
            "dtype": torch.float64,
        }
        if self.name == "dps":
            return guidance.DPSSampler(denoiser, self._y, self._A, **grid)
        if self.name == "pigdm":
            return guidance.PGDMSampler(denoiser, self._y, self._A, self._inverse, **grid)
        if self.name == "repaint":
            filled = p.operator.adjoint(p.y[None].double())[0].flatten()
            return guidance.RePaintSampler(denoiser, filled, p.operator.known.flatten(), **grid)
        if self.name == "twisted":
            return guidance.TDSSampler(denoiser, self._twist, **grid)
        if self.name == "diffpir":
            guided = guidance.DiffPIRDenoiser(denoiser, self._y, self._A, noise**2)
        else:
            covariance = IsotropicCovariance(torch.tensor(noise**2, dtype=torch.float64))
            guided = guidance.MMPSDenoiser(denoiser, self._y, self._A, covariance)
        return azula.sample.DDIMSampler(guided, **grid)

    def _twist(self, x_0: Tensor, level: Tensor) -> Tensor:
        """log N(y; A x̂_0, (σ_y² + r_t²) I), the user's to give."""
        variance = self.problem.sigma_y**2 + level**2 / (1 + level**2)
        return -0.5 * ((self._y - self._A(x_0)).square() / variance + variance.log())


PEERS = ("dps", "pigdm", "moment_matching", "diffpir", "repaint", "twisted")
"""The methods of ours that azula has, too."""


def fits(name: str, problem: InverseProblem) -> bool:
    """Whether azula's method takes the problem: its RePaint takes masks only."""
    return name in PEERS and (name != "repaint" or isinstance(problem.operator, Mask))
