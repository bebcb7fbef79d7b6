"""Classifier-free guidance with exact scores: what the scale does, with nothing learned in between.

    python examples/guidance.py

Two classes overlap. Guidance follows s(x) + w (s(x | class) - s(x)): the larger the scale w, the fewer
samples are mistaken for the other class, and the less they differ from each other.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

from score_diffusion.samplers import make_sampler
from score_diffusion.samplers.guidance import ClassifierFreeGuidance
from score_diffusion.sde_lib import VPSDE, Gaussian, GaussianMixture

CENTRES = torch.tensor([[-0.7, 0.0], [0.7, 0.0]])  # of the two classes


class ExactScore:
    """score(x, t, cond) of the classes, and of both together without a condition, as a network learns it."""

    def __init__(self, sde: VPSDE) -> None:
        variance = torch.tensor(0.5)
        self.of_class = [Gaussian(centre, variance).score(sde) for centre in CENTRES]
        self.of_all = GaussianMixture(CENTRES, variance.expand(2)).score(sde)

    def __call__(self, x: Tensor, t: Tensor, cond: dict[str, Tensor] | None = None) -> Tensor:
        plain = self.of_all(x, t)
        if cond is None:
            return plain
        each = torch.stack([score(x, t) for score in self.of_class])  # (2, B, 2)
        label = cond["label"]  # -1 is no class
        chosen = each[label.clamp_min(0), torch.arange(len(x))]
        return torch.where((label < 0)[:, None], plain, chosen)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2000)
    samples = parser.parse_args(arguments).samples

    sde = VPSDE()
    sampler = make_sampler("eabm", sde, nfe=25, denoise=True)
    label = {"label": torch.ones(samples, dtype=torch.long)}  # class 1, on the right
    print("scale   on its own side   standard deviation   evaluations")
    for scale in (0.0, 1.0, 2.0, 5.0):
        guided = ClassifierFreeGuidance(ExactScore(sde), sde, scale=scale)
        result = sampler(guided, (samples, 2), seed=0, cond=label)
        x = result.samples
        print(f"{scale:5} {(x[:, 0] > 0).double().mean():16.1%} {x.std(0).mean():20.3f} {result.nfe:13}")


if __name__ == "__main__":
    main()
