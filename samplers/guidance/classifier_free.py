"""Classifier-free guidance: a network's score with a condition, extrapolated from its score without.

    s_w(x, t) = s(x, t) + w (s(x, t | c) - s(x, t))

with the network's null condition in s(x, t), which training must have dropped conditions to; or with a
negative condition, from which samples are guided away. Guidance by exact scores follows
p_t(x) (p_t(x | c)/p_t(x))^w at every t. For w ≠ 1 no law p_0 has these marginals, so that the samples'
law depends on the sampler: an ODE's is not that of a stochastic sampler.

Guidance in an interval of noise levels leaves w = 1 outside of it: at high noise it only loses modes, at
low noise it does nothing. Rescaling brings the standard deviation of the guided x̂_0 over the elements of a
sample back to that of the conditional one by a fraction φ, against saturated images:

    x̂_0 ← (1 - φ + φ std(x̂_0(c))/std(x̂_0)) x̂_0

Lin et al. rescale the output v of their network, which is -x̂_0 where noise dominates.

Costs one call of the network on the rows of both conditions, counted as 2 evaluations of a sample; 1 where
the scale is 0 or 1 and outside the interval, whose times are read back from the device once per call.

References:
    Classifier-Free Diffusion Guidance (Ho & Salimans, 2022), https://arxiv.org/abs/2207.12598: eq. 6.
    Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion Models
        (Kynkäänniemi et al., 2024), https://arxiv.org/abs/2404.07724: eq. 5.
    Common Diffusion Noise Schedules and Sample Steps are Flawed (Lin et al., 2024),
        https://arxiv.org/abs/2305.08891: Section 3.4.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from score_diffusion.samplers.guidance.conditions import (
    concatenated,
    null_condition,
    rows_for,
    with_mask,
)
from score_diffusion.samplers.guidance.strength import NoiseInterval, checked_scale
from score_diffusion.sde_lib import (
    SDE,
    InputError,
    ScoreFunction,
    ScoreWrapper,
    denoised_from,
    expand,
    map_condition,
    score_change,
)
from score_diffusion.sde_lib.per_sample import dot_each, root_mean_square_each
from score_diffusion.sde_lib.score_wrapper import Condition, Evaluation, evaluations


class ClassifierFreeGuidance(ScoreWrapper):
    """Classifier-free guidance, a score(x, t, cond).

    Args:
        score: A score that takes a condition, such as a `ScoreModel`, trained with conditions that are
            dropped now and then.
        sde: Its SDE.
        negative: The condition that samples are guided away from, with 1 row for all of them or one for each;
            None for the null condition, see `null_condition`. Kinds that it lacks are null.
        scale: Guidance scale w of at least 0, 0 for the unconditional score, 1 for the conditional one.
        interval: Noise levels σ/α, low and high, between which there is guidance; None for all.
        rescale: Fraction φ in [0, 1] by which the contrast of x̂_0 is brought back to that of the conditional
            one.

    Raises:
        InputError: If scale, interval or rescale is out of its range; when it is called, if there is no
            condition, or negative does not fit it.
    """

    def __init__(
        self,
        score: ScoreFunction,
        sde: SDE,
        negative: Tensor | Mapping[str, Tensor] | None = None,
        *,
        scale: float = 2.0,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
    ) -> None:
        super().__init__(score)
        self.sde, self.scale = sde, checked_scale(scale)
        self.interval = None if interval is None else NoiseInterval(sde, interval)
        if not 0 <= rescale <= 1:
            raise InputError(f"rescale must lie in [0, 1], 0 for none, got {rescale}")
        self.rescale = float(rescale)
        self.negative = with_mask(negative)

    def evaluations(self, t: Tensor) -> int | Tensor:
        of_score = evaluations(self.score, t)
        if self.scale in (0, 1):
            return of_score
        if self.interval is None:
            return 2 * of_score
        return torch.where(self.interval(t), 2, 1) * of_score

    def _rows(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The rows whose conditional score is needed, and those whose unconditional one is."""
        every = torch.arange(len(x), device=x.device)
        inside = torch.ones_like(t, dtype=torch.bool) if self.interval is None else self.interval(t)
        if self.scale == 1:
            return every, every[:0]
        guided = every if self.interval is None else every[inside]
        if self.scale == 0:
            return every[:0] if self.interval is None else every[~inside], guided
        return every, guided

    def evaluate(self, inner: Evaluation, x: Tensor, t: Tensor, cond: Condition = None) -> tuple[Tensor, ...]:
        if cond is None:
            raise InputError(
                "classifier-free guidance needs a condition: give it to the sampler, sampler(score, shape, "
                "cond=cond), or call a ConditionalScore(score, cond)"
            )
        cond = with_mask(cond)
        negative = null_condition(cond) if self.negative is None else _negative_for(cond, self.negative, x)
        given, null = self._rows(x, t)
        rows = torch.cat([given, null])
        conditions = concatenated(
            map_condition(lambda c: c[given], cond), map_condition(lambda c: c[null], negative)
        )
        values = inner(x[rows], t[rows], conditions)
        if self.scale in (0, 1):
            return tuple(torch.empty_like(value).index_copy(0, rows, value) for value in values)
        (conditional, unconditional), *fractions = (value.split([len(given), len(null)]) for value in values)
        guided = self._guided(x[null], t[null], conditional[null], unconditional)
        return (conditional.index_copy(0, null, guided), *(fraction for fraction, _ in fractions))

    def _guided(self, x: Tensor, t: Tensor, conditional: Tensor, unconditional: Tensor) -> Tensor:
        score = unconditional + self.scale * (conditional - unconditional)
        if not self.rescale or not len(x):
            return score
        x_0, x_0_conditional = (denoised_from(self.sde, value, x, t) for value in (score, conditional))
        ratio = _std_each(x_0_conditional) / _std_each(x_0)
        change = expand(self.rescale * (ratio - 1), x) * x_0  # of x̂_0
        return score + score_change(self.sde, change, t)


def _std_each(x: Tensor) -> Tensor:
    """The standard deviation over the elements of each sample, shape (B,), float64."""
    mean = dot_each(x, torch.ones_like(x)) / x[0].numel()
    return root_mean_square_each(x.double() - expand(mean, x.double()))


def _negative_for(cond: Condition, negative: Condition, x: Tensor) -> Condition:
    """A negative condition with all kinds of cond, those that it lacks null, and a row for each sample.

    Raises:
        InputError: If it is of another kind or shape.
    """
    if isinstance(cond, Mapping) != isinstance(negative, Mapping):
        raise InputError("cond and negative must both be tensors, or both be dicts of tensors")
    negative = map_condition(lambda value: rows_for(value, x, "negative"), negative)
    if isinstance(cond, Mapping):
        unknown = [kind for kind in negative if kind not in cond]
        if unknown:
            raise InputError(f"negative has {', '.join(unknown)}, which cond lacks: it has {', '.join(cond)}")
        if len(negative) < len(cond):
            negative = {**null_condition(cond), **negative}
        pairs = [(kind, cond[kind], negative[kind]) for kind in cond]
    else:
        pairs = [("tensor", cond, negative)]
    for kind, a, b in pairs:
        if a.shape != b.shape:
            raise InputError(
                f"the {kind} of negative must have rows of shape {tuple(a.shape[1:])} as that of cond, got "
                f"{tuple(b.shape[1:])}"
            )
    return negative
