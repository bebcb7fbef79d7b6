"""Each sample has its own condition in every sampler, whatever part of the batch it evaluates at a time."""

from __future__ import annotations

import pytest
import torch

from score_diffusion.samplers import SAMPLERS, FixedBatches, Grid, ODESampler, make_sampler
from score_diffusion.samplers.inverse import Mask, TwistedSampler
from score_diffusion.sde_lib import VPSDE, ConditionalScore, InputError, ScoreWrapper

SDE = VPSDE()
CENTRES = torch.tensor([[-2.0, 0.0], [0.0, 1.0], [3.0, -1.0]])
LABELS = torch.tensor([2, 0, 1, 0, 2])


class Centred(ScoreWrapper):
    """The exact score of N(centre of the label, 0.1² I), whose samples tell their labels."""

    any_dtype = True

    def __init__(self):
        super().__init__(lambda x, t: x)

    def evaluate(self, inner, x, t, cond=None):
        alpha, sigma = SDE.alpha(t).to(x)[:, None], SDE.sigma(t).to(x)[:, None]
        centre = CENTRES.to(x)[cond["label"]]
        return (-(x - alpha * centre) / ((0.1 * alpha) ** 2 + sigma**2),) * 2

    def score_and_fraction(self, x, t, cond=None):
        return self.evaluate(None, x, t, cond)


def of_name(name: str):
    options = {"ald": {"n_steps_each": 1}}.get(name)
    nfe = None if SAMPLERS[name].nfe_per_step is None else 60
    return make_sampler(name, SDE, nfe, options=options, denoise=True)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_a_sample_has_the_condition_of_its_row(name: str):
    """As if all samples of the batch had that condition."""
    sampler, score = of_name(name), FixedBatches(Centred(), 3)
    mixed = sampler(score, (5, 2), seed=1, cond={"label": LABELS}).samples
    for label in range(3):
        same = sampler(score, (5, 2), seed=1, cond={"label": torch.tensor([label])}).samples
        torch.testing.assert_close(mixed[LABELS == label], same[LABELS == label])
    if name not in ("ald", "cas"):  # too few steps for a law
        assert (mixed - CENTRES[LABELS]).norm(dim=1).max() < 1.0


def test_a_condition_has_one_row_or_one_for_each_sample():
    sampler = of_name("eabm")
    with pytest.raises(InputError, match="one row for each of the 4 samples, or 1, got 5"):
        sampler(Centred(), (4, 2), cond={"label": LABELS})
    with pytest.raises(InputError, match="conditions for 5 samples, got 4: .* sampler\\(score, shape, cond"):
        sampler(ConditionalScore(Centred(), {"label": LABELS}), (4, 2))
    given = sampler(Centred(), (5, 2), cond={"label": LABELS}).samples
    held = sampler(ConditionalScore(Centred(), {"label": LABELS}), (5, 2)).samples
    assert torch.equal(given, held)


def test_codes_are_those_of_the_condition():
    sampler = ODESampler(SDE, rtol=1e-6, atol=1e-6)
    x, cond = CENTRES[LABELS] + 0.05, {"label": LABELS}
    codes = sampler.encode(Centred(), x, cond)
    assert codes.abs().max() < 3
    torch.testing.assert_close(sampler(Centred(), (5, 2), x_T=codes, cond=cond).samples, x, rtol=0, atol=1e-3)


def test_the_particles_of_a_sample_have_its_condition():
    mask = Mask(torch.tensor([True, False]))
    options = dict(operator=mask, y=torch.zeros(1), sigma_y=1.0, particles=4)
    sampler = TwistedSampler(SDE, Grid("clock", 40), **options)
    samples = sampler(Centred(), (5, 2), cond={"label": LABELS}).samples
    assert (samples[:, 1] - CENTRES[LABELS, 1]).abs().max() < 0.6
    shared = TwistedSampler(SDE, Grid("clock", 5), **options, draws=2)
    with pytest.raises(InputError, match="the 2 draws of a set of particles share their condition"):
        shared(Centred(), (5, 2), cond={"label": LABELS})
    assert shared(Centred(), (5, 2), cond={"label": torch.tensor([1])}).samples.shape == (5, 2)
