"""Every sampler by name: the smallest budgets, every SDE, data of every rank, failures, fitted grids."""

from __future__ import annotations

import pytest
import torch

from score_diffusion.samplers import (
    DEFAULT,
    GRIDS,
    SAMPLERS,
    AdaptiveSDESampler,
    FixedBatches,
    LinearSampler,
    ODESampler,
    Stage,
    clock_grid,
    eabm,
    fit_grid,
    make_sampler,
    uniform_grid,
)
from score_diffusion.samplers.base import CountedScore
from score_diffusion.sde_lib import VPSDE, Gaussian, ScoreModel, tweedie
from tests.problems import ALL_SDES, images, ring, sampling_floor, sliced_wasserstein

every_name = pytest.mark.parametrize("name", list(SAMPLERS))
PER_STEP = [name for name, spec in SAMPLERS.items() if spec.nfe_per_step]


ONE_STEP = clock_grid(VPSDE(), 1)


def gaussian_of(shape):
    return Gaussian(torch.full(shape, 0.3), torch.full(shape, 0.25))


@pytest.mark.slow
@pytest.mark.parametrize("sde", ALL_SDES.values(), ids=ALL_SDES.keys())
@every_name
def test_every_sampler_serves_every_sde(name, sde):
    """At a generous budget the samples are the data's, in mean and deviation, on every SDE."""
    if name == "ddpm" and sde.T > 1:
        pytest.skip("EDM's σ = t has no discrete chain of its own")
    law, n = gaussian_of((1,)), 500
    nfe = None if SAMPLERS[name].nfe_per_step is None else 400
    result = make_sampler(name, sde, nfe, denoise=True)(law.score(sde), (n, 1), seed=1)
    assert nfe is None or 390 < result.nfe <= nfe
    assert abs(result.samples.mean() - 0.3) < 0.12 and abs(result.samples.std() - 0.5) < 0.08


@pytest.mark.parametrize("name", PER_STEP)
def test_one_step(name):
    """A budget that allows one step, and a batch of one; one evaluation less is refused."""
    spec, sde, law = SAMPLERS[name], VPSDE(), gaussian_of((2,))
    least = spec.nfe_per_step + spec.cost_with({}).extra
    result = make_sampler(name, sde, least)(law.score(sde), (1, 2))
    assert result.nfe <= least and result.samples.isfinite().all() and len(result.times) == 2
    with pytest.raises(ValueError, match=f"costs {least} evaluations"):
        make_sampler(name, sde, least - 1)


@pytest.mark.slow
@every_name
@pytest.mark.parametrize("shape", [(1,), (2,), (3, 5), (1, 4, 4), (2, 2, 2, 2), (1, 2, 1, 2, 2)])
def test_data_of_every_rank_in_float64(name, shape):
    sde, law = VPSDE(), gaussian_of(shape)
    nfe = None if SAMPLERS[name].nfe_per_step is None else 60
    result = make_sampler(name, sde, nfe)(law.score(sde), (2, *shape), dtype=torch.float64)
    assert result.samples.shape == (2, *shape) and result.samples.dtype == torch.float64
    assert result.nfe_each.shape == (2,) and result.nfe == result.nfe_each.max()


@pytest.mark.slow
@every_name
def test_samples_depend_on_seed_and_index_alone(name):
    """Bitwise, at any batch size; step sizes of their own included."""
    sde, score = VPSDE(), images().score(VPSDE())
    nfe = None if SAMPLERS[name].nfe_per_step is None else 60
    sampler, shape = make_sampler(name, sde, nfe), (1, 8, 8)
    whole = sampler(score, (5, *shape), seed=3).samples
    parts = [sampler(score, (n, *shape), seed=3, first=k).samples for k, n in ((0, 1), (1, 3), (4, 1))]
    assert torch.equal(whole, torch.cat(parts))


