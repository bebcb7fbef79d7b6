"""Telling another data set from held-out data by a model's scores.

A score is the negative log-likelihood (NLL) of a sample. Two rules say which samples are from elsewhere:

    likelihood     a high NLL
    typicality     an NLL far from the mean of held-out data, on either side     |NLL - mean|

The first fails where the other data are simpler: constant images may have a higher density than any image of
the data, as a mode of a distribution has that never occurs (Nalisnick et al., 2019).

References:
    Do Deep Generative Models Know What They Don't Know? (Nalisnick et al., 2019),
        https://arxiv.org/abs/1810.09136.
    Detecting Out-of-Distribution Inputs to Deep Generative Models Using Typicality (Nalisnick et al., 2019),
        https://arxiv.org/abs/1906.02994: Section 3, for one sample at a time.
    The Meaning and Use of the Area under a Receiver Operating Characteristic (ROC) Curve (Hanley & McNeil,
        1982), https://doi.org/10.1148/radiology.143.1.7063747: its standard error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from score_diffusion.run.inference.scoring import Scores

SURE = 3.0  # standard errors


@dataclass(frozen=True)
class Separation:
    """The area under the ROC curve: the probability that one of the other samples has the higher value."""

    auroc: float
    standard_error: float

    @classmethod
    def of(cls, held_out: np.ndarray, other: np.ndarray) -> Separation:
        """Of values of n and m samples."""
        labels = np.repeat([0, 1], [len(held_out), len(other)])
        area = float(roc_auc_score(labels, np.concatenate([held_out, other])))
        n, m = len(held_out), len(other)
        two_others, two_held_out = area / (2 - area), 2 * area**2 / (1 + area)
        variance = area * (1 - area) + (m - 1) * (two_others - area**2) + (n - 1) * (two_held_out - area**2)
        return cls(area, math.sqrt(max(0.0, variance) / (n * m)))

    def __str__(self) -> str:
        return f"{self.auroc:.3f} ± {self.standard_error:.3f}"


@dataclass(frozen=True)
class OtherData:
    """Scores of another data set next to those of held-out data."""

    name: str
    held_out: Scores
    other: Scores

    @property
    def by_likelihood(self) -> Separation:
        return Separation.of(self.held_out.values, self.other.values)

    @property
    def by_typicality(self) -> Separation:
        mean = self.held_out.mean
        return Separation.of(np.abs(self.held_out.values - mean), np.abs(self.other.values - mean))

    @property
    def is_more_likely(self) -> bool:
        """Whether the other data are more likely than held-out data, beyond the errors."""
        errors = [scores.standard_error for scores in (self.held_out, self.other)]
        known = [math.inf if error is None else error for error in errors]
        return self.other.mean < self.held_out.mean - SURE * math.hypot(*known)

    def record(self, quantity: str) -> dict[str, object]:
        """What stands in the JSON file."""
        by = {"likelihood": self.by_likelihood, "typicality": self.by_typicality}
        return {
            "path": self.name,
            **self.other.record(quantity),
            "num_images": len(self.other.values),
            "more_likely_than_held_out": self.is_more_likely,
            "auroc": {
                name: {"value": found.auroc, "standard_error": found.standard_error}
                for name, found in by.items()
            },
        }
