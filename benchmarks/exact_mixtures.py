"""Sampling laws and likelihoods against exact mixtures, with the exact score: the table in docs/results.md.

    python -m benchmarks.exact_mixtures

For every SDE: sliced 2-Wasserstein distance (500 directions) of 1,000 samples to 1,000 true ones, over the
mean distance between two sets of true ones; and the largest error of the probability-flow log-likelihood
(exact trace, 8 samples) against log p_eps, in nats per dimension, with the SDE's prior and with the law's own
p_T.
"""

from __future__ import annotations

import torch

from score_diffusion.samplers import AnnealedLangevinSampler, ODESampler, PCSampler, Sampler
from score_diffusion.sde_lib import SDE, GaussianMixture, log_likelihood
from tests.problems import SDES, images, ring, sampling_floor, sliced_wasserstein

SAMPLES, SCORED, EPS = 1000, 8, 1e-5
LAWS = {"2-D, 8 modes": ring(), "1x8x8, 10 components": images()}


def samplers(sde: SDE) -> dict[str, Sampler]:
    """The three samplers with their default settings."""
    return {"PC": PCSampler(sde), "ODE": ODESampler(sde), "ALD": AnnealedLangevinSampler(sde)}


def likelihood_errors(sde: SDE, law: GaussianMixture) -> tuple[float, float]:
    """Largest errors in nats per dimension, with the SDE's prior and with the law's own p_T."""
    x = law.sample(SCORED, seed=1)
    exact = law.log_prob_t(sde)(x, torch.full((SCORED,), EPS, dtype=torch.float64))
    errors = []
    for density in (sde.prior_logp, law.marginal(sde, sde.T).log_prob):
        result = log_likelihood(sde, law.score(sde), x, divergence="exact", prior_logp=density)
        errors.append(((result.log_prob - exact).abs().max() / x[0].numel()).item())
    return tuple(errors)


def main() -> None:
    print("| law | SDE | PC | ODE | ALD | NFE of these | log-likelihood error | with the law's p_T |")
    print("|---|---|---|---|---|---|---|---|")
    for name, law in LAWS.items():
        floor, truth = sampling_floor(law, SAMPLES, repeats=10), law.sample(SAMPLES, seed=77)
        for sde_name, sde in SDES.items():
            results = [s(law.score(sde), (SAMPLES, *law.shape), seed=3) for s in samplers(sde).values()]
            ratios = " | ".join(f"{sliced_wasserstein(r.samples, truth) / floor:.2f}" for r in results)
            nfe = ", ".join(str(r.nfe) for r in results)
            errors = " | ".join(f"{e:.1e}" for e in likelihood_errors(sde, law))
            print(f"| {name} | {sde_name} | {ratios} | {nfe} | {errors} |", flush=True)


if __name__ == "__main__":
    main()
