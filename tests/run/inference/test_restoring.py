"""Posterior samples against exact posteriors, the shares of processes, and what is said about them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from score_diffusion.run.data.info import DataInfo
from score_diffusion.run.data.inputs import Inputs
from score_diffusion.run.data.scaling import Scaling
from score_diffusion.run.distributed import processes
from score_diffusion.run.inference import restoring
from score_diffusion.run.inference.judging import judge
from score_diffusion.run.inference.measurements import Measurements, as_measured, measure, to_user
from score_diffusion.run.inference.restoring import Restored, RestoreRequest, draw_posteriors, split
from score_diffusion.run.inference.trained_model import TrainedModel
from score_diffusion.run.tasks import TASKS
from score_diffusion.samplers.inverse import InverseProblem, restorer
from score_diffusion.sde_lib import VPSDE, Gaussian
from tests.problems import moments

SHAPE = (1, 2, 4)
SDE = VPSDE()


def prior() -> Gaussian:
    mixing = torch.randn(8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Gaussian(torch.linspace(-1, 1, 8).reshape(SHAPE), mixing @ mixing.T / 8 + 0.05 * torch.eye(8))


def exact_model(law: Gaussian) -> TrainedModel:
    return TrainedModel(law.score(SDE), SDE, DataInfo("exact", SHAPE, Scaling(), 9, 9), 0, 1e-3)


def request(num_samples: int, batch_size: int = 1000) -> RestoreRequest:
    return RestoreRequest("inpaint", "moment_matching", 0.1, num_samples, 0, batch_size, "{}")


def drawn(law: Gaussian, measurements: Measurements, asked: RestoreRequest, nfe: int = 9) -> Restored | None:
    def make(y: torch.Tensor):
        problem = InverseProblem(SDE, measurements.task.operator, y, asked.noise)
        return restorer("moment_matching", problem, nfe, {"iterations": 4})

    return draw_posteriors(exact_model(law), make, measurements, asked)


@pytest.mark.slow
def test_mean_and_deviation_are_those_of_the_exact_posterior():
    """Of each input its own: for Gaussian data moment matching is exact."""
    law, n = prior(), 384
    task = TASKS["inpaint"](SHAPE, 0, mask="left")
    truth = law.sample(2, seed=3).float()
    measurements = measure(task, Inputs(truth, ("a", "b"), 2), Scaling(), 0.1, 0)
    restored = drawn(law, measurements, request(n), nfe=40)
    assert restored is not None and restored.samples.shape == (2, n, *SHAPE)
    for i in range(2):
        exact = law.posterior(task.operator.matrix(), measurements.y[i].double(), 0.1)
        mean, covariance = moments(exact)
        std = covariance.diagonal().sqrt()
        assert ((torch.from_numpy(restored.mean[i]).flatten() - mean).abs() < 5 * std / n**0.5 + 0.01).all()
        assert (torch.from_numpy(restored.deviation[i]).flatten() / std - 1).abs().max() < 4 / (2 * n) ** 0.5
    quality = judge(restored, measurements, Scaling(), 0)
    assert quality is not None and quality.coverage is not None and quality.coverage.shape == (2, 2)


@pytest.mark.parametrize("ranks", [2, 3])
def test_shares_of_ranks_are_the_same_samples(ranks: int, monkeypatch: pytest.MonkeyPatch):
    law, task = prior(), TASKS["denoise"](SHAPE, 0)
    measurements = measure(task, Inputs(law.sample(3, seed=3).float(), ("a", "b", "c"), 3), Scaling(), 0.1, 0)
    whole = drawn(law, measurements, request(5))
    assert whole is not None
    parts: list = []

    def gather(items: list) -> None:
        parts.extend(items)

    monkeypatch.setattr(restoring.processes, "gather", gather)
    monkeypatch.setattr(processes, "world_size", lambda: ranks)
    for rank in range(ranks):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        assert drawn(law, measurements, request(5, batch_size=4)) is None
    np.testing.assert_array_equal(
        np.concatenate([part[0] for part in parts]), whole.samples.reshape(15, *SHAPE)
    )


def test_batches_cover_a_share_and_keep_to_one_input():
    for start, stop in ((0, 20), (3, 17), (4, 5), (2, 2)):
        batches = list(split(range(start, stop), 5, 2))
        covered = [5 * b.input + b.first + k for b in batches for k in range(b.count)]
        assert covered == list(range(start, stop))
        assert all(b.count <= 2 and b.first + b.count <= 5 for b in batches)


@pytest.mark.parametrize("task", ["inpaint", "denoise", "superres", "deblur", "mri"])
def test_measurements_of_numbers_are_in_the_users_units(task: str):
    """y_user = A(x_user), and the way back; each channel has its own scale."""
    shape, scaling = (2, 4, 4), Scaling(None, (3.0, -5.0), (2.0, 0.5))
    built = TASKS[task](shape, 0)
    x_user = torch.from_numpy(np.random.default_rng(0).normal(3, 2, (3, *shape))).float()
    measurements = measure(built, Inputs(x_user, ("a", "b", "c"), 3), scaling, 0.0, 0)
    y = torch.from_numpy(to_user(measurements, scaling))
    if built.known is None:
        torch.testing.assert_close(y, built.operator(x_user), atol=1e-4, rtol=1e-4)
    else:
        torch.testing.assert_close(y[:, built.known], x_user[:, built.known], atol=1e-4, rtol=1e-4)
        assert y[:, ~built.known].isnan().all()
    again = as_measured(built, Inputs(y, ("a", "b", "c"), 3), scaling)
    torch.testing.assert_close(again.y, measurements.y, atol=1e-4, rtol=1e-4)


def levels_law(n: int, seed: int) -> np.ndarray:
    """Draws (n, 1, 40, 50) of grey levels, half of the pixels nearly always black."""
    rng = np.random.default_rng(seed)
    levels = rng.binomial(16, np.where(np.arange(50) % 2, 0.01, 0.4), (n, 1, 40, 50))
    return (levels / 8 - 1).astype(np.float32)


def judged(samples: np.ndarray, truth: np.ndarray):
    task = TASKS["inpaint"](truth.shape[1:], 0, mask="left")
    measurements = measure(task, Inputs(torch.from_numpy(truth), ("a",), 1), Scaling(levels=17), 0.0, 0)
    quality = judge(Restored(samples, 1, None), measurements, Scaling(levels=17), 0)
    assert quality is not None
    return quality


def test_samples_of_the_truths_own_law_are_calibrated_at_grey_levels():
    """Although most samples equal the truth where pixels are nearly always black."""
    quality = judged(levels_law(99, 1)[None], levels_law(1, 2))
    assert quality.coverage is not None
    np.testing.assert_allclose(quality.coverage[:, 0], [0.5, 0.9], atol=0.05)
    assert quality.verdict == "calibrated" and abs(quality.error_over_deviation - 1) < 0.1


def test_over_confident_and_too_wide_samples_are_called_so():
    truth = levels_law(1, 2)
    confident = np.repeat(levels_law(1, 3), 30, 0)[None]
    confident[:, :10] = levels_law(10, 4)
    assert judged(confident, truth).verdict == "over-confident"
    rng = np.random.default_rng(5)
    wide, middle = (
        rng.integers(*ends, (99, 1, 40, 50)).astype(np.float32) / 8 - 1 for ends in ((0, 17), (6, 11))
    )
    assert judged(wide[None], middle[:1]).verdict == "wider than needed"
    assert judged(levels_law(18, 1)[None], truth).coverage is None  # too few for 90 %
