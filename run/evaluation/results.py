"""Results of measuring samples, as they stand in a JSON file, and which of them may be compared."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from score_diffusion.run.errors import UserError
from score_diffusion.run.evaluation.resampling import Estimate
from score_diffusion.run.json_files import read_json
from score_diffusion.run.key_types import Values

Record = dict[str, Any]
"""One result."""

FIELDS = {  # that every result has
    "digest": Values(kind=str),
    "measured_on": Values(kind=str),
    "reference": Values(kind=str),
    "num_samples": Values(kind=int, least=2),
    "num_reference": Values(kind=int, least=0),
    "sampler": Values(kind=str),
    "guidance": Values(kind=str),
    "nfe": Values(kind=int, least=0),
    "seed": Values(kind=int),
    "seconds_per_sample": Values(kind=float | None, least=0),
    "training_steps": Values(kind=int, least=0),
    "samples": Values(kind=dict),
    "samples_standard_error": Values(kind=dict),
}
SAME_IN_ALL = {  # what results that are compared have in common, in words
    "measured_on": "features",
    "digest": "data, features or settings of the evaluation",
    "num_samples": "number of samples",
}
COLUMNS = ("run", "sampler", "guidance", "nfe", "seconds_per_sample", "num_samples", "seed", "training_steps")
"""Of a table of results, before the figures."""


def figures_record(estimates: Mapping[str, Estimate], name: str = "samples") -> Record:
    """Figures as they stand in a JSON file: the values, their standard errors, their change on halving."""
    return {
        name: {key: x.value for key, x in estimates.items()},
        f"{name}_standard_error": {key: x.standard_error for key, x in estimates.items()},
        f"{name}_change_on_halving": {key: x.change_on_halving for key, x in estimates.items()},
    }


def figure_of(record: Record, name: str, of: str = "samples") -> Estimate | None:
    """A figure of a result; None if it was not measured."""
    value = record.get(of, {}).get(name)
    return None if value is None else Estimate(value, record[f"{of}_standard_error"].get(name))


def in_words(estimate: Estimate | None) -> str:
    """The value with its standard error: "1.234 ± 0.021"; nothing for none."""
    if estimate is None:
        return ""
    error = estimate.standard_error
    return f"{estimate.value:.4g}" if error is None else f"{estimate.value:.4g} ± {error:.2g}"


def name_in_words(name: str) -> str:
    """The name of a figure as it is printed."""
    words = {"frechet": "Fréchet", "wasserstein": "Wasserstein"}
    return " ".join(words.get(word, word) for word in name.split("_"))


def read_result(path: Path) -> Record:
    """A result of `--mode evaluate`.

    Raises:
        UserError: If the file does not hold one.
    """
    advice = "give a run directory, or an evaluation.json of --mode evaluate"
    record = read_json(path, FIELDS, advice)
    number = Values(kind=float | None)
    for part in ("samples", "samples_standard_error"):
        if not all(map(number.take, record[part].values())):
            raise UserError(f"{path} is damaged ({part} must hold numbers): {advice}")
    return record


def figure_names(records: Sequence[Record]) -> list[str]:
    """The names of all figures that some of the results have."""
    return list(dict.fromkeys(name for record in records for name in record["samples"]))


def refuse_unlike(records: Sequence[Record]) -> None:
    """Refuses to compare results that were measured in different ways.

    Args:
        records: The results, each with its name under "run".

    Raises:
        UserError: If the reference, the features or the number of samples are not the same in all.
    """
    first = records[0]
    for record in records[1:]:
        for key, words in SAME_IN_ALL.items():
            if record[key] != first[key]:
                raise UserError(
                    f"{first['run']} and {record['run']} cannot be compared, they have another {words}: "
                    f"{key} is {first[key]} there and {record[key]} here"
                )


def table(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """The results as rows of texts: the header, a row for each, and one of real data in their place."""
    names = figure_names(records)
    guidance = ("guidance",) if any(record["guidance"] for record in records) else ()
    header = ("run", "sampler", *guidance, "NFE", "s/sample", *map(name_in_words, names))
    rows = [header]
    for record in records:
        seconds = record["seconds_per_sample"]
        cells = [str(record[key]) for key in ("run", "sampler", *guidance, "nfe")]
        time = "" if seconds is None else f"{seconds:.3g}"
        rows.append((*cells, time, *(in_words(figure_of(record, name)) for name in names)))
    real = [figure_of(records[0], name, "real") for name in names]
    if any(real):
        blank = ("",) * (len(header) - len(names) - 1)
        rows.append(("real data", *blank, *map(in_words, real)))
    return rows


def csv_text(records: Sequence[Record]) -> str:
    """The results as comma-separated values, each figure followed by its standard error."""
    names = figure_names(records)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(column for name in names for column in (name, f"{name}_standard_error"))])
    for record in records:
        figures = [figure_of(record, name) or Estimate(float("nan")) for name in names]
        cells = [cell for figure in figures for cell in (figure.value, figure.standard_error)]
        writer.writerow([*(record[column] for column in COLUMNS), *cells])
    return text.getvalue()
