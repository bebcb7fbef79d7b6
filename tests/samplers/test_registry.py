"""Every sampler by name: its options and cost, the smallest budgets, every SDE, data of every rank, failures.

A new sampler is its file, an export and an entry of the table: `Toy` and `test_a_new_sampler...` count it.
"""

from __future__ import annotations

from typing import Literal, Union, get_args, get_origin

import pytest
import torch
from torch import Tensor

from score_diffusion.samplers import (
    DEFAULT,
    SAMPLERS,
    AnnealedLangevin,
    Cost,
    EulerMaruyama,
    Grid,
    Option,
    SamplerSpec,
    StepSampler,
    make_sampler,
    sampler_grid,
    sampler_options,
    sampler_table,
)
from score_diffusion.samplers.predictors import NoPredictor
from score_diffusion.sde_lib import SDE, VPSDE, Gaussian, InputError, tweedie
from tests.problems import ALL_SDES, images, ring, sampling_floor, sliced_wasserstein

every_name = pytest.mark.parametrize("name", list(SAMPLERS))
PER_STEP = [name for name, spec in SAMPLERS.items() if spec.nfe_per_step]


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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eabm", "dpmpp_2m_sde"])
def test_the_law_is_at_the_floor_in_few_evaluations(name):
    law, sde, n, nfe = ring(), VPSDE(), 2000, 12 if name == "eabm" else 35
    samples = make_sampler(name, sde, nfe)(law.score(sde), (n, 2), seed=2).samples
    assert sliced_wasserstein(samples, law.sample(n, seed=9)) < 1.3 * sampling_floor(law, n)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: make_sampler("magic", VPSDE(), 10), "sampler must be one of .* names, such as eabm"),
        (lambda: make_sampler("eabm", VPSDE(), 10, "magic"), "grid must be one of .*clock, .*got 'magic'"),
        (lambda: make_sampler("ode", VPSDE(), 10), "set rtol and atol instead"),
        (lambda: make_sampler("eabm", VPSDE(), 10, "chain"), r"log\(α/σ\) must be finite"),
        (lambda: make_sampler("restart", VPSDE(), 60, torch.tensor([1.0, 0.5])), "a restart needs"),
    ],
)
def test_mistakes_are_told(act, message):
    with pytest.raises(ValueError, match=message):
        act()


def test_default_is_a_name():
    assert DEFAULT in SAMPLERS and SAMPLERS[DEFAULT].nfe_per_step == 1


# The table.


COSTS = [(name, {}) for name in PER_STEP] + [
    ("pc", {"n_corrector_steps": 3}),
    ("pc", {"n_corrector_steps": 3, "corrector": "none"}),
    ("pc", {"predictor": "none", "n_corrector_steps": 2}),
    ("pc", {"predictor": NoPredictor()}),
    ("pc", {"predictor": EulerMaruyama(0.5)}),
    ("ald", {"n_steps_each": 1}),
    ("edm", {"method": "rk4"}),
    ("restart", {"intervals": ((0.1, 0.5, 2, 3), (1.0, 2.0, 1, 2))}),
    *(("ode", {"method": method}) for method in ("euler", "midpoint", "heun2", "heun3", "rk4")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), COSTS)
def test_the_cost_is_what_a_run_evaluates(name, options):
    """On grids of two sizes, and for nfe: the most steps that fit, the denoising included."""
    sde, law = VPSDE(), gaussian_of((2,))
    cost = SAMPLERS[name].cost_with(options)
    for steps in (6, 9):
        sampler = make_sampler(name, sde, grid=Grid("log_snr", steps), options=options)
        assert sampler(law.score(sde), (2, 2)).nfe == steps * cost.per_step + cost.extra
    nfe = 7 * cost.per_step + cost.extra
    result = make_sampler(name, sde, nfe, "log_snr", denoise=True, options=options)(law.score(sde), (2, 2))
    assert result.nfe == 6 * cost.per_step + cost.extra + 1 <= nfe


def test_options_reach_the_constructor():
    sde = VPSDE()
    options = {"snr": 0.3, "corrector": "ald", "n_corrector_steps": 2}
    sampler = make_sampler("pc", sde, 40, options=options)
    assert type(sampler.corrector) is AnnealedLangevin
    assert (sampler.corrector.snr, sampler.corrector.n_steps) == (0.3, 2)
    assert make_sampler("ddpm", sde, 10, options={"clip": 1.0}).clip == (-1.0, 1.0)
    churned, plain = (make_sampler("edm_churn", sde, 20, options=o).stages for o in ({}, {"S_churn": 0}))
    assert len(churned) > len(plain) and plain == make_sampler("edm", sde, 20).stages


@pytest.mark.slow
@every_name
def test_the_defaults_are_those_of_the_constructor(name):
    """By name without arguments, with all options given, or by the constructor: the same samples."""
    sde, law, spec = VPSDE(N=50), gaussian_of((2,)), SAMPLERS[name]
    spelled_out = {option.name: option.default for option in sampler_options(name).values()}
    by_name = make_sampler(name, sde, denoise=True)
    samples = [
        sampler(law.score(sde), (3, 2)).samples
        for sampler in (
            by_name,
            make_sampler(name, sde, denoise=True, options=spelled_out),
            spec.make(sde, denoise=True),
            spec.make(sde, by_name.times, denoise=True),
        )
    ]
    assert all(torch.equal(samples[0], other) for other in samples[1:])


