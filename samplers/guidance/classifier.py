"""Classifier guidance: the score plus the gradient of a classifier that knows the noise level.

    ∇ log p_t(x | y) = ∇ log p_t(x) + ∇ log p(y | x_t = x)                        (Bayes' rule)
    s_w(x, t) = s(x, t) + w ∇ log p(y | x_t = x)

At w = 1 with the exact p(y | x_t) the samples are those of p(x_0 | y). It works with any score, an
unconditional one or one that is conditioned on something else, and with any differentiable log p(y | x_t):
a classifier's, a regression's, a constraint's.

Dhariwal & Nichol's Algorithm 2 (DDIM) subtracts σ_t ∇ log p(y | x_t) from ε̂ = -σ_t s: it is DDIM with s_w,
exactly. Their Algorithm 1 moves the mean of DDPM's step by w Σ ∇ log p(y | x_t), where ancestral sampling
with s_w moves it by w (α_s/α_t) σ²_{t|s} ∇ log p(y | x_t): equal up to the factor α_{t|s} for the variance
"large", and in the limit of small steps for both. `MeanShiftSampler` is that algorithm.

Assumes a classifier trained on noisy data at all noise levels. Costs, besides the evaluation of the score,
one evaluation of the classifier and its gradient, which is not counted among the network evaluations; none
where w = 0. A classifier that is not calibrated moves its samples beyond p(x_0 | y), as w > 1 does.

References:
    Deep Unsupervised Learning using Nonequilibrium Thermodynamics (Sohl-Dickstein et al., 2015),
        https://arxiv.org/abs/1503.03585: Section 2.5.
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021),
        https://arxiv.org/abs/2011.13456: Section 5.
    Diffusion Models Beat GANs on Image Synthesis (Dhariwal & Nichol, 2021), https://arxiv.org/abs/2105.05233:
        Algorithms 1 and 2.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from score_diffusion.samplers.base import CountedScore
from score_diffusion.samplers.chain import AncestralSampler
from score_diffusion.samplers.grids import Grid
from score_diffusion.samplers.guidance.conditions import rows_for
from score_diffusion.samplers.guidance.strength import checked_scale
from score_diffusion.samplers.linear import Clip
from score_diffusion.sde_lib import SDE, InputError, ScoreFunction, ScoreWrapper
from score_diffusion.sde_lib.score_wrapper import Condition, Evaluation

LogProbability = Callable[..., Tensor]
"""log p(y | x_t) up to a constant, shape (B,), of x (B, *shape), t (B,) and, if it takes a third argument,
the condition that holds y, such as {"label": labels}.
"""


class LogProbabilityGradient:
    """∇ log p(y | x_t = x) as a function of x, t and the condition.

    Args:
        log_prob: The function.
    """

    def __init__(self, log_prob: LogProbability) -> None:
        self._log_prob, self._takes_condition = log_prob, _takes_three(log_prob)

    @property
    def any_dtype(self) -> bool:
        """Whether the function takes x and t in any floating-point dtypes."""
        return getattr(self._log_prob, "any_dtype", False)

    def __call__(self, x: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
        """The gradient, shape (B, *shape).

        Raises:
            InputError: If the function does not return one number per sample, or does not depend on x.
        """
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = self._log_prob(x, t, cond) if self._takes_condition else self._log_prob(x, t)
            if value.shape != (len(x),) or not value.requires_grad:
                raise InputError(
                    f"log_prob must return a number for each of the {len(x)} samples, shape ({len(x)},), "
                    f"that depends on x, got shape {tuple(value.shape)}"
                    + ("" if value.requires_grad else " without a gradient")
                )
            return torch.autograd.grad(value.sum(), x)[0]


def _takes_three(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind(None, None, None)
    except TypeError:
        return False
    return True


class ClassifierGuidance(ScoreWrapper):
    """Classifier guidance.

    Args:
        score: The score. It is called with the condition, too, if there is one: an unconditional model comes
            as `WithoutCondition(model)`.
        log_prob: log p(y | x_t) as a differentiable function of x (B, *shape) and t (B,), or of x, t and the
            condition, shape (B,): any function, or a `ClassLogProbability`.
        scale: Guidance scale w of at least 0, 1 for Bayes' rule.

    Raises:
        InputError: If scale is negative.
    """

    def __init__(self, score: ScoreFunction, log_prob: LogProbability, *, scale: float = 1.0) -> None:
        super().__init__(score)
        self.gradient, self.scale = LogProbabilityGradient(log_prob), checked_scale(scale)

    @property
    def any_dtype(self) -> bool:
        return super().any_dtype and self.gradient.any_dtype

    def evaluate(self, inner: Evaluation, x: Tensor, t: Tensor, cond: Condition = None) -> tuple[Tensor, ...]:
        score, *fraction = inner(x, t, cond)
        if self.scale == 0:
            return (score, *fraction)
        return (score + self.scale * self.gradient(x, t, cond), *fraction)


class ClassLogProbability:
    """log p(y | x_t) of the label of the condition.

    Args:
        classifier: `classifier(x, t)` gives the logits of the classes, shape (B, K).
    """

    def __init__(self, classifier: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.classifier = classifier

    @property
    def any_dtype(self) -> bool:
        """Whether the classifier takes x and t in any floating-point dtypes."""
        return getattr(self.classifier, "any_dtype", False)

    def __call__(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """log p(y | x_t), shape (B,), of labels int64 (B,) or {"label": labels}.

        Raises:
            InputError: If there is no label.
        """
        label = cond.get("label") if isinstance(cond, Mapping) else cond
        if label is None:
            raise InputError(
                'classifier guidance needs a class: give it to the sampler, cond={"label": torch.tensor([7])}'
            )
        log_probs = self.classifier(x, t).log_softmax(1)
        return log_probs.gather(1, rows_for(label, x, "label")[:, None])[:, 0]


class MeanShiftSampler(AncestralSampler):
    """DDPM's ancestral sampling guided by a classifier (Dhariwal & Nichol, 2021, Algorithm 1).

    It takes the score without guidance.

    Args:
        sde, times, denoise: As for every `Sampler`.
        log_prob: As for `ClassifierGuidance`.
        scale: Guidance scale s of at least 0.
        variance, clip: As for `AncestralSampler`.

    Raises:
        InputError: As for AncestralSampler, or if scale is negative.
    """

    def __init__(
        self,
        sde: SDE,
        times: Tensor | Grid,
        log_prob: LogProbability,
        *,
        scale: float = 1.0,
        denoise: bool = False,
        variance: str = "small",
        clip: Clip = 0.0,
    ) -> None:
        super().__init__(sde, times, denoise=denoise, variance=variance, clip=clip)
        self.gradient, self.scale = LogProbabilityGradient(log_prob), checked_scale(scale)

    def transition(self, score: CountedScore, x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = super().transition(score, x, s, t)
        return mean + self.scale * var * self.gradient(x, t, score.cond), var
