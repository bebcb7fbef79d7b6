"""Classifier-free guidance against exact conditional laws and against a tight solution of its own ODE."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

from score_diffusion.models import UNet
from score_diffusion.models.conditions import drop_conditions
from score_diffusion.samplers import FixedBatches, clock_grid, make_sampler
from score_diffusion.samplers.base import CountedScore
from score_diffusion.samplers.guidance import ClassifierFreeGuidance, null_condition
from score_diffusion.sde_lib import VPSDE, ConditionalScore, InputError, ScoreModel, tweedie
from tests.problems import (
    ALL_SDES,
    SDES,
    distance_to_floor,
    labelled_images,
    labelled_ring,
    labelled_vectors,
)

every_sde = pytest.mark.parametrize("sde", ALL_SDES.values(), ids=ALL_SDES.keys())
DOUBLE = {"dtype": torch.float64}


def points(sde, shape=(2,), n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = sde.prior_std * torch.randn(n, *shape, generator=generator, **DOUBLE)
    return x, torch.linspace(0.05, 0.95, n, **DOUBLE) * sde.T


@every_sde
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_the_score_is_extrapolated(sde, scale):
    problem = labelled_ring()
    (x, t), label = points(sde), torch.tensor([0, 1, 2, 3, 0, 1])
    guided = ClassifierFreeGuidance(problem.score(sde), sde, scale=scale)
    plain, given = problem.score(sde)(x, t), problem.score(sde)(x, t, label)
    for cond in (label, {"label": label}):
        torch.testing.assert_close(guided(x, t, cond), plain + scale * (given - plain))


@pytest.mark.parametrize(
    "problem", [labelled_ring(), labelled_vectors(), labelled_images()], ids=["2-D", "64-D", "1x8x8"]
)
def test_at_scale_one_the_samples_are_those_of_the_conditional(problem):
    sde, law = VPSDE(), problem.of_class[1]
    guided = ClassifierFreeGuidance(problem.score(sde), sde, scale=1.0)
    sampler = make_sampler("eabm", sde, 30, denoise=True)
    samples = sampler(guided, (900, *law.shape), cond=torch.tensor([1])).samples
    assert distance_to_floor(samples, law) < 1.3


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES.keys())
@pytest.mark.parametrize("options", [{}, {"interval": (0.3, 3.0)}, {"rescale": 0.7}], ids=str)
def test_guided_samples_solve_the_guided_ode(sde, options):
    """SciPy's solution with the marginal densities' gradients, written out, from the same start."""
    problem, w, n = labelled_ring(), 2.5, 4
    end = 1e-3 if sde.prior_std == 1 else 1e-5
    guided = ClassifierFreeGuidance(problem.score(sde), sde, scale=w, **options)
    low, high = options.get("interval", (0, np.inf))

    def velocity(t, flat):
        x, time = torch.tensor(flat).view(n, 2), torch.full((n,), t, **DOUBLE)
        plain, given = problem.law.score(sde)(x, time), problem.of_class[1].score(sde)(x, time)
        alpha, sigma = sde.alpha(time[0]), sde.sigma(time[0])
        score = plain + w * (given - plain) if low < sigma / alpha <= high else given
        if "rescale" in options:
            x_0, x_0_given = (x + sigma**2 * score) / alpha, (x + sigma**2 * given) / alpha
            ratio = x_0_given.std(1, keepdim=True) / x_0.std(1, keepdim=True)
            score = (alpha * (0.3 + 0.7 * ratio) * x_0 - x) / sigma**2
        f, g2 = sde.dlog_alpha(time[0]), sde.g2(time[0])
        return (f * x - g2 / 2 * score).flatten().numpy()

    x_T = sde.prior_std * torch.randn(n, 2, generator=torch.Generator().manual_seed(3), **DOUBLE)
    # The interval's ends are jumps of the velocity: the solution is continued from each.
    levels = torch.tensor([level for level in (high, low) if 0 < level < np.inf], **DOUBLE)
    stops = [sde.T, *sde.time_at_log_noise_level(levels.log()).tolist(), end]
    exact = x_T.flatten().numpy()
    for start, stop in zip(stops[:-1], stops[1:], strict=True):
        inner = start - 1e-12 * (start < sde.T), stop + 1e-12 * (stop > end)
        exact = solve_ivp(velocity, inner, exact, method="DOP853", rtol=1e-7, atol=1e-8).y[:, -1]
    sampler = make_sampler("heun", sde, grid=clock_grid(sde, 300, eps=end))
    samples = sampler(guided, (n, 2), x_T=x_T, cond=torch.tensor([1])).samples
    scale = np.abs(exact).max()
    np.testing.assert_allclose(samples.flatten().numpy(), exact, atol=5e-3 * scale)


def test_a_negative_condition_takes_the_place_of_the_null_one():
    problem, sde = labelled_ring(), VPSDE()
    x, t = points(sde)
    guided = ClassifierFreeGuidance(problem.score(sde), sde, torch.tensor([3]), scale=2.0)
    given, away = (problem.of_class[k].score(sde)(x, t) for k in (0, 3))
    torch.testing.assert_close(guided(x, t, torch.zeros(6).long()), 2 * given - away)


def counted_evaluations(score, t, n=2):
    counted = CountedScore(score, n, torch.tensor([0]))
    counted(torch.zeros(n, 2, **DOUBLE), t)
    return counted.evaluations_each().tolist()


@pytest.mark.parametrize(
    ("scale", "interval", "rows", "counted"),
    [
        (0.0, None, 2, [1, 1]),
        (1.0, None, 2, [1, 1]),
        (2.0, None, 4, [2, 2]),
        (2.0, (0.1, 1.0), 3, [2, 1]),  # the second time is outside
        (0.0, (0.1, 1.0), 2, [1, 1]),
        (2.0, (1e-6, 1e-5), 2, [1, 1]),
    ],
)
def test_one_call_evaluates_what_is_needed_and_the_meter_counts_it(scale, interval, rows, counted):
    sde, net = VPSDE(), labelled_ring().score(VPSDE())
    guided = ClassifierFreeGuidance(net, sde, scale=scale, interval=interval)
    levels = torch.tensor([0.5, 20.0], **DOUBLE)
    t = sde.time_at_log_noise_level(levels.log())
    assert counted_evaluations(guided, t) == counted
    assert net.sizes == [rows]


def test_outside_the_interval_there_is_the_conditional_score():
    sde, problem = VPSDE(), labelled_ring()
    x, t = points(sde)
    score = problem.score(sde)
    level = sde.log_noise_level(t).exp()
    inside = (level > 0.2) & (level <= 2)
    assert inside.any() and not inside.all()
    label = torch.ones(6).long()
    plain, given = score(x, t), score(x, t, label)
    for scale in (0.0, 3.0):
        guided = ClassifierFreeGuidance(score, sde, scale=scale, interval=(0.2, 2))
        expected = torch.where(inside[:, None], plain + scale * (given - plain), given)
        torch.testing.assert_close(guided(x, t, label), expected)


def test_rescaling_restores_the_contrast():
    """At φ = 1 the guided x̂_0 has the standard deviation of the conditional one."""
    sde, problem = VPSDE(), labelled_images()
    x, t = points(sde, (1, 8, 8))
    score, label = problem.score(sde), torch.ones(6).long()
    scores = (
        ClassifierFreeGuidance(score, sde, scale=4.0),
        ClassifierFreeGuidance(score, sde, scale=4.0, rescale=1.0),
        score,
    )
    before, after, given = (tweedie(sde, ConditionalScore(each, label), x, t) for each in scores)
    spread = [y.flatten(1).std(1) for y in (before, after, given)]
    torch.testing.assert_close(spread[1], spread[2])
    assert (spread[0] - spread[2]).abs().max() > 0.01
    torch.testing.assert_close(after / before, (spread[2] / spread[0]).view(-1, 1, 1, 1).expand_as(x))


@pytest.mark.parametrize("name", ["eabm", "pc", "ddpm", "restart", "ode", "adaptive_sde"])
def test_a_sample_depends_on_its_seed_and_index_only(name):
    """In a batch of five and in a batch of two, with a network whose sums depend on the batch's size."""
    torch.manual_seed(0)
    net = UNet(1, 16, (1,), 1, (), num_classes=4)
    nn.init.normal_(net.conv_out.weight, std=0.1)
    sde = VPSDE()
    model = FixedBatches(ScoreModel(net, sde), 4)
    guided = ClassifierFreeGuidance(model, sde, scale=2.0, interval=(0.1, 4))
    options = {"ode": {"rtol": 1e-2, "atol": 1e-2}, "adaptive_sde": {"rtol": 0.5}}.get(name)
    nfe = {"restart": 120, "ode": None, "adaptive_sde": None}.get(name, 12)
    sampler, labels = make_sampler(name, sde, nfe, options=options), torch.tensor([2, 0, 1, 3, -1])
    whole = sampler(guided, (5, 1, 8, 8), seed=1, cond={"label": labels})
    part = sampler(guided, (2, 1, 8, 8), seed=1, first=3, cond={"label": labels[3:]})
    assert torch.equal(whole.samples[3:], part.samples)
    assert torch.equal(whole.nfe_each[3:], part.nfe_each)