@every_name
def test_a_score_that_fails_is_told_by_evaluation_and_time(name):
    """A score that is NaN below t = 0.3 is an error that says where, not a NaN."""
    sde, law = VPSDE(), ring()
    score = law.score(sde)

    def failing(x, t):
        return torch.where((t < 0.3)[:, None], torch.nan, score(x, t))

    nfe = None if SAMPLERS[name].nfe_per_step is None else 60
    message = r"evaluation \d+ of \d+, t = 0\.[012]" if nfe else "check that the score is finite"
    with pytest.raises(ValueError, match=message):
        make_sampler(name, sde, nfe)(failing, (3, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", PER_STEP)
@pytest.mark.parametrize("nfe", [999, 30])
def test_no_sampler_leaves_the_finite_numbers(name, nfe):
    """The ancestor does below 20 steps, diffusers' multistep methods at 1,000."""
    sde, law = VPSDE(), ring()
    assert make_sampler(name, sde, nfe)(law.score(sde), (4, 2)).samples.isfinite().all()


@pytest.mark.parametrize("name", ["eabm", "dpmpp_2m_sde"])
def test_the_law_is_at_the_floor_in_few_evaluations(name):
    law, sde, n, nfe = ring(), VPSDE(), 2000, 12 if name == "eabm" else 35
    samples = make_sampler(name, sde, nfe)(law.score(sde), (n, 2), seed=2).samples
    assert sliced_wasserstein(samples, law.sample(n, seed=9)) < 1.3 * sampling_floor(law, n)


def test_grids():
    for name, grid in GRIDS.items():
        for sde in ALL_SDES.values():
            times = grid(sde, 10)
            assert len(times) == 11 and times.dtype == torch.float64 and (times.diff() < 0).all()
            assert times[0] == sde.T and times[-1] == (0 if name == "chain" else sde.sampling_eps)
    listed = torch.tensor([1.0, 0.4, 0.01])
    assert make_sampler("eabm", VPSDE(), grid=listed).times.tolist() == listed.double().tolist()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: make_sampler("magic", VPSDE(), 10), "choose one of eabm"),
        (lambda: make_sampler("eabm", VPSDE(), 10, "magic"), "unknown grid 'magic'; choose one of clock"),
        (lambda: make_sampler("ode", VPSDE(), 10), "set rtol and atol instead"),
        (lambda: make_sampler("eabm", VPSDE(), 10, "chain"), r"log\(α/σ\) must be finite"),
        (lambda: make_sampler("restart", VPSDE(), 60, torch.tensor([1.0, 0.5])), "a restart needs"),
        (
            lambda: LinearSampler(
                VPSDE(), uniform_grid(VPSDE(), 1), lambda s, t: [Stage(1.0, (0, 1), 1, (1, 1))]
            ),
            "2 weights after only 1",
        ),
        (
            lambda: LinearSampler(
                VPSDE(), uniform_grid(VPSDE(), 2), lambda s, t: [Stage(1.0, (0, 1), 1, (1,))]
            ),
            "2 steps of the grid",
        ),
        (lambda: eabm(VPSDE(), clock_grid(VPSDE(), 3), order=0), "order >= 1"),
        (lambda: AdaptiveSDESampler(VPSDE(), rtol=0), "above 0"),
        (lambda: FixedBatches(lambda x, t: x, 0), "at least 1"),
    ],
)
def test_mistakes_are_told(act, message):
    with pytest.raises(ValueError, match=message):
        act()


def test_default_is_a_name():
    assert DEFAULT in SAMPLERS and SAMPLERS[DEFAULT].nfe_per_step == 1


# Grids fitted to a score.


@pytest.mark.slow
@pytest.mark.parametrize("nfe", [8, 20])
def test_fitted_grid_halves_the_error(nfe):
    """On samples that it was not fitted on."""
    law, sde = ring(), VPSDE()
    score = law.score(sde)

    def make(times):
        return make_sampler("eabm", sde, grid=times)

    start = clock_grid(sde, nfe)
    fitted = fit_grid(make, score, sde, start, (2,), seed=0)
    assert len(fitted) == nfe + 1 and fitted[0] == sde.T and fitted[-1] == start[-1]
    x_T = torch.randn(100, 2, generator=torch.Generator().manual_seed(77), dtype=torch.float64)
    exact = ODESampler(sde, start[[0, -1]], rtol=1e-9, atol=1e-10)(score, (100, 2), x_T=x_T).samples
    error = {
        key: (make(times)(score, (100, 2), x_T=x_T).samples - exact).norm(dim=1).median().item()
        for key, times in (("start", start), ("fitted", fitted))
    }
    assert error["fitted"] < 0.5 * error["start"], error


def test_one_step_has_nothing_to_fit():
    sde = VPSDE()
    grid = clock_grid(sde, 1)
    fitted = fit_grid(
        lambda t: make_sampler("eabm", sde, grid=t), ring().score(sde), sde, grid, (2,), batch=4
    )
    assert torch.equal(fitted, grid)


# Scores in batches of one size.


def test_fixed_batches_make_a_network_independent_of_the_batch():
    """Bit for bit, for a network whose convolutions and matrix products are not."""
    from score_diffusion.models import UNet

    torch.manual_seed(0)
    net = UNet(1, channels=16, multipliers=(1, 2), blocks_per_level=1, heads=2)
    for parameter in net.parameters():  # the last layers of a new network are zero
        torch.nn.init.normal_(parameter, std=0.1)
    model = ScoreModel(net.eval(), VPSDE())
    score = FixedBatches(model, 4)
    assert score.device == model.device
    x, t = torch.randn(10, 1, 8, 8), torch.rand(10) + 0.01
    with torch.no_grad():
        whole = score(x, t)
        for sizes in ((1, 9), (3, 7), (10,), (1,) * 10):
            pieces = [score(a, b) for a, b in zip(x.split(sizes), t.split(sizes), strict=True)]
            assert torch.equal(whole, torch.cat(pieces))
        torch.testing.assert_close(whole, model(x, t), rtol=1e-4, atol=1e-4)


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
