"""A cascade of exact scores on Gaussian data, whose conditional laws are known, against its exact law."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from score_diffusion.run.config import load_config
from score_diffusion.run.data.info import DataInfo
from score_diffusion.run.data.low_resolution import Augmentation, shrink
from score_diffusion.run.data.sample_conditions import SampleConditions
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.run.systems.cascade import Cascade
from score_diffusion.run.systems.chain import ScoreStage, StageRun
from score_diffusion.samplers import make_sampler
from score_diffusion.samplers.inverse import Downsample, InverseProblem, enlarge
from score_diffusion.sde_lib import VPSDE, Gaussian
from tests.problems import moments, random_covariances

SDE = VPSDE()
N, SIDE = 3000, 4


class Enlarging:
    """The exact score of p_t(x | x_low) for x ~ N(μ, Σ), x_low = α A x + σ ε, A the means of 2x2 blocks."""

    condition_sizes = {"low_resolution": 2, "augmentation": 1}
    any_dtype = True

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean, self.covariance = mean, covariance
        unit = torch.eye(SIDE**2, dtype=torch.float64).reshape(-1, 1, SIDE, SIDE)
        self.shrink = shrink(unit, 2).flatten(1).T  # (4, 16)

    def gain(self, level: float) -> tuple[Tensor, Tensor]:
        """K and α A of E[x | x_low] = μ + K (x_low - α A μ)."""
        angle = torch.tensor(level, dtype=torch.float64) * torch.pi / 2
        measured = angle.cos() * self.shrink
        of_low = measured @ self.covariance @ measured.T + angle.sin() ** 2 * torch.eye(len(measured))
        return self.covariance @ measured.T @ torch.linalg.inv(of_low), measured

    def __call__(self, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        K, measured = self.gain(float(cond["augmentation"][0]))
        low = cond["low_resolution"].double().flatten(1)
        mean = self.mean + (low - self.mean @ measured.T) @ K.T  # (B, 16)
        covariance = self.covariance - K @ measured @ self.covariance
        t = t.double()
        alpha, sigma = SDE.alpha(t)[:, None, None], SDE.sigma(t)[:, None, None]
        of_t = alpha**2 * covariance + sigma**2 * torch.eye(len(covariance))
        difference = x.double().flatten(1) - alpha[:, 0] * mean
        return -torch.linalg.solve(of_t, difference).reshape(x.shape).to(x)


def stage(name: str, score, shape: tuple[int, ...], level: float | None = None) -> ScoreStage:
    conditions = SampleConditions()
    if level is not None:
        small = torch.zeros(1, 1, SIDE // 2, SIDE // 2)
        conditions = SampleConditions({"low_resolution": small}, augmentation=Augmentation(level, 0))
    info = DataInfo("exact", shape, Scaling(), 9, 9)
    trained = TrainedModel(score, SDE, info, 0, 1e-3, conditions=conditions)
    return ScoreStage(name, trained, make_sampler("eabm", SDE, 40, denoise=True), 1000)


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.0, 0.3])
def test_the_law_of_a_cascade_of_exact_scores(level: float):
    """Large and small images together; noise that samples share, or of another level, would change it."""
    mean = torch.linspace(-1, 1, SIDE**2, dtype=torch.float64)
    covariance = random_covariances(1, SIDE**2, 1.0, 0)[0].double()
    exact = Enlarging(mean, covariance)
    A = exact.shrink
    small = Gaussian((A @ mean).reshape(1, 2, 2), A @ covariance @ A.T)
    run = StageRun("any", Path(), load_config("vpsde"))
    stages = [
        stage("small", small.score(SDE), (1, 2, 2)),
        stage("large", exact, (1, SIDE, SIDE), level),
    ]
    drawn = Cascade({"small": run}, stages).draw(range(N), 0)
    x, z = (torch.from_numpy(drawn[name].samples).double().flatten(1) for name in ("large", "small"))
    both = torch.cat([x, z], 1)
    K, measured = exact.gain(level)
    cross = K @ measured @ covariance @ A.T  # α K Cov(z)
    expected = torch.cat(
        [torch.cat([covariance, cross], 1), torch.cat([cross.T, A @ covariance @ A.T], 1)], 0
    )
    check_moments(both, torch.cat([mean, A @ mean]), expected)


def check_moments(samples: Tensor, mean: Tensor, covariance: Tensor) -> None:
    variances = covariance.diagonal()
    error = ((variances[:, None] * variances + covariance**2) / len(samples)).sqrt()
    assert ((samples.T.cov() - covariance).abs() < 5 * error + 0.01 * variances.max()).all()
    assert ((samples.mean(0) - mean).abs() < 5 * (variances / len(samples)).sqrt() + 0.005).all()


@pytest.mark.slow
def test_a_small_image_is_restored_by_the_exact_posterior():
    """`--method model`: the noise of the measurement is that of the augmentation."""
    mean = torch.linspace(-1, 1, SIDE**2, dtype=torch.float64)
    exact = Enlarging(mean, random_covariances(1, SIDE**2, 1.0, 0)[0].double())
    operator, sigma_y = Downsample((1, SIDE, SIDE), 2), 0.4
    law = Gaussian(mean.reshape(1, SIDE, SIDE), exact.covariance)
    y = operator.measure(law.sample(1, seed=1), sigma_y)[0]
    problem = InverseProblem(SDE, operator, y, sigma_y)
    samples = enlarge(problem, 40)(exact, (1500, 1, SIDE, SIDE), seed=0).samples
    check_moments(samples.double().flatten(1), *moments(law.posterior(exact.shrink, y.double(), sigma_y)))
