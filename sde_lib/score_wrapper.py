"""Score functions made of other score functions.

    score                 a function (x, t) -> ∇ log p_t(x), or (x, t, cond) -> ∇ log p_t(x | cond)
    score.device          where it computes; optional
    score.any_dtype       whether x and t may have any floating-point dtypes, else both have one; optional
    score_and_fraction    the score and the fraction of a learned variance, from one evaluation; optional

A `ScoreWrapper` changes one or more of these and passes on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from score_diffusion.sde_lib.errors import InputError
from score_diffusion.sde_lib.sde import ScoreFunction

Condition = Any
"""What a network is conditioned on: a tensor of shape (B, ...), a dict of such tensors, or None."""

Evaluation = Callable[..., tuple[Tensor, ...]]
"""`inner(x, t, cond=None)`: (score,), or (score, fraction) where the fraction is wanted too."""


def score_device(score: ScoreFunction) -> torch.device:
    """The device that a score computes on, the CPU for a function that does not name one."""
    return torch.device(getattr(score, "device", "cpu"))


def score_and_fraction(
    score: ScoreFunction, x: Tensor, t: Tensor, cond: Condition = None
) -> tuple[Tensor, Tensor]:
    """The score and the fraction v of a learned variance, from one evaluation.

    Raises:
        InputError: If the score has no learned variance.
    """
    method = getattr(score, "score_and_fraction", None)
    if method is None:
        raise InputError(
            "variance='learned' needs a score with the method score_and_fraction(x, t), which "
            f"{getattr(score, '__name__', type(score).__name__)} lacks: use a "
            "ScoreModel(..., learned_variance=True), or another variance"
        )
    return method(x, t) if cond is None else method(x, t, cond)


class ScoreWrapper:
    """A score function made of another one: the base class of everything that changes a score.

    A subclass overrides `evaluate`, once for the score and for the score with a fraction:

        class Doubled(ScoreWrapper):
            def evaluate(self, inner, x, t, cond=None):
                score, *fraction = inner(x, t, cond)
                return (2 * score, *fraction)

    `inner` may be called any number of times, with batches of any size. `CountedScore` of the samplers counts
    `evaluations(t)` for a call: a subclass that evaluates the network more than once overrides that, too.

    Args:
        score: The score function to wrap: a `ScoreModel`, another wrapper, or any function of (x, t).
    """

    def __init__(self, score: ScoreFunction) -> None:
        self.score: Callable[..., Tensor] = score

    @property
    def device(self) -> torch.device:
        """The device of the wrapped score."""
        return score_device(self.score)

    @property
    def any_dtype(self) -> bool:
        """Whether the wrapped score takes x and t in any floating-point dtypes."""
        return getattr(self.score, "any_dtype", False)

    def evaluations(self, t: Tensor) -> int | Tensor:
        """Evaluations of the network that a call at times t (B,) takes: a number, or one per sample (B,)."""
        return evaluations(self.score, t)

    def evaluate(self, inner: Evaluation, x: Tensor, t: Tensor, cond: Condition = None) -> tuple[Tensor, ...]:
        """The outputs at x and t, by those of the wrapped score.

        Args:
            inner: The wrapped score, `inner(x, t, cond=None)`: returns (score,) or (score, fraction).
            x: Noisy samples, shape (B, *shape).
            t: Times, shape (B,).
            cond: What the caller conditions on.

        Returns:
            As many tensors like x as `inner` returns.
        """
        return inner(x, t, cond)

    def __call__(self, x: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
        """The score of x, shape (B, *shape), at times t, shape (B,)."""
        return self.evaluate(self._score_only, x, t, cond)[0]

    def score_and_fraction(self, x: Tensor, t: Tensor, cond: Condition = None) -> tuple[Tensor, Tensor]:
        """The score and the fraction of a learned variance, see `ScoreModel.score_and_fraction`."""
        score, fraction = self.evaluate(self._with_fraction, x, t, cond)
        return score, fraction

    def _score_only(self, x: Tensor, t: Tensor, cond: Condition = None) -> tuple[Tensor, ...]:
        return (self.score(x, t) if cond is None else self.score(x, t, cond),)

    def _with_fraction(self, x: Tensor, t: Tensor, cond: Condition = None) -> tuple[Tensor, ...]:
        return score_and_fraction(self.score, x, t, cond)


def evaluations(score: ScoreFunction, t: Tensor) -> int | Tensor:
    """Evaluations of the network that a call of a score at times t (B,) takes: one unless the score says."""
    return score.evaluations(t) if isinstance(score, ScoreWrapper) else 1


def map_condition(function: Callable[[Tensor], Tensor], cond: Condition) -> Condition:
    """A condition with a function applied to each of its tensors."""
    if isinstance(cond, Mapping):
        return {kind: function(value) for kind, value in cond.items()}
    return None if cond is None else function(cond)


class CastScore(ScoreWrapper):
    """A score that sees x in one dtype only, called with any.

    Args:
        score: The score.
        dtype: The floating-point type that it is called with; times have at least single precision.
    """

    any_dtype = True

    def __init__(self, score: ScoreFunction, dtype: torch.dtype) -> None:
        super().__init__(score)
        self.dtype = dtype

    def evaluate(self, inner: Evaluation, x: Tensor, t: Tensor, cond: Condition = None) -> tuple[Tensor, ...]:
        t = t.to(torch.promote_types(self.dtype, torch.float32))
        return tuple(value.to(x.dtype) for value in inner(x.to(self.dtype), t, cond))


def in_dtype(score: ScoreFunction, dtype: torch.dtype) -> ScoreFunction:
    """A score to be called in float64 while it computes in the caller's dtype, as a user's network must.

    A `ScoreModel` or an exact law takes any dtype and is returned as it is.
    """
    return score if getattr(score, "any_dtype", False) else CastScore(score, dtype)


class ConditionalScore(ScoreWrapper):
    """The score ∇ log p_t(x | c) as a function of x and t.

    Samplers take conditions themselves, `sampler(score, shape, cond=cond)`, and give those that choose the
    steps of each sample its own condition; this is for likelihoods, losses and everything else.

    Args:
        score: A score that takes a condition, such as a `ScoreModel`.
        cond: The condition c: a tensor of shape (1, ...) that all samples share, or of shape (B, ...) with
            one for each, or a dict of such tensors.

    Raises:
        InputError: When it is called with another condition, or with another number of samples than it has
            conditions for.
    """

    def __init__(self, score: ScoreFunction, cond: Tensor | Mapping[str, Tensor]) -> None:
        super().__init__(score)
        self.cond = cond

    def evaluate(self, inner: Evaluation, x: Tensor, t: Tensor, cond: Condition = None) -> tuple[Tensor, ...]:
        if cond is not None:
            raise InputError("this ConditionalScore has its condition already: call it as score(x, t)")

        def repeat(value: Tensor) -> Tensor:
            if len(value) not in (1, len(x)):
                raise InputError(
                    f"this ConditionalScore has conditions for {len(value)} samples, got {len(x)}: give it "
                    "one for all, or give the conditions to the sampler, sampler(score, shape, cond=cond)"
                )
            return value.to(x.device).expand(len(x), *value.shape[1:])

        return inner(x, t, map_condition(repeat, self.cond))
