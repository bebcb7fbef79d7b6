"""Results of measuring samples, as they stand in a JSON file, and which of them may be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from score_diffusion.run.errors import UserError
from score_diffusion.run.evaluation.resampling import Estimate

SAME_IN_ALL = {  # what results that are compared have in common, in words
    "digest": "reference, data or features",
    "num_samples": "number of samples",
}


def figures_record(estimates: Mapping[str, Estimate], name: str = "samples") -> dict[str, dict]:
    """Figures as they stand in a JSON file: the values, their standard errors, their change on halving."""
    return {
        name: {key: x.value for key, x in estimates.items()},
        f"{name}_standard_error": {key: x.standard_error for key, x in estimates.items()},
        f"{name}_change_on_halving": {key: x.change_on_halving for key, x in estimates.items()},
    }


def in_words(estimate: Estimate) -> str:
    """The value with its standard error: "1.234 ± 0.021"."""
    error = estimate.standard_error
    if error is None:
        return f"{estimate.value:.4g}"
    return f"{estimate.value:.4g} ± {error:.2g}"


def refuse_unlike(records: Sequence[tuple[str, Mapping]]) -> None:
    """Refuses to compare results that were measured in different ways.

    Args:
        records: Each result with what to call it.

    Raises:
        UserError: If the reference, the features or the number of samples are not the same in all.
    """
    first_name, first = records[0]
    for name, record in records[1:]:
        for key, words in SAME_IN_ALL.items():
            if record.get(key) != first.get(key):
                raise UserError(
                    f"{first_name} and {name} cannot be compared, they have another {words}: {key} is "
                    f"{first.get(key)} there and {record.get(key)} here"
                )
