from __future__ import annotations

import csv
import io
from typing import get_args

import pytest

from score_diffusion.run.errors import UserError
from score_diffusion.run.evaluation.metrics import FIGURES
from score_diffusion.run.evaluation.resampling import Estimate
from score_diffusion.run.evaluation.results import (
    csv_text,
    figure_of,
    figures_record,
    in_words,
    name_in_words,
    refuse_unlike,
    table,
)
from score_diffusion.run.keys import KEYS


def record(run: str, **figures: Estimate) -> dict:
    settings = {"measured_on": "raw pixels", "digest": "abc", "num_samples": 9, "seed": 0}
    facts = {
        "run": run,
        "sampler": "pc",
        "guidance": "",
        "nfe": 8,
        "seconds_per_sample": None,
        "training_steps": 5,
    }
    return {**facts, **settings, **figures_record(figures)}


def test_figures_go_through_a_record():
    estimate = Estimate(1.2345678, 0.0123, -0.1)
    found = record("a", recall=estimate)
    assert figure_of(found, "recall") == Estimate(1.2345678, 0.0123)
    assert found["samples_change_on_halving"] == {"recall": -0.1}
    assert figure_of(found, "precision") is None
    assert in_words(estimate) == "1.235 ± 0.012" and in_words(None) == "" and in_words(Estimate(2.0)) == "2"


def test_tables_have_a_column_for_every_figure_that_some_result_has():
    records = [record("a,b", recall=Estimate(0.5, 0.1)), record("c", density=Estimate(0.25))]
    header, first, second = table(records)
    assert name_in_words("frechet_distance") == "Fréchet distance"
    assert header[-2:] == ("recall", "density") and first[-2:] == ("0.5 ± 0.1", "") and second[-1] == "0.25"
    rows = list(csv.DictReader(io.StringIO(csv_text(records))))
    assert rows[0]["run"] == "a,b" and rows[0]["recall_standard_error"] == "0.1"
    assert rows[1]["density_standard_error"] == "" and rows[1]["recall"] == "nan"


def test_the_last_row_of_a_table_is_that_of_real_data():
    real = {"real": {"recall": 0.9}, "real_standard_error": {"recall": 0.02}}
    *_, last = table([record("a", recall=Estimate(0.5)) | real])
    assert last[0] == "real data" and set(last[1:-1]) == {""} and last[-1] == "0.9 ± 0.02"


@pytest.mark.parametrize("changed", [{"digest": "other"}, {"num_samples": 8}, {"measured_on": "classes"}])
def test_results_that_were_measured_in_other_ways_are_refused(changed: dict):
    one = record("a", recall=Estimate(0.5))
    refuse_unlike([one, {**one, "run": "b", "seed": 3, "sampler": "eabm", "nfe": 9}])
    with pytest.raises(UserError, match="a and b cannot be compared"):
        refuse_unlike([one, {**one, "run": "b", **changed}])


def test_the_picture_shows_any_figure():
    assert get_args(KEYS["compare.metric"].type) == FIGURES
