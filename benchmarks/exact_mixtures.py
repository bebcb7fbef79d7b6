"""Samples and likelihoods of exact mixtures, with the exact score: the table in docs/results.md.

    python -m benchmarks.exact_mixtures
    python -m benchmarks.exact_mixtures --law ring --sde vp --samples 50      # a quick look

For every SDE: the sliced 2-Wasserstein distance (500 directions) between 1,000 samples and 1,000 true ones,
divided by the mean distance between two sets of true ones; and the largest error of the probability-flow
log-likelihood (exact trace, 8 samples) against log p_eps, in nats per dimension, with the prior of the SDE
and with p_T of the mixture.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from score_diffusion.samplers import AnnealedLangevinSampler, ODESampler, PCSampler, Sampler, uniform_grid
from score_diffusion.sde_lib import SDE, GaussianMixture, log_likelihood
from tests.problems import SDES, images, ring, sampling_floor, sliced_wasserstein

SCORED, EPS = 8, 1e-5
LAWS = {"ring": ("2-D, 8 modes", ring()), "images": ("1x8x8, 10 components", images())}


def samplers(sde: SDE) -> dict[str, Sampler]:
    """The three samplers with their default settings, PC on the grid of its paper."""
    pc = PCSampler(sde, uniform_grid(sde, sde.N))
    return {"PC": pc, "ODE": ODESampler(sde), "ALD": AnnealedLangevinSampler(sde)}


def likelihood_errors(sde: SDE, law: GaussianMixture) -> tuple[float, float]:
    """Largest errors in nats per dimension, with the prior of the SDE and with p_T of the law."""
    x = law.sample(SCORED, seed=1)
    exact = law.log_prob_t(sde)(x, torch.full((SCORED,), EPS, dtype=torch.float64))
    errors = []
    for density in (sde.prior_logp, law.marginal(sde, sde.T).log_prob):
        result = log_likelihood(sde, law.score(sde), x, divergence="exact", prior_logp=density)
        errors.append(((result.log_prob - exact).abs().max() / x[0].numel()).item())
    return tuple(errors)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=1000, help="samples of each sampler")
    parser.add_argument("--law", nargs="+", choices=LAWS, default=list(LAWS), help="exact mixtures")
    parser.add_argument("--sde", nargs="+", choices=SDES, default=list(SDES), help="SDEs")
    arguments = parser.parse_args(argv)
    count = arguments.samples
    print("| law | SDE | PC | ODE | ALD | NFE of these | log-likelihood error | with the law's p_T |")
    print("|---|---|---|---|---|---|---|---|")
    for name, law in (LAWS[key] for key in arguments.law):
        floor, truth = sampling_floor(law, count, repeats=10), law.sample(count, seed=77)
        for sde_name in arguments.sde:
            sde = SDES[sde_name]
            results = [s(law.score(sde), (count, *law.shape), seed=3) for s in samplers(sde).values()]
            ratios = " | ".join(f"{sliced_wasserstein(r.samples, truth) / floor:.2f}" for r in results)
            nfe = ", ".join(str(r.nfe) for r in results)
            errors = " | ".join(f"{e:.1e}" for e in likelihood_errors(sde, law))
            print(f"| {name} | {sde_name} | {ratios} | {nfe} | {errors} |", flush=True)


if __name__ == "__main__":
    main()