def test_the_null_condition_is_no_condition_to_a_network():
    """Label -1, a zero vector and masked tokens give what the network gives without a condition."""
    torch.manual_seed(0)
    net = UNet(1, 16, (1,), 1, (0,), num_classes=4, vector_dim=3, token_dim=5)
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)
    x, noise = torch.randn(2, 1, 8, 8), torch.zeros(2)
    cond = {"label": torch.tensor([1, 2]), "vector": torch.randn(2, 3), "tokens": torch.randn(2, 4, 5)}
    torch.testing.assert_close(net(x, noise, null_condition(cond)), net(x, noise))
    model, sde, t = ScoreModel(net, VPSDE()), VPSDE(), torch.tensor([0.2, 0.7])

    def check(negative, away):
        guided = ClassifierFreeGuidance(model, sde, negative, scale=3.0)
        expected = 3 * model(x, t, cond) - 2 * model(x, t, away)
        torch.testing.assert_close(guided(x, t, cond), expected, rtol=1e-4, atol=1e-4)

    check(None, None)
    check({"label": torch.tensor([3])}, null_condition(cond) | {"label": torch.tensor([3, 3])})


def test_the_null_condition_is_that_of_training():
    cond = {
        "label": torch.tensor([1, 2]),
        "vector": torch.randn(2, 3),
        "tokens": torch.randn(2, 4, 5),
        "image": torch.randn(2, 1, 8, 8),
    }
    dropped = drop_conditions(cond, torch.ones(2, dtype=torch.bool))
    null = null_condition(cond)
    assert null.keys() == dropped.keys() and all(torch.equal(null[kind], dropped[kind]) for kind in null)


