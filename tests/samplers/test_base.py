"""The contract that all samplers share: one call, seeds per sample, counted evaluations, recorded times."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from score_diffusion.samplers import (
    AnnealedLangevinSampler,
    EulerMaruyama,
    ODESampler,
    PCSampler,
    log_snr_grid,
    make_sampler,
    uniform_grid,
)
from score_diffusion.samplers.base import CountedScore
from score_diffusion.sde_lib import VPSDE, Gaussian, ScoreModel, SubVPSDE, tweedie
from tests.problems import SDES, images, ring

SDE = VPSDE()
GRID = uniform_grid(SDE, 8)
SAMPLERS = {
    "pc": PCSampler(SDE, GRID),
    "pc-ancestral-ald": PCSampler(SDE, GRID, predictor="ancestral", corrector="ald", n_corrector_steps=2),
    "em": PCSampler(SDE, GRID, predictor=EulerMaruyama(0.5), corrector="none"),
    "corrector-only": PCSampler(SDE, GRID, predictor="none", corrector="langevin"),
    "rk4": ODESampler(SDE, GRID, method="rk4"),
    "ald": AnnealedLangevinSampler(SDE, log_snr_grid(SDE, 8), n_steps_each=2),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())


@every_sampler
@pytest.mark.parametrize(("law", "shape"), [(ring(), (2,)), (images(), (1, 8, 8))], ids=["points", "images"])
def test_samples_depend_on_seed_and_index_alone(sampler, law, shape):
    """Bitwise the same samples at any batch size; other samples for other seeds and other indices."""
    score = law.score(SDE)
    whole = sampler(score, (7, *shape), seed=5).samples
    parts = [sampler(score, (n, *shape), seed=5, first=k).samples for k, n in ((0, 1), (1, 4), (5, 2))]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.isclose(whole, sampler(score, (7, *shape), seed=6).samples).all(0).any()
    assert len(whole.flatten(1).unique(dim=0)) == 7


def test_adaptive_ode_depends_on_neighbours_within_tolerance():
    sampler = ODESampler(SDE, rtol=1e-7, atol=1e-7)
    score = ring().score(SDE)
    whole = sampler(score, (6, 2), seed=1).samples
    torch.testing.assert_close(whole[4:], sampler(score, (2, 2), seed=1, first=4).samples, rtol=0, atol=1e-4)


@every_sampler
def test_nfe_is_counted_at_the_score(sampler):
    calls = 0

    def score(x, t):
        nonlocal calls
        calls += 1
        assert t.shape == (3,)
        return ring().score(SDE)(x, t)

    assert sampler(score, (3, 2)).nfe == calls


@pytest.mark.parametrize(
    ("sampler", "nfe"),
    [
        (PCSampler(SDE, GRID, corrector="none", denoise=False), 8),
        (PCSampler(SDE, GRID, denoise=True), 17),
        (PCSampler(SDE, GRID, predictor="none", corrector="ald", denoise=False, n_corrector_steps=3), 24),
        (ODESampler(SDE, GRID, method="euler"), 8),
        (ODESampler(SDE, GRID, method="rk4"), 32),
        (AnnealedLangevinSampler(SDE, log_snr_grid(SDE, 9), n_steps_each=5, denoise=False), 50),
    ],
)
def test_nfe_of_known_schemes(sampler, nfe):
    """The ancestor charges for correctors that it does not run; here the number is what the scheme costs."""
    assert sampler(ring().score(SDE), (2, 2)).nfe == nfe


@every_sampler
def test_trajectory_and_times(sampler):
    score = ring().score(SDE)
    result = sampler(score, (3, 2), seed=2, trajectory=True)
    assert result.trajectory.shape == (9, 3, 2) and torch.equal(result.times, sampler.times)
    last = result.trajectory[-1]
    if sampler.denoise:
        last = tweedie(SDE, score, last, sampler.times[-1:].expand(3))
    torch.testing.assert_close(result.samples, last)
    assert sampler(score, (3, 2), seed=2).trajectory is None
    again = sampler(score, (3, 2), seed=2, x_T=result.trajectory[0])
    assert torch.equal(
        again.trajectory[0] if again.trajectory is not None else result.trajectory[0], result.trajectory[0]
    )


@pytest.mark.parametrize("name", ["euler", "euler_maruyama", "eabm"])
def test_many_steps_in_half_precision(name):
    """The states have single precision: small steps would be lost in bfloat16, and samples stay noise."""
    sde, law = VPSDE(), Gaussian(torch.full((16,), 0.5), torch.tensor(0.25))
    result = make_sampler(name, sde, 1000)(law.score(sde), (400, 16), seed=1, dtype=torch.bfloat16)
    assert result.samples.dtype == torch.bfloat16
    x = result.samples.float()
    assert abs(x.mean() - 0.5) < 0.02 and abs(x.std() - 0.5) < 0.02


def test_x_T_and_progress():
    x_T = torch.randn(4, 2, dtype=torch.float64)
    seen = []
    sampler = ODESampler(SDE, GRID, method="heun2")
    result = sampler(
        ring().score(SDE), (4, 2), x_T=x_T, on_step=lambda i, n: seen.append((i, n)), trajectory=True
    )
    assert torch.equal(result.trajectory[0], x_T) and result.samples.dtype == torch.float64
    assert seen == [(i, 8) for i in range(1, 9)]


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
def test_prior_has_the_sdes_scale(sde):
    start = ODESampler(sde, uniform_grid(sde, 1), method="euler")(
        lambda x, t: 0 * x, (4000, 1), trajectory=True
    ).trajectory[0]
    assert start.std().item() == pytest.approx(sde.prior_std, rel=0.05)


def test_device_comes_from_the_score():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x, noise, cond=None):
            return self.weight * x

    model = ScoreModel(Net(), SDE)
    assert model.device == torch.device("cpu")
    assert not PCSampler(SDE, GRID)(model, (2, 2)).samples.requires_grad


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda s: PCSampler(SDE, torch.tensor([0.1, 0.5])), "strictly decreasing"),
        (lambda s: PCSampler(SDE, torch.tensor([1.5, 0.5])), r"in \[0, T\]"),
        (lambda s: s(lambda x, t: x, (2,)), r"shape must be \(B, \*shape\)"),
        (lambda s: s(lambda x, t: x, (2, 2), x_T=torch.zeros(3, 2)), "x_T must be"),
        (lambda s: s(lambda x, t: x[:1], (2, 2)), "must have the shape of x"),
        (lambda s: s(lambda x, t: x / 0, (2, 2)), "not finite"),
        (lambda s: ODESampler(SDE)(lambda x, t: x * torch.nan, (2, 2)), "found no step"),
    ],
)
def test_errors(act, message):
    with pytest.raises(ValueError, match=message):
        act(PCSampler(SubVPSDE(), GRID))


def test_counts_of_each_sample():
    """Samples that have arrived are evaluated no more."""
    counted = CountedScore(lambda x, t: x, 3)
    counted(torch.zeros(3, 2), 0.5)
    counted(torch.zeros(2, 2), torch.tensor([0.5, 0.4]), among=torch.tensor([0, 2]))
    assert counted.evaluations_each().tolist() == [2, 1, 2] and counted.calls == 2
    result = ODESampler(VPSDE())(ring().score(VPSDE()), (20, 2), seed=0)
    assert len(result.nfe_each.unique()) > 1 and result.nfe == result.nfe_each.max()


def test_final_denoising_is_tweedie():
    sde, law = VPSDE(), ring()
    plain, denoised = (
        make_sampler("eabm", sde, 10 + d, denoise=bool(d))(law.score(sde), (4, 2), seed=1) for d in (0, 1)
    )
    last = plain.times[-1:].expand(4)
    torch.testing.assert_close(denoised.samples, tweedie(sde, law.score(sde), plain.samples, last))


def test_a_sample_with_several_rows_counts_each_and_graphs_are_not_kept():
    """Particles of a sample are evaluations of it; the check for NaN holds on to no differentiation."""
    counted = CountedScore(lambda x, t: -x, 2)
    x = torch.zeros(5, 3, requires_grad=True)
    counted(x, 0.5, among=torch.tensor([0, 0, 0, 1, 1]))
    counted(torch.zeros(2, 3), 0.5)
    assert counted.evaluations_each().tolist() == [4, 3]
    assert not any(total.requires_grad for total in counted._sums)
