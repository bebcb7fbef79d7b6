"""Conditions of a batch, and the null condition.

A condition is what a network takes as its third argument: a tensor, or a dict of tensors under the names
label, vector, tokens, mask, image and text, with a row for each sample. Samplers hand it to the score,
`sampler(score, shape, cond=cond)`; elsewhere `ConditionalScore(score, cond)` does.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from score_diffusion.sde_lib import InputError, ScoreWrapper
from score_diffusion.sde_lib.score_wrapper import Condition, Evaluation


def rows_for(value: Tensor, x: Tensor, name: str) -> Tensor:
    """A tensor of 1 row for all samples, or of one for each, with a row for each sample of x on its device.

    Raises:
        InputError: If it has another number of rows; the message calls it by its name.
    """
    if len(value) not in (1, len(x)):
        raise InputError(
            f"{name} has {len(value)} rows, and the score is evaluated for {len(x)} samples: give it one row "
            "for all, or use a sampler that evaluates all samples at once"
        )
    return value.to(x.device).expand(len(x), *value.shape[1:])


NULL: dict[str, int | bool] = {"label": -1, "vector": 0, "mask": False, "image": 0, "text": 0}
"""What the tensors of the null condition are filled with."""
KEPT = ("tokens", "low_resolution", "augmentation")
"""Kinds whose tensors stay: tokens become invalid, and an image that is enlarged stays what it is."""


def null_condition(cond: Condition) -> Condition:
    """The null condition in the shape of a condition: no class, a zero vector, no valid token, a zero image.

    A bare tensor of integers is taken for labels, one of floating-point numbers for vectors.

    Raises:
        InputError: If a bare tensor is neither.
    """
    if not isinstance(cond, Tensor):
        return {k: v if k in KEPT else torch.full_like(v, NULL[k]) for k, v in with_mask(cond).items()}
    if cond.ndim > 2:
        raise InputError(
            f"a tensor of shape {tuple(cond.shape)} has no null condition that is known: name its kind, "
            'cond={"tokens": ...}, or give the null condition of your network as negative'
        )
    return torch.full_like(cond, NULL["vector" if cond.is_floating_point() else "label"])


def with_mask(cond: Condition) -> Condition:
    """A condition whose tokens, if there are any, have a mask."""
    if isinstance(cond, Mapping) and "tokens" in cond and "mask" not in cond:
        tokens = cond["tokens"]
        return {**cond, "mask": torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)}
    return cond


def concatenated(a: Condition, b: Condition) -> Condition:
    """The rows of one condition and, after them, those of another of the same kinds and shapes."""
    if isinstance(a, Mapping):
        return {kind: torch.cat([a[kind], b[kind]]) for kind in a}
    return torch.cat([a, b])


class WithoutCondition(ScoreWrapper):
    """A score that ignores the condition that it is called with, so that only its guidance sees it."""

    def evaluate(self, inner: Evaluation, x: Tensor, t: Tensor, cond: Condition = None) -> tuple[Tensor, ...]:
        return inner(x, t)