def test_the_learned_variance_is_the_conditional_ones():
    class Net(nn.Module):
        def forward(self, x, noise, cond):
            return torch.cat([x, cond[:, None] + 0 * x], 1)

    sde = VPSDE()
    model = ScoreModel(Net(), sde, learned_variance=True)
    x, t = torch.randn(3, 2), torch.full((3,), 0.5)
    fraction = ClassifierFreeGuidance(model, sde).score_and_fraction(x, t, torch.full((3,), 5))[1]
    assert (fraction == 3).all()


BAD = {
    "negative scale": (dict(scale=-1), "scale must be a number of at least 0 .* got -1"),
    "interval reversed": (dict(interval=(2, 1)), r"interval must be two increasing.*got \(2, 1\)"),
    "interval below zero": (dict(interval=(-1, 1)), "interval must be two increasing"),
    "rescale": (dict(rescale=1.5), r"rescale must lie in \[0, 1\], 0 for none, got 1.5"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD.keys())
def test_bad_options_are_refused(options, message):
    sde = VPSDE()
    with pytest.raises(InputError, match=message):
        ClassifierFreeGuidance(labelled_ring().score(sde), sde, **options)


LABEL = torch.ones(3).long()
BAD_CALLS = {
    "none": (None, None, "classifier-free guidance needs a condition: give it to the sampler"),
    "bare tokens": (torch.zeros(3, 3, 8), None, "no null condition that is known: name its kind"),
    "another kind": (
        {"label": LABEL},
        {"vector": torch.zeros(1, 2)},
        "negative has vector, which cond lacks: it has label",
    ),
    "a dict and a tensor": ({"label": LABEL}, LABEL, "both be tensors, or both be dicts"),
    "another shape": (
        torch.zeros(3, 3),
        torch.zeros(1, 2),
        r"negative must have rows of shape \(3,\) as that of cond, got \(2,\)",
    ),
    "another number": (LABEL, LABEL[:2], "negative has 2 rows, and the score is evaluated for 3 samples"),
}


@pytest.mark.parametrize(("cond", "negative", "message"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_bad_calls_are_refused(cond, negative, message):
    sde = VPSDE()
    x, t = torch.zeros(3, 2), torch.full((3,), 0.5)
    with pytest.raises(InputError, match=message):
        ClassifierFreeGuidance(labelled_ring().score(sde), sde, negative)(x, t, cond)


def test_a_network_without_conditions_is_refused():
    sde = VPSDE()
    guided = ClassifierFreeGuidance(ScoreModel(lambda x, noise: x, sde), sde)
    with pytest.raises(InputError, match="takes no condition"):
        guided(torch.zeros(3, 2), torch.full((3,), 0.5), LABEL)