def test_the_default_cost_is_about_fifty_evaluations():
    """That of the deterministic methods and of the stochastic solvers, with the denoising."""
    for name in PER_STEP:
        if name not in ("pc", "ddpm", "ald", "cas"):
            cost, steps = SAMPLERS[name].cost_with({}), SAMPLERS[name].default_grid.steps
            assert 49 <= cost.per_step * steps + cost.extra + 1 <= 50, name


def test_the_grid_of_a_sampler():
    """nfe decides the steps; a chain that is asked for by name is taken whole; a grid is taken as it is."""
    assert sampler_grid("heun", 21) == Grid("clock", 10)
    assert sampler_grid("heun", 21, "karras", denoise=True) == Grid("karras", 10)
    assert sampler_grid("pc", 21, options={"corrector": "none"}) == Grid("clock", 21)
    assert sampler_grid("unipc") == Grid("log_snr", 49)
    assert sampler_grid("unipc", grid="karras") == Grid("karras", 49)
    assert sampler_grid("ald", grid="chain") == Grid("chain") == sampler_grid("ddpm")
    listed = torch.tensor([1.0, 0.4, 0.01])
    assert sampler_grid("eabm", 10, listed) is listed
    assert sampler_grid("eabm", 10, Grid("uniform", 3)) == Grid("uniform", 3)


def test_an_option_of_another_sampler_is_refused_by_name():
    with pytest.raises(InputError, match="^snr is an option of pc, not of eabm$"):
        make_sampler("eabm", VPSDE(), 10, options={"snr": 0.2})
    with pytest.raises(InputError, match="^clip is an option of ddim, ddpm, not of pc$"):
        make_sampler("pc", VPSDE(), 10, options={"clip": 1.0})
    with pytest.raises(InputError, match="an option of pc must be one of .*snr.*, got 'srn'"):
        make_sampler("pc", VPSDE(), 10, options={"srn": 0.2})
    with pytest.raises(InputError, match="unknown option 'magic' of heun, which has none"):
        make_sampler("heun", VPSDE(), 10, options={"magic": 0.2})


@every_name
def test_options_are_explained_and_have_defaults_of_their_type(name):
    for option in sampler_options(name).values():
        assert (
            option.explanation[0].isupper()
            and option.explanation.endswith(".")
            and 10 < len(option.explanation) < 110
        ), option
        members = get_args(option.type) if get_origin(option.type) is Union else (option.type,)
        names = [name for m in members if get_origin(m) is Literal for name in get_args(m)]
        types = tuple(get_origin(m) or m for m in members if get_origin(m) is not Literal)
        assert option.default in names or isinstance(option.default, types), option


def test_the_table_of_all_samplers():
    header, *rows = sampler_table()
    assert header[0] == "name" and [row[0] for row in rows] == list(SAMPLERS)
    assert all(len(row) == len(header) for row in rows)
    table = {row[0]: row[-1] for row in rows}
    assert table["pc"] == "predictor=reverse_diffusion, corrector=langevin, snr=0.16, n_corrector_steps=1"
    assert "S_churn=40.0" in table["edm_churn"] and "step_size=auto" in table["cas"] and table["heun"] == ""


class Toy(StepSampler):
    """Denoises, then adds the noise of the next time: what a file of samplers/ would hold.

    Args:
        sde, times, denoise: As for every `Sampler`.
        strength: Factor of the noise. One is the noise of the next time.
    """

    def __init__(
        self,
        sde: SDE,
        times: Tensor | Grid = Grid("log_snr", 20),
        *,
        denoise: bool = True,
        strength: float = 1.0,
    ) -> None:
        super().__init__(sde, times, denoise)
        self.strength = strength

    def step(self, score, x, k, noise, state):
        t, s = self.times[k : k + 2].to(x.device)
        x_0 = tweedie(self.sde, score, x, t.expand(len(x)))
        return self.sde.alpha(s) * x_0 + self.strength * self.sde.sigma(s) * noise.normal(), None


def test_a_new_sampler_is_its_file_and_an_entry(monkeypatch):
    """It samples by name, is listed with its options, and its options reach it; nothing else is touched."""
    toy = SamplerSpec(Toy, order=None, cost=Cost(1), stochastic=True, paper="none")
    monkeypatch.setitem(SAMPLERS, "toy", toy)
    sde, law, n = VPSDE(), gaussian_of((2,)), 500
    result = make_sampler("toy", sde, 200, denoise=True)(law.score(sde), (n, 2), dtype=torch.float64)
    assert result.nfe == 200 and abs(result.samples.mean() - 0.3) < 0.1
    option = sampler_options("toy")["strength"]
    assert option == Option("strength", 1.0, float, "Factor of the noise.")
    assert make_sampler("toy", sde, options={"strength": 0.5}).strength == 0.5
    assert sampler_table()[-1] == (
        *("toy", "SDE", "-", "1", "log_snr", "20", "all", "none"),
        "strength=1.0",
    )
    with pytest.raises(InputError, match="strength is an option of toy, not of eabm"):
        make_sampler("eabm", sde, options={"strength": 2.0})
